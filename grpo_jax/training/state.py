"""The train state, created sharded: parameters keep their layout and the optimizer's moments take it over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from grpo_jax.sharding import replicated, run_key
from grpo_jax.types import TrainState


def abstract_state(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of the state for these parameters (arrays or ShapeDtypeStructs with shardings).

    What the optimizer keeps for a parameter lies as the parameter lies; its counters lie on every device.
    """
    whole = replicated(mesh)
    shape = jax.eval_shape(optimizer.init, params)
    opt_state = optax.tree_map_params(
        optimizer,
        lambda leaf, param: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=param.sharding),
        shape,
        params,
        transform_non_params=lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
    )
    key = jax.eval_shape(lambda: run_key(0))
    return TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32, sharding=whole),
        params=jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding), params),
        opt_state=opt_state,
        key=jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole),
    )


def state_shardings(abstract: Any) -> Any:
    """The shardings of an abstract tree, for `out_shardings`."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def abstract_copy(function: Callable[[Any], Any], abstract_params: Any) -> Any:
    """Shapes and types of `function(params)`, a tree like the parameters (or empty), lying as the parameters lie."""
    result = jax.eval_shape(function, abstract_params)
    if not jax.tree.leaves(result):
        return result
    return jax.tree.map(
        lambda leaf, param: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=param.sharding),
        result,
        abstract_params,
    )


def create_state(params: Any, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh) -> TrainState:
    """A state at step 0 round these parameters (which it shares, not copies)."""
    shardings = state_shardings(abstract_state(params, optimizer, mesh))
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
    start = jax.jit(lambda: (jnp.int32(0), run_key(seed)), out_shardings=(shardings.step, shardings.key))
    step, key = start()
    return TrainState(step, params, opt_state, key)
