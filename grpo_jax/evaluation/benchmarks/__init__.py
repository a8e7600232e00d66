"""Benchmarks, one a file: the file name is what `--benchmarks` and `evaluation.benchmarks` call it."""
