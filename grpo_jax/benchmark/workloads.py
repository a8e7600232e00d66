"""The workloads that are measured, and the operations and bytes that they need.

A step of a workload: `prompts` prompts of `prompt_length` tokens, `generations` completions of each, a reference pass,
one update. S and L are small enough for two cores, V is S with completions of unequal lengths, as real ones have them;
the others are for one accelerator. Letters as in `models/parameters.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple


class Lengths(NamedTuple):
    """Where completions end: a mixture of two geometric laws, cut at the limit of the workload.

    A completion is of the first kind with probability one half and has then `short` tokens in the mean, else `long`.
    """

    short: float
    long: float

    def survival(self, t: int) -> float:
        """The share of completions with more than t tokens."""
        return sum((1 - 1 / mean) ** t for mean in self) / 2

    def mean(self, limit: int) -> float:
        """Tokens of a completion in the mean, `limit` at most."""
        return sum(self.survival(t) for t in range(limit))


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model's shape and a step's sizes."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    prompts: int
    prompt_length: int
    generations: int
    completion_length: int
    dtype: Literal["float32", "bfloat16"] = "float32"
    tied: bool = False  # the output head is the embedding
    lengths: Lengths | None = None  # None: every completion has `completion_length` tokens

    @property
    def rows(self) -> int:
        """Completions of a step."""
        return self.prompts * self.generations

    @property
    def body(self) -> int:
        """Parameters of all layers that are matrices."""
        attention = 2 * self.width * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.mlp)

    @property
    def head(self) -> int:
        """Parameters of the output head."""
        return self.width * self.vocabulary

    @property
    def mean_length(self) -> float:
        """Tokens of a completion in the mean."""
        return self.lengths.mean(self.completion_length) if self.lengths else float(self.completion_length)


S = Workload("S", 4, 256, 4, 2, 64, 1024, 4096, prompts=8, prompt_length=128, generations=8, completion_length=128)
L = Workload("L", 12, 512, 8, 4, 64, 2048, 32768, prompts=2, prompt_length=256, generations=16, completion_length=256)
V = dataclasses.replace(S, name="V", lengths=Lengths(short=20, long=85))

_CARD = {"prompts": 8, "prompt_length": 256, "generations": 64, "completion_length": 1024, "dtype": "bfloat16"}

WORKLOADS: dict[str, Workload] = {
    w.name: w
    for w in (
        S,
        L,
        V,
        # The widths, heads and vocabularies of Qwen2.5-0.5B and 1.5B and of Llama-2-7B (which is DeepSeekMath's).
        Workload("0.5B", 24, 896, 14, 2, 64, 4864, 151936, **_CARD, tied=True),
        Workload("1.5B", 28, 1536, 12, 2, 128, 8960, 151936, **_CARD, tied=True),
        Workload("7B", 30, 4096, 32, 32, 128, 11008, 102400, **_CARD | {"prompts": 2}),
        # So small that tests run it from end to end.
        Workload("tiny", 2, 16, 2, 1, 8, 32, 64, prompts=2, prompt_length=8, generations=2, completion_length=8),
    )
}
