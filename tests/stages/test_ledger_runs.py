"""The ledger of a run: what it counts is what its other files say, and weights are known by all their numbers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import ledger, metrics, rollouts

from grpo_jax.models.fingerprint import params_fingerprint
from grpo_jax.reporting.ledger import read_ledger


def test_counts_are_those_of_metrics_and_rollouts(base):
    """Every step of the run is in both; two updates a step."""
    directory = base[1]
    found, lines = ledger(directory)["stages"]["rl"], metrics(directory, "rl")
    groups = [json.loads(line) for line in "".join(rollouts(directory).values()).splitlines()]
    tokens = sum(len(c["tokens"]) for group in groups for c in group["completions"])
    counts = found["counts"]
    assert (counts["prompts"], counts["completions"], counts["optimizer_steps"]) == (4 * 4, 4 * 4 * 4, 4 * 2)
    assert counts["generated_tokens"] == tokens == sum(line["num_generated_tokens"] for line in lines)
    assert counts["trained_tokens"] == 2 * tokens, "every token, once an update"
    assert counts["tool_tokens"] == counts["labels"] == 0
    running = np.cumsum([line["num_generated_tokens"] for line in lines])
    assert [line["total/generated_tokens"] for line in lines] == running.tolist()
    assert [line["total/optimizer_steps"] for line in lines] == [2, 4, 6, 8]


def test_what_stages_say_of_themselves(base):
    directory = base[1]
    found = ledger(directory)
    sft, rl = found["stages"]["sft"], found["stages"]["rl"]
    assert sft["counts"]["trained_tokens"] == sum(line["num_tokens"] for line in metrics(directory, "sft"))
    assert sft["counts"]["optimizer_steps"] == 4 and sft["counts"]["generated_tokens"] == 0
    assert (sft["state"], sft["step"], rl["state"], rl["step"]) == ("finished", 4, "finished", 4)
    assert found["totals"]["trained_tokens"] == sft["counts"]["trained_tokens"] + rl["counts"]["trained_tokens"]
    assert sft["starts_from"]["name"] == "random weights" and rl["starts_from"]["name"] == "sft, step 4"
    assert len({sft["starts_from"]["fingerprint"], rl["starts_from"]["fingerprint"]}) == 2
    assert rl["data"]["rows"] > 0 and len(rl["data"]["fingerprint"]) == 16
    assert [reward["kind"] for reward in rl["rewards"]] == ["accuracy", "tests.stages.rewards_for_tests"]
    chosen = {one["name"]: one["value"] for one in rl["choices"]}
    assert chosen["rl.algorithm.epsilon"] == 0.2 and chosen["rl.sampling.temperature"] == 1.0
    assert {one["value"] for one in found["choices"] if one["name"] == "seed"} == {0}


def test_evaluations_count_apart(evaluated):
    """Before and after: greedy and two samples of each problem; the totals are of what was learnt from."""
    found = ledger(evaluated[1])
    counts, problems = found["stages"]["evaluation"]["counts"], found["stages"]["evaluation"]["data"]["rows"]
    files = [json.loads((evaluated[1] / "evaluation" / f"{name}.json").read_text()) for name in ("before", "after")]
    assert counts["prompts"] == 2 * 2 * problems and counts["completions"] == 2 * 3 * problems
    sampled = sum(one["mean_length"] * 2 * problems for one in files)
    assert sampled < counts["generated_tokens"] < 2 * 3 * 4 * problems + 1
    assert found["totals"] == found["stages"]["rl"]["counts"]
    chosen = {one["name"]: one["relation"] for one in found["stages"]["evaluation"]["choices"]}
    assert chosen["evaluation.sampling.temperature"] == "stated" and chosen["evaluation.source.split"] == "beyond"


def test_time_is_that_of_the_devices_held(base):
    counts = read_ledger(base[1])["stages"]["rl"]["counts"]
    assert 0 < counts["seconds"] == pytest.approx(counts["device_seconds"]), "on one device"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fingerprint_of_weights(dtype):
    """It knows every bit and every place, and not how the numbers lie on the devices."""
    values = jnp.asarray(np.random.default_rng(0).normal(size=(8, 12)), dtype)
    tree = {"a": values, "b": {"c": values[0]}}
    first = params_fingerprint(tree)
    mesh = jax.make_mesh((4, 2), ("x", "y"), devices=jax.devices()[:8])
    spread = jax.NamedSharding(mesh, jax.P("x", "y"))
    assert params_fingerprint(tree | {"a": jax.device_put(values, spread)}) == first
    others = [
        tree | {"a": values.at[3, 5].set(jnp.nextafter(values[3, 5], jnp.asarray(9, dtype)))},
        tree | {"a": values.at[0].set(values[1]).at[1].set(values[0])},
        tree | {"a": values.reshape(12, 8)},
        {"a": values, "d": {"c": values[0]}},
        tree | {"a": values.at[2, 2].set(0.0)},
    ]
    assert len({first, *(params_fingerprint(other) for other in others)}) == len(others) + 1
    zeros = {"a": jnp.zeros((8, 12), dtype)}
    assert params_fingerprint(zeros) != params_fingerprint({"a": -zeros["a"]}), "the sign of zero is a bit"
