"""The frozen tree of settings: one section a stage, in the order of the paper, each absent or present.

One YAML file is one pipeline; `configure/` reads files and command line into `Config`. A field marked `Kind`
holds the settings of a file chosen by name: `algorithm: {kind: dapo}` is `grpo_jax/algorithms/dapo.py`, whose
`Config` class becomes the field's type. Names are TRL's where TRL and Tunix agree; defaults are the paper's
(arXiv:2402.03300, section 4.2), and the help says where a peer's default differs.

This module imports nothing heavy: `--help` must answer in a second.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import pydantic

from grpo_jax import texts
from grpo_jax.config.parts import (
    Axis,
    Count,
    Decay,
    Kind,
    NonNegative,
    OptimizerConfig,
    Positive,
    SamplingConfig,
    Share,
    config,
)
from grpo_jax.config.reward_model import ContinueConfig, LabelConfig, RewardModelConfig

__all__ = [
    "ArchitectureConfig",
    "Axis",
    "Config",
    "ContinueConfig",
    "Count",
    "Decay",
    "EvaluationConfig",
    "Kind",
    "LabelConfig",
    "LoraConfig",
    "MeshConfig",
    "ModelConfig",
    "NonNegative",
    "OptimizerConfig",
    "Positive",
    "PromptConfig",
    "RLConfig",
    "RewardModelConfig",
    "SFTConfig",
    "SamplingConfig",
    "Share",
    "config",
    "with_files_read",
]


@config
class ArchitectureConfig:
    """The shape of a policy that is made here, with random weights (Llama, or Qwen2 with `qkv_bias`)."""

    hidden_size: Positive = 64
    """Width D of the residual stream."""
    num_hidden_layers: Positive = 2
    """Layers L."""
    num_attention_heads: Positive = 4
    """Query heads N."""
    num_key_value_heads: Positive = 4
    """Key and value heads K; N must be a multiple."""
    head_dim: Positive = 16
    """Head width H."""
    intermediate_size: Positive = 192
    """Width F of the gated MLP."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square before its root."""
    tie_word_embeddings: bool = True
    """Whether the output head is the embedding."""
    qkv_bias: bool = False
    """Whether query, key and value projections have biases (Qwen2)."""


@config
class LoraConfig:
    """Low-rank adapters beside frozen weights (arXiv:2106.09685), trained instead of them in every stage."""

    rank: Positive = 16
    """Inner dimension r (TRL: lora_r, 16)."""
    alpha: Annotated[float, pydantic.Field(gt=0.0)] = 32.0
    """What an adapter adds is scaled by alpha / rank (TRL: lora_alpha, 32)."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (arXiv:2312.03732; TRL: use_rslora)."""
    targets: tuple[str, ...] = ("*_proj",)
    """Names, or patterns of names: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj (not of experts)."""
    adapter_name_or_path: str | None = None
    """A PEFT directory or hub name to start from, of this rank, scale and targets; None: new adapters."""


@config
class ModelConfig:
    """The policy: a Hugging Face directory or hub name, or an architecture with random weights."""

    model_name_or_path: str | None = None
    """A directory with config.json and safetensors, or a hub name; None: `architecture`, random weights."""
    architecture: ArchitectureConfig | None = None
    """The shape of a policy made from scratch; used only without `model_name_or_path`."""
    tokenizer_name_or_path: str | None = None
    """None: the tokenizer beside the weights, or for `architecture` the characters of the problem source."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the matrix products in flight; trained weights and long sums are float32 in any case."""
    remat: Literal["none", "dots", "full"] = "dots"
    """What the backward pass recomputes a layer: nothing, all but matrix products, everything."""
    scan_layers: bool = True
    """Compile one layer and loop over it in training."""
    decode_layers: Literal["auto", "scan", "unroll"] = "auto"
    """The same in the decode loop. `auto`: on one CPU device scan where keys and values are few; else unroll up to 24
    layers on CPU and 8 elsewhere."""
    decode_weights: Literal["auto", "stored", "joined", "gathered"] = "auto"
    """The decode loop's own copy of the weights: none, in `dtype` with q, k, v and gate, up joined, and whole on each
    fsdp shard besides; `auto`: the last of these that takes at most 2 GiB a device, none if nothing is to be cast or
    gathered. The result is one."""
    experts_kernel: Literal["auto", "dense", "ragged", "blocks"] = "auto"
    """How a mixture of experts is computed; `auto`: dense on CPU, ragged on TPU, blocks on GPU. The result is one."""
    attention_kernel: Literal["auto", "xla", "blocks", "splash"] = "auto"
    """Attention of whole sequences; `auto`: from 512 tokens on blocks on CPU, splash on TPU, else xla."""
    lora: LoraConfig | None = None
    """Train low-rank adapters and no weights; without dropout, as trainer and sampler must agree. None: all weights."""


