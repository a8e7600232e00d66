"""MATH-500 (arXiv:2305.20050): the 500 problems of MATH that PRM800K held out."""

from __future__ import annotations

from grpo_jax.config import config
from grpo_jax.evaluation.benchmark import Benchmark, BenchmarkConfig, Hub


@config
class Config(BenchmarkConfig):
    """MATH-500. The other 4,500 problems of MATH's test set may have been trained on: never mix the two."""


def build(config: Config) -> Benchmark:
    """Return the benchmark."""
    from grpo_jax.evaluation.benchmarks.math import of_math

    del config
    return of_math("math500", 500, "math500/test.jsonl", Hub("HuggingFaceH4/MATH-500"))
