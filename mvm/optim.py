"""AdamW with the released schedules; every rule goes by the parameter's path."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from mvm.types import Params


class Schedule(NamedTuple):
    """Linear warm-up from 0 to `peak`, then half a cosine to `end`, step by step.

    Both ends of the warm-up belong to it, as in the released codes: the first update has rate 0,
    the peak occurs twice and `end` is approached but not reached.
    """

    peak: float
    end: float
    warmup_steps: int
    total_steps: int

    def __call__(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """Learning rate of the update that is number `step` (from 0), float32."""
        step = jnp.asarray(step, jnp.float32)
        warm = self.peak * step / max(self.warmup_steps - 1, 1)
        decay_steps = max(self.total_steps - self.warmup_steps, 1)
        phase = jnp.clip((step - self.warmup_steps) / decay_steps, 0.0, 1.0)
        cosine = self.end + 0.5 * (self.peak - self.end) * (1.0 + jnp.cos(math.pi * phase))
        return jnp.where(step < self.warmup_steps, warm, cosine)


def path_of(path: tuple[Any, ...]) -> str:
    """A leaf's name, such as "encoder/blocks/mlp/fc1/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def decays(path: str) -> bool:
    """Weight decay acts on matrices alone: not on biases, norms and the mask token.

    The positions of AdaMAE's sampler are decayed, too, as in its released code.
    """
    return path.endswith("kernel") or path == "sampler/positions"


def layer_rate(path: str, leaf: Any, decay: float, depth: int) -> Float[Array, "..."] | float:
    """Factor on a leaf's learning rate in layer-wise decay.

    decay^(depth + 1) for the patch embedding and learned positions, decay^(depth - k) for block k
    (from 0), 1 for everything after the blocks. Stacked blocks get one factor per layer,
    `[L, 1, ...]`.
    """
    if path.startswith(("encoder/embed", "encoder/positions")):
        return decay ** (depth + 1)
    if path.startswith("encoder/blocks"):
        factors = jnp.float32(decay) ** (depth - jnp.arange(depth))
        return factors.reshape(-1, *(1,) * (leaf.ndim - 1))
    return 1.0


def adamw(
    schedule: Schedule,
    *,
    b2: float,
    weight_decay: float,
    clip_norm: float = 0.0,
    layer_decay: float = 1.0,
    depth: int = 0,
) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) as PyTorch computes it, b1 0.9, eps 1e-8.

    A `clip_norm` of 0 and a `layer_decay` of 1 (`layer_rate`) are off.
    """

    def decay_mask(params: Params) -> Params:
        return jax.tree_util.tree_map_with_path(lambda path, _: decays(path_of(path)), params)

    def by_layer(updates: Params, params: Params | None = None) -> Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, u: u * layer_rate(path_of(path), u, layer_decay, depth), updates
        )

    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.scale_by_adam(b1=0.9, b2=b2, eps=1e-8),
        optax.add_decayed_weights(weight_decay, decay_mask),
        optax.stateless(by_layer) if layer_decay != 1.0 else optax.identity(),
        optax.scale_by_learning_rate(schedule),
    )
