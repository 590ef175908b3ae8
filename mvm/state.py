"""The training state: one nested dict of arrays, and how it is born."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from mvm.types import Params

State = dict[str, Any]
"""`step` int32, `params`, `opt`, `key` uint32 (raw PRNG key) and, if averaged, `ema`."""


def create(
    init: Callable[[Array], Params],
    optimizer: optax.GradientTransformation,
    seed: int,
    ema: bool = False,
) -> State:
    """A state at step 0. Pure, so that `jax.jit` can let it be born sharded."""
    init_key, step_key = jax.random.split(jax.random.key(seed))
    params = init(init_key)
    state = {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "opt": optimizer.init(params),
        "key": jax.random.key_data(step_key),
    }
    if ema:
        state["ema"] = jax.tree.map(jnp.copy, params)
    return state


def merge(params: Params, loaded: Params) -> Params:
    """`params` with the leaves of the nested subset `loaded` put in, in their place and dtype."""
    out = dict(params)
    for name, value in loaded.items():
        if isinstance(value, dict):
            out[name] = merge(params[name], value)
        else:
            like = params[name]
            out[name] = jax.device_put(jnp.asarray(value, like.dtype), like.sharding)
    return out


def count(params: Params) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
