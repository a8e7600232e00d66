"""Programs compiled ahead of time: the bytes are those of the layout, the work is counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from grpo_jax.algorithms import grpo
from grpo_jax.config import OptimizerConfig, RLConfig, SamplingConfig
from grpo_jax.models.parameters import abstract_params
from grpo_jax.sharding import ShardingError, named, replicated
from grpo_jax.stages.ahead import abstract_prompts, compile_rl, device_bytes, matmul_flops
from grpo_jax.training.optimizer import make_optimizer
from grpo_jax.training.state import abstract_state
from tests.tiny import decoder, mesh_of, sampling

P, G, TP, TC = 8, 4, 6, 8
CONFIG = RLConfig(
    source=None,
    algorithm=None,
    rewards=(),
    prompts_per_step=P,
    num_generations=G,
    microbatches=2,
    head_chunk=4,
    sampling=SamplingConfig(max_completion_length=TC),
)


def step(mesh):
    algorithm = grpo.build(grpo.Config())
    return compile_rl(decoder(), CONFIG, sampling(G, TC), algorithm, mesh, max_prompt_length=TP)


@pytest.fixture(scope="module")
def mesh():
    return mesh_of(data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def compiled(mesh):
    return step(mesh)


def test_each_result_is_laid_out_as_the_next_program_takes_it(compiled, mesh):
    rollout = compiled.programs["sample"].results
    assert rollout.completions.tokens.shape == (P * G, TC)
    assert rollout.completions.tokens.sharding.is_equivalent_to(named(mesh, "batch"), 2)
    params = abstract_params(decoder().config, mesh)
    state = abstract_state(params, make_optimizer(OptimizerConfig(), 1), mesh)
    after, metrics = compiled.programs["update"].results
    assert jax.tree.structure(after) == jax.tree.structure(state)
    same = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), after, state)
    assert all(jax.tree.leaves(same))
    assert all(m.sharding.is_fully_replicated for m in metrics.values())


def test_bytes(compiled, mesh):
    params = abstract_params(decoder().config, mesh)
    takes = compiled.footprints
    prompts = abstract_prompts(P, TP, mesh)
    key = 8  # two words
    assert takes["sample"].arguments == device_bytes((params, prompts)) + key + 4
    assert takes["sample"].beside > 2 * device_bytes(params)  # two moments, and the reference
    assert takes["update"].donated >= 3 * device_bytes(params)
    for footprint in takes.values():
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
    assert flops(lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: a @ b + a @ b)) == 2 * once
    assert flops(jax.jit(jax.grad(lambda a, b: jnp.sum((a @ b) ** 2), argnums=(0, 1)))) == 3 * once


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
    takes = compiled.footprints
    assert takes["sample"].flops == (prompt + decode) / 8
    assert takes["logprobs"].flops == (prompt + forward) / 8
    # Backward is twice forward, and computes the logits once more.
    assert takes["update"].flops == (3 * (prompt + forward) + head(P * G * TC)) / 8
    assert 0 < takes["update"].compiler_flops < takes["update"].flops  # it takes the body of a loop once


def test_a_mesh_that_does_not_divide_is_refused():
    with pytest.raises(ShardingError, match="cannot be split"):
        step(mesh_of(data=1, fsdp=1, tensor=8))
