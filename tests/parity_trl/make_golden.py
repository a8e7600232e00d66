"""Write tests/golden/trl_losses.json: what TRL's own loss functions say of the golden batch of the methods' tests.

    PYTHONPATH=. TRL_PYTHON tests/parity_trl/make_golden.py       (an environment with trl, torch and numpy)

No model is run: TRL's `_compute_loss` is called on a stand-in whose log-probabilities are given, so that the numbers
are those of its formulas alone. Advantages are given as ours are, since TRL's differ: it divides by the sample's
deviation plus 1e-4 (recorded as `advantages`). Where losses differ and why, `scale` and `what` say.
"""

from __future__ import annotations

import contextlib
import json
import sys
import types
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import trl

ROOT = Path(__file__).resolve().parents[2]


def golden():
    """The batch and the plain formulas, without the package, which this environment does not have."""
    package = types.ModuleType("grpo_jax.algorithms")
    package.__getattr__ = lambda name: None
    sys.modules |= {"grpo_jax": types.ModuleType("grpo_jax"), "grpo_jax.algorithms": package}
    sys.path.insert(0, str(ROOT))
    from tests.algorithms import variants

    return variants


variants = golden()
BATCH = variants.golden_batch()
MASK, X, OLD, REF = (torch.tensor(getattr(BATCH, name)) for name in ("mask", "logprobs", "old", "ref"))


class Stand(SimpleNamespace):
    """What `_compute_loss` asks of a trainer, of one process and one micro-batch."""

    def _get_per_token_logps_and_entropies(self, *arguments, **named):
        return self.x, torch.zeros_like(self.x), None


def grpo_like(advantages, **settings) -> tuple[float, list]:
    """Loss and gradient of TRL's GRPOTrainer for these settings."""
    defaults = {
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "beta": 0.0,
        "epsilon": 0.2,
        "epsilon_high": 0.2,
        "delta": None,
    }
    c = SimpleNamespace(**defaults | settings)
    x = X.clone().requires_grad_()
    one = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)
    stand = Stand(
        x=x,
        beta=c.beta,
        loss_type=c.loss_type,
        importance_sampling_level=c.importance_sampling_level,
        epsilon_low=c.epsilon,
        epsilon_high=c.epsilon_high,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        max_completion_length=variants.TC,
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True),
        accelerator=one,
        _metrics={"train": defaultdict(list)},
        args=SimpleNamespace(delta=c.delta, use_bias_correction_kl=False, steps_per_generation=1),
    )
    ids = torch.zeros_like(MASK, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1] + 1,
        "completion_ids": ids,
        "completion_mask": MASK.long(),
        "advantages": torch.tensor(advantages).reshape(-1),
        "old_per_token_logps": OLD,
        "ref_per_token_logps": REF,
        "num_items_in_batch": MASK.sum(),
    }
    loss = trl.GRPOTrainer._compute_loss(stand, None, inputs)
    loss.backward()
    return loss.item(), x.grad.tolist()


class Enough(Exception):
    """Raised where the loss is known and only metrics follow."""


def dpo_like(loss_type: str, beta: float) -> tuple[float, list]:
    """Loss and gradient of TRL's DPOTrainer on the pairs of the batch, [chosen, rejected] as it wants them."""
    pairs = variants.plain_pairs(BATCH)
    rows = [a for a, _ in pairs] + [b for _, b in pairs]
    x = X.clone().requires_grad_()
    caught = {}

    def model(x):
        def forward(**named):
            return SimpleNamespace(log_probs=x[rows] * MASK[rows], loss=None)

        return forward

    class Watched(list):
        def append(self, value):
            caught.setdefault("metrics", []).append(value)

    policy = model(x)
    stand = SimpleNamespace(
        model=SimpleNamespace(training=True),
        ref_model=model(REF),
        accelerator=SimpleNamespace(
            device="cpu", unwrap_model=lambda m: m, gather_for_metrics=lambda x: x, gather=lambda x: x
        ),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        beta=beta,
        loss_types=[loss_type],
        loss_weights=[1.0],
        use_weighting=False,
        label_smoothing=0.0,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        _metrics={"train": defaultdict(Watched)},
    )
    mask = torch.cat([torch.zeros(len(rows), 1), MASK[rows].double()], 1).long()
    inputs = {"input_ids": torch.zeros_like(mask), "attention_mask": mask, "completion_mask": mask}
    loss = loss_of_dpo(stand, policy, inputs)
    loss.backward()
    return loss.item(), x.grad.tolist()