@config
class MeshConfig:
    """How the devices are arranged; one size may be -1 and takes what is left."""

    data: Axis = 1
    """Copies of the parameters, each with its share of the batch."""
    fsdp: Axis = -1
    """Shards of parameters, optimizer and batch alike."""
    tensor: Axis = 1
    """Shards of heads, mlp and vocabulary."""


@config
class PromptConfig:
    """From a problem to the text that the policy continues.

    What stands in a file is read with the settings and takes the place of the file's name: it is compared when a run
    goes on, and kept in its config.yaml.
    """

    format: Literal["auto", "chat", "text"] = "auto"
    """`chat`: the tokenizer's chat template; `text`: `template`; `auto`: chat where the tokenizer has one."""
    template: str = "{question}"
    """The prompt of format `text`. DeepSeekMath's is "User: {question}\\n\\nAssistant:"."""
    template_file: Annotated[str, pydantic.AfterValidator(texts.template_file)] | None = None
    """A text file with `template`, few-shot examples and all; nothing but {question} is replaced in it."""
    examples: tuple[tuple[str, str], ...] = ()
    """Few-shot: solved problems, each [question, answer], that format `text` writes before the template."""
    examples_file: Annotated[str, pydantic.AfterValidator(texts.examples_file)] | None = None
    """A file of JSON lines with `examples`: keys question and answer."""
    example: Annotated[str, pydantic.AfterValidator(texts.example)] | None = None
    """How an example is written, with {question} and {answer}; None: `template`, space, answer, empty line."""
    suffix: str = ""
    """Appended to the question, in either format (the paper: "\\nPlease reason step by step, and ...")."""
    system: str | None = None
    """System message of format `chat`."""
    date: Annotated[str, pydantic.AfterValidator(texts.date)] = "2024-07-26"
    """What a chat template that writes today's date writes (Llama 3.2), so that prompts do not change by the day."""
    max_prompt_length: Positive = 512
    """Tokens; all prompts are padded to this length."""
    overlong_prompts: Literal["error", "drop"] = "error"
    """What to do with a longer prompt: stop and name it, or leave it out and print how many were."""

    @pydantic.model_validator(mode="after")
    def _read(self) -> PromptConfig:
        return with_files_read(self)


def with_files_read(prompt: PromptConfig) -> PromptConfig:
    """Return the settings with what stands in their files in the place of the files' names.

    Settings that come from YAML and flags have been through it. Raises `PydanticCustomError`.
    """
    read = {}
    if prompt.template_file is not None:
        read |= {"template": texts.text_of(texts.template_file(prompt.template_file)), "template_file": None}
    if prompt.examples_file is not None:
        read |= {"examples": texts.examples_of(prompt.examples_file), "examples_file": None}
    for key in {"template", "examples"} & read.keys():
        none = getattr(PromptConfig, key)
        if getattr(prompt, key) not in (none, read[key]):
            raise texts.wrong(f"has both {key} and {key}_file; take one back ({key} {none!r}, or {key}_file null)")
    return dataclasses.replace(prompt, **read)


