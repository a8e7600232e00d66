"""A tiny random policy and batches for it, for tests of sampling and training."""

import functools

import jax
import numpy as np

from grpo_jax.config import MeshConfig
from grpo_jax.models.decoder import Decoder, DecoderConfig
from grpo_jax.models.parameters import abstract_params, init_params
from grpo_jax.sampler.draw import Distribution
from grpo_jax.sampler.sample import Sampling, sample
from grpo_jax.sharding import host_to_global, make_mesh, named
from grpo_jax.types import Prompts, Sequences

EOS, PAD, V = 1, 0, 24


def decoder(**changes) -> Decoder:
    sizes = {"vocab_size": V, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4}
    return Decoder(DecoderConfig(**sizes | {"head_dim": 8, "mlp_size": 32} | changes))


def mesh_of(data=1, fsdp=1, tensor=1):
    count = data * fsdp * tensor
    return make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[:count])


@functools.cache
def host_params(seed=0, **changes):
    """Parameters with enough spread that the policy has opinions."""
    params = init_params(decoder(**changes).config, jax.random.key(seed), mesh_of())
    return jax.tree.map(lambda p: np.asarray(p) * (0.7 if p.ndim > 1 else 1.0), params)


def on_mesh(params, model, mesh):
    return jax.tree.map(lambda p, a: jax.device_put(p, a.sharding), params, abstract_params(model.config, mesh))


def prompts(P=4, Tp=6, seed=0, pad=0) -> Prompts:
    """Prompts of uneven lengths, left-padded to Tp + pad."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, Tp + 1, P)
    rows = [rng.integers(2, V, n) for n in lengths]
    tokens, segments = np.zeros((P, Tp + pad), np.int32), np.zeros((P, Tp + pad), np.int32)
    for p, row in enumerate(rows):
        tokens[p, Tp + pad - len(row) :], segments[p, Tp + pad - len(row) :] = row, 1
    positions = np.maximum(np.cumsum(segments, 1) - 1, 0)
    return Prompts(
        Sequences(*(x.astype(np.int32) for x in (tokens, positions, segments))),
        np.arange(P, dtype=np.int32) * 7 + 3,
    )


def sampling(G=4, Tc=8, **distribution) -> Sampling:
    return Sampling(Distribution(**distribution), G, Tc, (EOS,), PAD)


@functools.cache
def program(model, settings):
    """The compiled sampler; kept, so that a session compiles each once."""
    return jax.jit(lambda p, b, k: sample(model, p, b, k, sampling=settings))


def roll_out(model, params, batch, *, mesh=None, key=0, settings=None, **options):
    """A rollout under a mesh (default: one device)."""
    mesh = mesh or mesh_of()
    with jax.set_mesh(mesh):
        placed = host_to_global(batch, named(mesh, "batch"))
        run = program(model, settings or sampling(**options))
        return run(on_mesh(params, model, mesh), placed, jax.random.key(key))