def loss_of_dpo(stand, policy, inputs):
    """TRL's `_compute_loss` up to its metrics, which need what a stand-in has not."""
    import trl.trainer.dpo_trainer as module

    found = {}

    def watch(frame, event, argument):
        if event == "line" and frame.f_code.co_name == "_compute_loss" and torch.is_tensor(frame.f_locals.get("loss")):
            found["loss"] = frame.f_locals["loss"]
        return watch

    module.disable_gradient_checkpointing = lambda *_: contextlib.nullcontext()
    module.is_peft_model = lambda model: False
    sys.settrace(watch)
    try:
        trl.DPOTrainer._compute_loss(stand, policy, inputs, False)
    except (AttributeError, KeyError, TypeError):
        if "loss" not in found:
            raise
    finally:
        sys.settrace(None)
    return found["loss"]


def main() -> None:
    A = {
        name: variants.VARIANTS[name].advantages(BATCH.rewards) for name in ("grpo", "dr_grpo", "dapo", "gspo", "cispo")
    }
    live = (
        BATCH.mask.sum()
        / BATCH.mask[variants.plain_advantages(variants.VARIANTS["dapo"], BATCH, BATCH.old)[1].any(1)].sum()
    )
    cases = [
        ("grpo", {"beta": 0.04}, grpo_like(A["grpo"], beta=0.04), 1.0, "loss_type grpo: the same"),
        (
            "grpo",
            {"beta": 0.0, "epsilon_high": 0.28, "delta": 1.5},
            grpo_like(A["grpo"], epsilon_high=0.28, delta=1.5),
            1.0,
            "two-sided clipping: the same",
        ),
        (
            "dr_grpo",
            {"length": variants.TC},
            grpo_like(A["dr_grpo"], loss_type="dr_grpo"),
            1.0,
            "loss_type dr_grpo, scale_rewards none: the same",
        ),
        (
            "dapo",
            {},
            grpo_like(A["dapo"], loss_type="dapo", epsilon_high=0.28),
            1 / live,
            "TRL counts the tokens of groups of equal rewards, which DAPO leaves out: its loss is smaller",
        ),
        (
            "gspo",
            {},
            grpo_like(A["gspo"], importance_sampling_level="sequence", epsilon=3e-4, epsilon_high=4e-4),
            1.0,
            "importance_sampling_level sequence: the same",
        ),
        (
            "gspo",
            {"epsilon": 0.05, "epsilon_high": 0.08},
            grpo_like(A["gspo"], importance_sampling_level="sequence", epsilon=0.05, epsilon_high=0.08),
            1.0,
            "the same with a wider clip",
        ),
        (
            "cispo",
            {"epsilon_high": 0.3},
            grpo_like(A["cispo"], loss_type="cispo", epsilon_high=1.3),
            1.0,
            "TRL's epsilon_high is the bound itself, ours is what it is above 1",
        ),
        (
            "dpo",
            {"beta": 0.1, "length_average": False},
            dpo_like("sigmoid", 0.1),
            1.0,
            "loss_type sigmoid: the sum, the same",
        ),
        (
            "dpo",
            {"beta": 0.5, "length_average": True},
            dpo_like("sigmoid_norm", 0.5),
            1.0,
            "loss_type sigmoid_norm: the paper's mean, the same",
        ),
    ]
    rewards = torch.tensor(BATCH.rewards)
    deviation = rewards.std(1, keepdim=True)
    record = {
        "made_by": f"trl {trl.__version__}, torch {torch.__version__}",
        "advantages": ((rewards - rewards.mean(1, keepdim=True)) / (deviation + 1e-4)).tolist(),
        "cases": [
            {
                "algorithm": name,
                "settings": settings,
                "loss": loss,
                "gradient": np.round(gradient, 9).tolist(),
                "scale": scale,
                "what": what,
            }
            for name, settings, (loss, gradient), scale, what in cases
        ],
    }
    path = ROOT / "tests" / "golden" / "trl_losses.json"
    path.write_text(json.dumps(record) + "\n")
    for case in record["cases"]:
        print(f"{case['algorithm']:8} {case['settings']!s:55} loss {case['loss']:+.6f}  {case['what']}")


if __name__ == "__main__":
    main()