@config
class SFTConfig:
    """Supervised fine-tuning on demonstrations, loss on the completion only (arXiv:2402.03300, eq. 6)."""

    source: Annotated[Any, Kind("data.sources")]
    """Problems with solutions, prompt/completion pairs or conversations."""
    max_steps: Positive = 500
    """Updates (paper 500)."""
    batch_size: Positive = 256
    """Rows an update; with packing a row holds several examples (paper 256)."""
    max_length: Positive = 4096
    """Tokens a row (paper 4096)."""
    packing: bool = True
    """Put several examples in a row; they do not see one another."""
    overlong_examples: Literal["error", "drop", "truncate"] = "error"
    """What to do with an example longer than `max_length`."""
    microbatches: Count = 0
    """Parts into which an update's rows are split; the gradient is the same. 0: as memory (a CPU's cache) allows."""
    head_chunk: Count = 0
    """Time steps whose logits are in memory at once; 0: as memory allows."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-5)
    """AdamW; the paper's SFT has a constant 5e-5."""
    logging_steps: Positive = 10
    """A line of metrics every so many steps."""
    save_steps: Count = 100
    """A checkpoint every so many steps, and one at the end; 0: only at the end."""
    save_total_limit: Positive = 2
    """Checkpoints kept; the newest is always among them."""


@config
class RLConfig:
    """Reinforcement from rewards: Algorithm 1 of arXiv:2402.03300."""

    source: Annotated[Any, Kind("data.sources")]
    """The task prompts D."""
    algorithm: Annotated[Any, Kind("algorithms")]
    """From rewards to a gradient coefficient for every token."""
    rewards: Annotated[tuple[Any, ...], Kind("rewards")]
    """Reward functions; each may have a `weight`, the reward is the weighted sum."""
    iterations: Positive = 1
    """Outer iterations I: at the start of each the reference becomes the policy (iterative GRPO)."""
    continue_reward_model: ContinueConfig | None = None
    """Between outer iterations, train the reward model of reward `learned` on fresh solutions of the policy; None: it
    stays as it is."""
    max_steps: Positive = 500
    """Steps M of one outer iteration; a step is one batch of prompts."""
    sync_ref_model: bool = False
    """Within an outer iteration, let the reference follow the policy every `ref_model_sync_steps`. (TRL false.)"""
    ref_model_mixup_alpha: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 0.6
    """Of sync_ref_model: reference <- alpha * policy + (1 - alpha) * reference. (TRL 0.6; TR-DPO, arXiv:2404.09656.)"""
    ref_model_sync_steps: Positive = 512
    """Of sync_ref_model: every so many updates. (TRL 512.)"""
    prompts_per_step: Positive = 16
    """Prompts P a step; with num_generations 64 it is the paper's batch of 1024."""
    num_generations: Annotated[int, pydantic.Field(ge=2)] = 64
    """Completions G of one prompt (paper 64; TRL 8, Tunix 2)."""
    num_iterations: Positive = 1
    """Updates mu on one batch (paper 1)."""
    microbatches: Count = 0
    """Parts into which an update's rows are split; the gradient is the same. 0: as memory (a CPU's cache) allows."""
    length_buckets: Positive = 1
    """Sort an update's rows by length and compute each micro-batch to the nearest of so many lengths; 1: unsorted."""
    decode_rows: Count = 0
    """Rows decoded at once, refilled from the completions that wait as theirs end; 0: all of a step's. Same tokens."""
    sample_parts: Positive = 1
    """Parts of a step's prompts that are sampled one after the other; one is judged while the next is sampled."""
    steps_off_policy: Literal[0, 1] = 0
    """1: sample each step with the weights before the last update, while the host judges; needs importance_cap."""
    fused_steps: Count = 0
    """At most so many steps run as one program, without the host between; 0: part by part. The tokens are the same.
    Rewards must have an array form (`exact`, `length`); a signal is heeded when the program ends."""
    sampling: SamplingConfig = SamplingConfig()
    """How completions are drawn."""
    tools: Annotated[Any, Kind("tools")] | None = None
    """Run the programs that completions write, and let the policy read the output. None: completions are only text."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW; the paper's RL has 1e-6."""
    head_chunk: Count = 0
    """Time steps whose logits are in memory at once when log-probabilities are computed; 0: as memory allows."""
    rollout_weights: Literal["same", "int8"] = "same"
    """Of the decode loop: the trainer's, or quantised to 8 bits by output channel, corrected by importance_cap."""
    importance_cap: Annotated[float, pydantic.Field(ge=1.0)] | None = None
    """Multiply each token's term by the trainer's over the sampler's probability, at most this; None: not at all."""
    importance_mode: Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = "token_truncate"
    """Whose probability, the token's or its completion's, and whether what is above importance_cap counts so much, or
    not at all. (TRL: sequence_mask, 3.0.)"""
    entropy_coef: NonNegative = 0.0
    """Added to each token's objective, times the entropy there; 0: entropy is only logged. (TRL 0.0.)"""
    mask_truncated_completions: bool = False
    """Do not train on completions that the length limit cut; they still count in the baseline. (TRL false.)"""
    dead_groups: Literal["auto", "count", "exclude", "refill"] = "auto"
    """Groups whose rewards are all equal: count them in the means, exclude them, or put those of further prompts in
    their place; auto: as the algorithm says (dapo excludes, others count). Their share is logged in any case."""
    refill_rounds: Positive = 3
    """Of dead_groups refill: at most so many further batches of prompts a step; what is dead then is excluded."""
    max_logprob_gap: NonNegative = 0.05
    """Stop if the mean gap between the sampler's and the trainer's log-probabilities exceeds this (nats); the
    trainer's with the weights that were sampled from, before any rounding of theirs."""
    max_skipped_steps: Positive = 5
    """Stop after so many updates in a row whose gradient was not finite."""
    logging_steps: Positive = 1
    """A line of metrics every so many steps."""
    rollout_steps: Count = 10
    """Rollouts are kept for the report every so many steps; 0: never."""
    eval_steps: Count = 0
    """Held-out evaluation every so many steps, if there is an `evaluation` section; 0: never."""
    best_metric: str | None = None
    """Also save each step whose held-out metric is the largest so far, and keep it: greedy, maj@8, gsm8k/greedy, ..."""
    save_steps: Count = 100
    """A checkpoint every so many steps, and one at the end; 0: only at the end."""
    save_total_limit: Positive = 2
    """Checkpoints kept; the newest is always among them."""


