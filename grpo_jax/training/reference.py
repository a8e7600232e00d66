"""The reference of the KL penalty, where it is more than a copy of the policy of some time ago."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def mixed(reference: Any, params: Any, *, alpha: float) -> Any:
    """The reference on its way to the policy: `alpha * params + (1 - alpha) * reference`, leaf by leaf.

    Computed in float32, in the reference's type. Source: the soft update of TR-DPO, arXiv:2404.09656, and TRL's
    `sync_ref_model`. The reference is to be float32 as the policy is: in bfloat16, a small alpha would move nothing.
    """

    def mix(old: jax.Array, new: jax.Array) -> jax.Array:
        mean = alpha * new.astype(jnp.float32) + (1.0 - alpha) * old.astype(jnp.float32)
        return mean.astype(old.dtype)

    return jax.tree.map(mix, reference, params)
