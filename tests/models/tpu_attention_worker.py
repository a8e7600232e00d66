"""Compiles attention of one layer for a v5e-8 and writes what the compiler says: tpu_attention_worker.py FILE."""

import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from grpo_jax.config import MeshConfig
from grpo_jax.models.attention import KERNELS
from grpo_jax.models.ops import KeyValues, attend
from grpo_jax.sharding import make_mesh, named
from grpo_jax.stages.ahead import compile_ahead
from grpo_jax.stages.targets import tpu_target

G, T, TP, N, K, H = 64, 1024, 512, 14, 2, 64  # completions of one prompt on each device, heads of a 0.5B model


def arguments(mesh, *, G, T, Tp, N, K, H, keys=None, dtype=jnp.bfloat16):
    """Queries, and the blocks of a prompt and of the completions (with `keys` slots each), in abstract form."""

    def array(*shape, dtype=jnp.int32, axes=("batch",)):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=named(mesh, *axes))

    def block(rows, time):
        values = array(rows, K, time, H, dtype=dtype, axes=("batch", "kv_heads"))
        return KeyValues(values, values, array(rows, time), array(rows, time))

    P = mesh.size
    q = array(P * G, T, N, H, dtype=dtype, axes=("batch", None, "heads"))
    return q, array(P * G, T), array(P * G, T), [block(P, Tp), block(P * G, keys or T)]


def with_gradients(kernel, q, positions, segments, blocks):
    """The result, and its gradients by queries, keys and values for a result of the same."""

    def attended(q, values):
        seen = [block.replace(k=k, v=v) for block, (k, v) in zip(blocks, values, strict=True)]
        return kernel(q, positions, segments, seen)

    out, back = jax.vjp(attended, q, [(block.k, block.v) for block in blocks])
    return out, back(out)


def takes(function, mesh, floor, **shape) -> dict:
    ahead = compile_ahead(jax.jit(function), *arguments(mesh, **shape), mesh=mesh)
    footprint = ahead.footprint()
    cost = ahead.compiled.cost_analysis()
    return {
        "temporaries": footprint.temporaries,
        "bytes": cost["bytes accessed"],
        "floor": floor,
        "seconds": cost["optimal_seconds"],
    }


def main(file: str) -> None:
    mesh = make_mesh(MeshConfig(), tpu_target("v5e:2x4").devices)
    shape = {"G": G, "T": T, "Tp": TP, "N": N, "K": K, "H": H}
    once = 2 * (2 * G * T * N * H + 2 * K * H * (TP + G * T))  # queries, results, keys and values, in bytes
    result = {
        f"training, {name}": takes(partial(with_gradients, kernel), mesh, 3 * once, **shape)
        for name, kernel in KERNELS.items()
    }
    for width, dtype in ((80, jnp.bfloat16), (128, jnp.float32), (256, jnp.bfloat16)):
        other = {"G": 2, "T": 700, "Tp": 130, "N": 4, "K": 2, "H": width, "dtype": dtype}
        name = f"splash, heads of {width}, {dtype.__name__}, uneven lengths"
        result[name] = takes(partial(with_gradients, KERNELS["splash"]), mesh, 0, **other)
    # Of a 7B model. A cache that fits the chip's own memory is moved there and read again, and counts several times.
    one = 2 * (2 * G * 32 * 128 + 2 * 32 * 128 * (TP + G * T))
    result["decode, xla"] = takes(attend, mesh, one, **shape | {"T": 1, "keys": T, "N": 32, "K": 32, "H": 128})
    Path(file).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
