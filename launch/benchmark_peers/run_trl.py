"""The worker that holds TRL's GRPOTrainer; run by the interpreter of an environment made by make.py.

    python run_trl.py WORKLOAD_DIRECTORY RUN_DIRECTORY SETTINGS     (JSON; see `SETTINGS`)

TRL's own loop makes the steps: generation by transformers with its cache and sdpa attention, one update on the whole
batch, a reference model, no gradient checkpointing, no logging and no saving. The time of a phase is the time spent in
TRL's own method: `generate` in the model's generate, `prefill` in its first forward pass there, `reference` in the
pass over log-probabilities without gradient, `train` in all of `training_step` that is left plus the optimizer's step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from grpo_jax.benchmark.serving import Conversation, Finished, peak_memory, reward

# `batch`: completions of a forward and backward pass, 0: all of a step; smaller ones are accumulated to one update.
SETTINGS = {"batch": 0, "threads": 0, "cache_implementation": None}
WHOLE = ("prompts", "generations")  # what multiplied is the largest batch


def main(argv: list[str]) -> None:
    """Serve until told to finish."""
    conversation = Conversation()
    place, directory, settings = Path(argv[0]), argv[1], SETTINGS | json.loads(argv[2])
    import torch

    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    trainer = make_trainer(conversation, place, directory, settings)
    measure_phases(conversation, trainer)
    try:
        trainer.train()
    except Finished:
        memory = peak_memory()
        if torch.cuda.is_available():
            memory["peak_device_memory"] = torch.cuda.max_memory_allocated()
        conversation.finish(**memory)


def make_trainer(conversation: Conversation, place: Path, directory: str, settings: dict):
    """A trainer on the workload's weights and prompts."""
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    w = json.loads((place / "workload.json").read_text())
    cuda, tokens = torch.cuda.is_available(), []
    threads = f"cpu, {torch.get_num_threads()} threads"
    about = {
        "system": f"trl {trl.__version__}, torch {torch.__version__}, transformers {transformers.__version__}",
        "devices": torch.cuda.get_device_name() if cuda else threads,
    }

    def scored(prompts, completions, completion_ids, **columns):
        tokens[:] = [sum(map(len, completion_ids))]
        return reward(prompts, completions)

    class Between(TrainerCallback):
        """Waits where a step ends."""

        def on_train_begin(self, args, state, control, **_):
            conversation.begin()

        def on_step_end(self, args, state, control, **_):
            conversation.between_steps(tokens[0], **about)

    # Weights are trained in float32, as ours are; with bf16 the products are in bfloat16 by autocast.
    model = AutoModelForCausalLM.from_pretrained(place / "model", dtype=torch.float32, attn_implementation="sdpa")
    lines = [json.loads(line)["question"] for line in (place / "prompts.jsonl").read_text().splitlines()]
    return trl.GRPOTrainer(
        model=model,
        reward_funcs=scored,
        args=configuration(w, directory, settings, cuda=cuda),
        train_dataset=Dataset.from_dict({"prompt": lines}),
        processing_class=AutoTokenizer.from_pretrained(place / "model"),
        callbacks=[Between()],
    )


def configuration(w: dict, directory: str, settings: dict, *, cuda: bool):
    """TRL's settings for a workload; what is not named is TRL's default."""
    import trl

    rows = w["prompts"] * w["generations"]
    batch = settings["batch"] or rows
    return trl.GRPOConfig(
        output_dir=directory,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=rows // batch,
        num_generations=w["generations"],
        max_completion_length=w["completion_length"],
        max_steps=1_000_000,
        beta=0.04,
        loss_type="grpo",
        temperature=1.0,
        top_k=0,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=w["dtype"] == "bfloat16",
        gradient_checkpointing=False,
        cache_implementation=settings["cache_implementation"],
        use_cpu=not cuda,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        shuffle_dataset=False,
        seed=0,
    )


def measure_phases(conversation: Conversation, trainer) -> None:
    """Put a clock around TRL's methods."""
    import torch

    def wait(_):
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    model, inside = trainer.model, []
    generate, forward, score = model.generate, model.forward, trainer._get_per_token_logps_and_entropies
    prefill = conversation.timed("prefill", forward, wait)

    def timed_forward(*arguments, **named):
        if inside:
            inside.clear()
            return prefill(*arguments, **named)
        return forward(*arguments, **named)

    def timed_generate(*arguments, **named):
        inside[:] = [True]
        return generate(*arguments, **named)

    without_gradient = conversation.timed("reference", score, wait)

    def timed_score(*arguments, **named):
        return (score if torch.is_grad_enabled() else without_gradient)(*arguments, **named)

    model.forward = timed_forward
    model.generate = conversation.timed("sample", timed_generate, wait)
    trainer._get_per_token_logps_and_entropies = timed_score


if __name__ == "__main__":
    main(sys.argv[1:])
