"""The arithmetic of workloads against numbers counted by hand."""

import math

import pytest

from grpo_jax.benchmark.floors import floor_seconds, phase_work
from grpo_jax.benchmark.workloads import WORKLOADS, Lengths, S, V


def test_parameters_of_s():
    attention = 256 * 256 + 2 * 256 * 128 + 256 * 256  # q, k and v, o
    assert S.body == 4 * (attention + 3 * 256 * 1024) == 3_932_160
    assert S.head == 1_048_576
    assert S.rows == 64


def test_operations_of_s():
    """9,216 body tokens and 8,192 head tokens: about 90 GFLOP a forward, and five forwards' worth in a step."""
    body_tokens, head_tokens = 8 * 128 + 64 * 128, 64 * 128
    assert (body_tokens, head_tokens) == (9216, 8192)
    matrices = 2 * (3_932_160 * body_tokens + 1_048_576 * head_tokens)
    assert matrices == pytest.approx(90e9, rel=0.01)
    pairs = 8 * 128 * 129 / 2 + 64 * sum(128 + t + 1 for t in range(128))
    work = phase_work(S)
    assert work["reference"].operations == pytest.approx(matrices + 4 * 4 * 64 * 4 * pairs)
    assert work["update"].operations == 3 * work["reference"].operations
    assert work["prefill"].operations + work["decode"].operations == work["reference"].operations


def test_bytes_of_decode():
    """128 times all weights and the eight prompts' keys and values, and the completions' own as they grow."""
    kept = 2 * 2 * 64 * 4 * 4  # keys and values of one token in four layers
    weights = (3_932_160 + 1_048_576) * 4
    expected = 128 * (weights + 8 * 128 * kept) + kept * 64 * sum(range(128))
    assert phase_work(S)["decode"].bytes == pytest.approx(expected)


def test_work_of_v_is_that_of_its_mean_length():
    assert V.mean_length == pytest.approx(43.1, abs=0.1)
    long, short = phase_work(S), phase_work(V)
    head = 2 * 64 * (S.body + S.head)  # a token of all rows, without attention
    assert short["decode"].operations > head * V.mean_length
    assert short["decode"].operations < long["decode"].operations * 0.36
    assert short["prefill"] == long["prefill"]


def test_lengths():
    lengths = Lengths(short=2, long=4)
    assert lengths.survival(0) == 1
    assert lengths.survival(2) == pytest.approx((0.25 + 0.5625) / 2)
    assert lengths.mean(10_000) == pytest.approx(3)
    assert lengths.mean(3) == pytest.approx(1 + 0.625 + 0.40625)


def test_a_floor_is_the_longer_time():
    machine = {"matmul": 1e9, "read": 1e9}
    work = phase_work(S)["decode"]
    assert floor_seconds(work, machine) == pytest.approx(work.operations / 1e9)
    assert floor_seconds(work, machine | {"matmul": math.inf}) == pytest.approx(work.bytes / 1e9)


def test_shapes_of_accelerators():
    assert 0.35e9 < WORKLOADS["0.5B"].body < 0.36e9
    assert 1.3e9 < WORKLOADS["1.5B"].body < 1.32e9
    assert 6.0e9 < WORKLOADS["7B"].body < 6.2e9
    assert all(WORKLOADS[name].generations == 64 for name in ("0.5B", "1.5B", "7B"))
