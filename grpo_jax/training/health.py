"""Whether a run is worth going on: reasons to stop, each with what it mostly means."""

from __future__ import annotations

from collections.abc import Mapping

EXIT_UNHEALTHY = 4
WRONG = (
    "ratios would be wrong. In bfloat16 a larger bound may be right for a small model; in float32 on a CPU this is a "
    "bug"
)
FAR = "weights in 8 bits are too far from the trained ones: raise the bound, or set rl.rollout_weights to same"


class RunHealthError(ValueError):
    """Training was stopped since going on would lose work; the message says why and what to look at.

    `sound` says whether the state of the last step is worth keeping.
    """

    exit_code = EXIT_UNHEALTHY

    def __init__(self, message: str, *, sound: bool):
        super().__init__(message)
        self.sound = sound


class Health:
    """Watches the metrics of each step; `max_logprob_gap` None: sampler and trainer differ without a bound by design.

    `corrected`: they differ by design and are corrected for, so that a large gap is a matter of the settings.
    """

    def __init__(self, max_skipped_steps: int = 5, max_logprob_gap: float | None = None, *, corrected: bool = False):
        self.max_skipped_steps, self.max_logprob_gap = max_skipped_steps, max_logprob_gap
        self.corrected = corrected
        self.skipped_in_a_row = 0

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raise `RunHealthError` if too many updates in a row were skipped, or sampler and trainer disagree."""
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if metrics["skipped_updates"] > 0 else 0
        if self.skipped_in_a_row >= self.max_skipped_steps:
            raise RunHealthError(
                f"step {step}: {self.skipped_in_a_row} updates in a row had a gradient that is not finite; the "
                "parameters are as before them. Lower optimizer.learning_rate, or look at the rewards of these steps",
                sound=True,
            )
        gap = metrics.get("logprob_gap/mean", 0.0)
        if self.max_logprob_gap is not None and not gap <= self.max_logprob_gap:
            raise RunHealthError(
                f"step {step}: sampler and trainer differ by {gap:.4f} nats a token on average, more than "
                f"rl.max_logprob_gap {self.max_logprob_gap}; {FAR if self.corrected else WRONG}",
                sound=self.corrected,
            )
