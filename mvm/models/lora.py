"""Low-rank adaptation (LoRA, arXiv 2106.09685): x W + scale * x A B, of which W is frozen.

A is "down" and B is "up", beside the matrices of attention in every block of an encoder. Whatever
leaves a run has them added to W (`merged`): files and other runs hold plain weights.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from mvm.models.compute import Run
from mvm.types import Params

_SUFFIX = "_lora"
_ADAPTED = tuple(f"encoder/blocks/attention/{name}" for name in ("qkv", "proj"))


class LowRank(nnx.Module):
    """scale * x A B, the scale being alpha / rank; B starts at zero, and with it the sum."""

    def __init__(
        self, fan_in: int, fan_out: int, rank: int, scale: float, run: Run, *, rngs: nnx.Rngs
    ):
        # As the paper's code: uniform in +-1/sqrt(fan_in).
        init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        zeros = nnx.initializers.zeros
        self.scale, same = scale, {"use_bias": False, "dtype": run.dtype, "rngs": rngs}
        self.down = nnx.Linear(fan_in, rank, kernel_init=init, **same)
        self.up = nnx.Linear(rank, fan_out, kernel_init=zeros, **same)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... E"]:
        return self.up(self.down(x)) * self.scale


def is_low_rank(path: str) -> bool:
    """Whether a leaf is an A or a B."""
    return f"{_SUFFIX}/" in path


def without(params: Params) -> Params:
    """The plain weights: no A, no B."""
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({k: v for k, v in flat.items() if not is_low_rank(k)}, sep="/")


def beside(like: Params, rank: int) -> Params:
    """Shapes of a model, and those of A and B beside every matrix that is adapted."""
    flat = flatten_dict(like, sep="/")
    for name in _ADAPTED:
        if (kernel := flat.get(f"{name}/kernel")) is not None:
            depth, fan_in, fan_out = kernel.shape
            for part, shape in (("down", (fan_in, rank)), ("up", (rank, fan_out))):
                leaf = jax.ShapeDtypeStruct((depth, *shape), jnp.float32)
                flat[f"{name}{_SUFFIX}/{part}/kernel"] = leaf
    return unflatten_dict(flat, sep="/")


def merged(params: Params, scale: float) -> Params:
    """Plain weights of the same function: W + scale * A B, in float32 and NumPy's memory."""
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    for name in _ADAPTED:
        down, up = (flat.get(f"{name}{_SUFFIX}/{part}/kernel") for part in ("down", "up"))
        if down is not None and up is not None:
            kernel = flat[f"{name}/kernel"].astype(np.float32)
            flat[f"{name}/kernel"] = kernel + np.float32(scale) * (down @ up)
    return without(unflatten_dict(flat, sep="/"))
