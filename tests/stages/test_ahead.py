"""Programs compiled ahead of time: the bytes are those of the layout, the work is counted by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from small_runs import quick_compilation, write_settings

from grpo_jax.configure import load
from grpo_jax.models.parameters import abstract_params
from grpo_jax.sharding import ShardingError, named, replicated
from grpo_jax.stages.ahead import Footprint, device_bytes, matmul_flops, too_large
from grpo_jax.stages.footprints import open_plant, phases
from tests.tiny import decoder, mesh_of

P, G, TP, TC = 8, 4, 6, 8
RL = {
    "prompts_per_step": P,
    "num_generations": G,
    "microbatches": 2,
    "head_chunk": 4,
    "sampling": {"max_completion_length": TC},
}


@pytest.fixture(scope="module")
def mesh():
    return mesh_of(data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    prompt = {"format": "text", "max_prompt_length": TP}
    file = write_settings(tmp_path_factory.mktemp("ahead") / "run.yaml", sft=None, rl=RL, prompt=prompt)
    return load([str(file), "--print_config"]).config


@pytest.fixture(scope="module")
def compiled(config, mesh):
    """Phase and compiled program by name."""
    found = phases(open_plant(config, decoder().config, mesh))
    with quick_compilation():
        return {phase.name: (phase, phase.compile()) for phase in found if phase.compile}


def takes(compiled) -> dict[str, Footprint]:
    return {name: program.footprint(phase.beside) for name, (phase, program) in compiled.items()}


def test_results_are_laid_out_as_the_next_program_is_planned_to_take_them(compiled, mesh):
    rollout = compiled["rl: sampling"][1].results
    assert rollout.completions.tokens.shape == (P * G, TC)
    own = [rollout.completions, rollout.completion_mask, rollout.logprobs, rollout.finished]
    logprobs = compiled["rl: reference log-probabilities"][1].results
    for leaf in jax.tree.leaves((own, logprobs)):
        assert leaf.sharding.is_equivalent_to(named(mesh, "batch"), leaf.ndim)
    after, metrics = compiled["rl: update"][1].results
    params = abstract_params(decoder().config, mesh)
    same = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), after.params, params)
    assert all(jax.tree.leaves(same))
    assert all(m.sharding.is_fully_replicated for m in metrics.values())


def test_bytes(compiled, mesh):
    params = device_bytes(abstract_params(decoder().config, mesh))
    found = takes(compiled)
    prompts = P // 4 * (3 * TP + 1) * 4
    key = 8  # two words
    assert found["rl: sampling"].arguments == params + prompts + key + 4
    held = compiled["rl: update"][0].held
    assert held.parameters == held.reference == params, "float32 is copied as float32"
    assert 2 * params < held.optimizer < 2 * params + 64, "two moments and counters"
    assert found["rl: sampling"].beside == held.optimizer + held.reference + compiled["rl: sampling"][0].held.batch
    assert found["rl: update"].beside == held.reference
    assert found["rl: update"].donated >= 3 * params
    for footprint in found.values():
        assert footprint.peak >= footprint.arguments + footprint.temporaries + footprint.beside


def test_device_bytes(mesh):
    def array(dtype, sharding):
        return jax.ShapeDtypeStruct((8, 4), dtype, sharding=sharding)

    halves = array(jnp.float32, named(mesh, "embed", "mlp"))
    assert device_bytes(halves) == 8 * 4 * 4 // 4
    assert device_bytes([halves, array(jnp.bfloat16, replicated(mesh))]) == 32 + 64


def test_work_of_loops_and_branches():
    a, b, start = jnp.ones((2, 3)), jnp.ones((3, 5)), jnp.zeros((2, 5))
    once = 2 * 2 * 3 * 5

    def flops(function):
        return matmul_flops(jax.make_jaxpr(function)(a, b), longest=11)

    def scanned(a, b):
        return jax.lax.scan(lambda x, _: (x + a @ b, None), start, None, length=7)

    def repeated(a, b):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x + a @ b, start)

    assert flops(lambda a, b: a @ b) == once
    assert flops(lambda a, b: jnp.einsum("mk,xkn->xmn", a, jnp.stack([b, b]))) == 2 * once
    assert flops(scanned) == 7 * once
    assert flops(repeated) == 11 * once
    outer = jax.make_jaxpr(
        lambda a, b: jax.lax.fori_loop(0, a[0, 0].astype(int), lambda i, x: x + repeated(a, b), start)
    )
    assert (
        matmul_flops(outer(a, b), longest=(3, 11)) == 33 * once and matmul_flops(outer(a, b), longest=11) == 121 * once
    )
    assert flops(lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: a @ b + a @ b)) == 2 * once
    assert flops(jax.jit(jax.grad(lambda a, b: jnp.sum((a @ b) ** 2), argnums=(0, 1)))) == 3 * once
    assert flops(lambda a, b: jax.lax.ragged_dot(a, jnp.stack([b, b]), jnp.array([1, 1]))) == once


def test_work_written_for_one_device_counts_on_all(mesh):
    rows, whole = named(mesh, "batch").spec, replicated(mesh).spec
    local = jax.shard_map(lambda a, b: a @ b, mesh=mesh, in_specs=(rows, whole), out_specs=rows)
    jaxpr = jax.make_jaxpr(local)(jnp.ones((8, 3)), jnp.ones((3, 5)))
    assert matmul_flops(jaxpr, longest=1) == 2 * 2 * 3 * 5 * mesh.size, "2 rows, on each of 8 devices"


def test_work_of_the_programs(compiled):
    """Matrix products by hand, on each of 8 devices; attention over all the keys that are there."""
    c = decoder().config
    D, L, N, H, F, V = c.hidden_size, c.num_layers, c.num_heads, c.head_dim, c.mlp_size, c.vocab_size

    def layers(tokens, keys):
        return 2 * tokens * L * (4 * D * N * H + 3 * D * F + 2 * N * H * keys)

    def head(tokens):
        return 2 * tokens * D * V

    prompt, forward = layers(P * TP, TP), layers(P * G * TC, TP + TC) + head(P * G * TC)
    decode = TC * (layers(P * G, TP + TC) + head(P * G))
    found = takes(compiled)
    assert found["rl: sampling"].flops == (prompt + decode) / 8
    assert found["rl: reference log-probabilities"].flops == (prompt + forward) / 8
    # Backward is twice forward, and computes the logits once more.
    assert found["rl: update"].flops == (3 * (prompt + forward) + head(P * G * TC)) / 8
    # The compiler takes the body of a loop once.
    assert 0 < found["rl: update"].compiler_flops < found["rl: update"].flops


def test_lanes_with_several_prompts_are_no_more_work(compiled, config, mesh):
    """Two loops in place of one: as many rows times steps as with all rows at once."""
    few = dataclasses.replace(config, rl=dataclasses.replace(config.rl, decode_rows=4))
    found = phases(open_plant(few, decoder().config, mesh))
    phase = next(phase for phase in found if phase.name == "rl: sampling")
    with quick_compilation():
        found = phase.compile().footprint(phase.beside)
    assert found.flops == takes(compiled)["rl: sampling"].flops


def test_a_mesh_that_does_not_divide_is_refused(config):
    with pytest.raises(ShardingError, match="cannot be split"):
        open_plant(config, decoder().config, mesh_of(data=1, fsdp=1, tensor=8))


def test_what_the_tpu_compiler_says_of_a_program_that_is_too_large():
    early = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (50.45G) exceeds"
    )
    late = "Ran out of memory in memory space hbm. Used 16.14G of 15.75G hbm. Exceeded hbm capacity by 398.79M."
    assert too_large(early, arguments=7) == int(50.45 * 2**30)
    assert too_large(late, arguments=2**30) == int(16.14 * 2**30) - 2**30
    assert too_large("INTERNAL: something else", arguments=7) is None