@config
class EvaluationConfig:
    """Held-out accuracy: greedy, and n samples a problem for mean@n, pass@k and maj@k."""

    source: Annotated[Any, Kind("data.sources")] | None = None
    """Held-out problems; a problem whose prompt is dropped as too long counts as wrong."""
    reward: Annotated[Any, Kind("rewards")] | None = None
    """What decides whether a completion of `source` is right: a reward above 0.5."""
    benchmarks: Annotated[tuple[Any, ...], Kind("evaluation.benchmarks")] | None = None
    """Published sets with their own prompts and rules, besides `source` or instead of it."""
    scorer: Annotated[Any, Kind("rewards")] | None = None
    """A reward model that scores the samples, {kind: learned, path: RUN}: for best@k and the weighted vote."""
    num_samples: Positive = 8
    """Samples n of one problem."""
    k: tuple[Positive, ...] = (1, 4, 8)
    """The k of pass@k and maj@k; none above n."""
    batch_prompts: Positive = 64
    """Prompts decoded at once."""
    decode_rows: Count = 0
    """Rows decoded at once, refilled from the completions that wait as theirs end; 0: all of a batch. Same tokens."""
    sampling: SamplingConfig = SamplingConfig()
    """Of the n samples; greedy decoding takes its lengths and stops from here."""
    tools: Annotated[Any, Kind("tools")] | None = None
    """Run the programs that completions write, and let the policy read the output. None: completions are only text."""


@config
class Config:
    """A pipeline: its sections are run in this order, each from the weights of the one before."""

    output_dir: str = "runs/tiny"
    """Everything is written below it; the same directory resumes."""
    seed: Count = 0
    """Of parameters, data order and sampling."""
    model: ModelConfig = ModelConfig(architecture=ArchitectureConfig())
    """The policy."""
    mesh: MeshConfig = MeshConfig()
    """The devices."""
    prompt: PromptConfig = PromptConfig()
    """From a problem to a prompt."""
    sft: SFTConfig | None = None
    """Supervised fine-tuning."""
    label: LabelConfig | None = None
    """The policy's solutions, their steps labelled by the policy, for `reward_model`."""
    reward_model: RewardModelConfig | None = None
    """A model that scores steps or solutions, for the reward `learned`."""
    rl: RLConfig | None = None
    """Reinforcement."""
    evaluation: EvaluationConfig | None = None
    """Before and after reinforcement, on held-out problems."""
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    """Besides metrics.jsonl, which is always written."""
