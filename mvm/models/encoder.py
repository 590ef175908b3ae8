"""The encoder that pre-training and fine-tuning share: embed the visible tubelets, attend."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, Shaped

from mvm import tubelets
from mvm.models import positions, vit
from mvm.types import Grid, Mask, Strategy


def add_positions(x: Float[Array, "B K D"], grid: Grid, index: Array) -> Float[Array, "B K D"]:
    """Adds the sinusoid of each token's own index in the grid."""
    table = jnp.asarray(positions.sinusoid(grid.n, x.shape[-1]))
    return x + table[index].astype(x.dtype)


class Encoder(nnx.Module):
    """Patch embedding and transformer blocks.

    Args:
        size: width, depth, heads.
        pixels: P, length of a flattened tubelet.
        init: weights of the blocks, see `vit.linear`.
        final_norm: whether a LayerNorm ends the encoder, as in pre-training.
        drop_rate: drop-path rate of the last block.
    """

    def __init__(
        self,
        size: vit.Size,
        pixels: int,
        init: str,
        run: vit.Run,
        *,
        final_norm: bool,
        drop_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.run, self.drop_rate = run, drop_rate
        self.embed = vit.linear(pixels, size.width, "torch", run, rngs=rngs)
        self.blocks = vit.stack(size.depth, size, init, run, rngs)
        self.norm = vit.norm(size.width, dtype=run.dtype, rngs=rngs) if final_norm else None

    def select(
        self, key: Key[Array, ""], pixels: Shaped[Array, "B N P"], grid: Grid, strategy: Strategy
    ) -> Mask:
        """Draws the mask; embeds all tubelets only for a strategy that looks at their tokens.

        Those embeddings serve the choice alone and stay out of the backward pass. They are summed
        and kept in float32 whatever the compute dtype, so that slow motion is not rounded away.
        """
        if not strategy.needs_tokens:
            return strategy.sample(key, pixels, grid)
        return strategy.sample(key, jax.lax.stop_gradient(self.tokens(pixels)), grid)

    def tokens(self, pixels: Shaped[Array, "B N P"]) -> Float[Array, "B N D"]:
        """Patch embeddings without positions, float32."""
        kernel, bias = self.embed.kernel[...], self.embed.bias[...]  # type: ignore[index]
        x = tubelets.standardise(pixels).astype(self.run.dtype)
        x = jnp.matmul(x, kernel.astype(self.run.dtype), preferred_element_type=jnp.float32)
        return x + bias

    def __call__(
        self,
        pixels: Shaped[Array, "B V P"],
        index: Array,
        grid: Grid,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B V D"]:
        """Encodes visible tubelets.

        Args:
            pixels: flattened tubelets, bytes or floats in [0, 1].
            index: their token indices, `[B, V]`, or `[V]` for the same in every clip.
            grid: the grid the indices refer to.
            key: for drop path; None switches it off.
        """
        x = add_positions(self.embed(tubelets.standardise(pixels)), grid, index)
        x = vit.apply_stack(self.blocks, x, self.run, self.drop_rate, key)
        return x if self.norm is None else self.norm(x)
