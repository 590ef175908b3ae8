"""The encoder that pre-training and fine-tuning share: embed the visible tubelets, attend."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, Shaped

from mvm.models import tubelets, vit
from mvm.models.positions import Positions
from mvm.types import Grid, Mask, Strategy, Tubelet, UserError

OWN = 2**32 - 2
"""Folded into the step's key for the model's own stream; masks fold in row numbers, below B."""

Frames = Callable[[Array | None, Array, Grid], Array]
"""Frame selection: `(key, tokens [B, N, D], grid) -> ascending slots [B, S]`."""


class Layout(NamedTuple):
    """Which slots of time are kept, and how tokens know where they are."""

    trained: Grid | None = None
    """The grid that positions are interpolated from; None builds the table for a clip's own."""
    kind: str = "sinusoid"
    """Of positions; learned ones are so on that grid."""
    frames: Frames | None = None
    """Frame selection; None keeps all slots."""

    def positions(self, width: int, rngs: nnx.Rngs) -> Positions:
        return Positions(width, self.trained, self.kind, rngs=rngs)


class Encoder(nnx.Module):
    """Patch embedding and transformer blocks, at whose end pre-training has a LayerNorm.

    `init` is that of `vit.linear`, `drop_rate` the drop-path rate of the last block.
    """

    def __init__(
        self,
        size: vit.Size,
        tubelet: Tubelet,
        init: str,
        run: vit.Run,
        *,
        final_norm: bool = False,
        drop_rate: float = 0.0,
        layout: Layout = Layout(),
        rngs: nnx.Rngs,
    ):
        self.size, self.tubelet, self.run = size, tubelet, run
        self.drop_rate, self.layout = drop_rate, layout
        self.embed = vit.linear(tubelet.pixels, size.width, "torch", run, rngs=rngs)
        self.blocks = vit.stack(size.depth, size, init, run, rngs)
        make_norm = partial(vit.norm, epsilon=size.epsilon, dtype=run.dtype)
        self.norm = make_norm(size.width, rngs=rngs) if final_norm else None
        self.positions = layout.positions(size.width, rngs)

    def split(
        self, video: Shaped[Array, "B T H W 3"], key: Key[Array, ""] | None = None
    ) -> tuple[Shaped[Array, "B N P"], Grid]:
        """Flattened tubelets, of the slots that frame selection keeps where there is one.

        `key` is for that choice; without it the most eventful are kept.
        """
        pixels, grid = tubelets.split(video, self.tubelet)
        if self.layout.frames is None:
            return pixels, grid
        slots = self.slots(video, key)
        kept = Grid(slots.shape[1], grid.h, grid.w)
        index = slots[:, :, None] * (grid.h * grid.w) + jnp.arange(grid.h * grid.w)
        return tubelets.gather(pixels, index.reshape(-1, kept.n)), kept

    def slots(
        self, video: Shaped[Array, "B T H W 3"], key: Key[Array, ""] | None = None
    ) -> Int[Array, "B S"]:
        """The slots of time that `split` keeps, ascending."""
        pixels, grid = tubelets.split(video, self.tubelet)
        if self.layout.frames is None:
            return jnp.broadcast_to(jnp.arange(grid.t), (len(video), grid.t))
        return self.layout.frames(key, jax.lax.stop_gradient(self.tokens(pixels)), grid)

    def select(
        self,
        key: Key[Array, ""],
        pixels: Shaped[Array, "B N P"],
        grid: Grid,
        strategy: Strategy,
        scores: Float[Array, "B N"] | None = None,
    ) -> Mask:
        """Draws the mask; embeds all tubelets only for a strategy that looks at their tokens.

        Those embeddings serve the choice alone and stay out of the backward pass. They are summed
        and kept in float32 whatever the compute dtype, so that slow motion is not rounded away.
        With a sampler's `scores` no tokens are needed. The strategy is applied to this grid,
        whichever it was built for.
        """
        strategy = dataclasses.replace(strategy, grid=grid)
        if strategy.needs_pixels:
            pixels = tubelets.join(tubelets.unit(pixels), grid, self.tubelet)
        if strategy.needs_tokens and scores is None and not strategy.needs_pixels:
            pixels = jax.lax.stop_gradient(self.tokens(pixels))
        mask = strategy.sample(key, pixels, scores)
        if (drawn := (mask.visible.shape[1], mask.target.shape[1])) != strategy.counts():
            said = f"its counts are {strategy.counts()}, but it draws {drawn}"
            raise UserError(f"mask {strategy.name!r}: {said} visible and target tokens; mend it")
        return mask

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
        """Encodes visible tubelets, bytes or floats in [0, 1]; without a key no path is dropped.

        `index` of their tokens is `[B, V]`, or `[V]` for the same in every clip.
        """
        x = self.positions(self.embed(tubelets.standardise(pixels)), grid, index)
        x = vit.apply_stack(self.blocks, x, self.run, self.drop_rate, key)
        return x if self.norm is None else self.norm(x)

    def whole(
        self, video: Shaped[Array, "B T H W 3"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "B t h w D"]:
        """All tokens of the kept frames, whatever the strategy, float32; `key` is for drop path."""
        pixels, grid = self.split(video)
        tokens = self(pixels, jnp.arange(grid.n), grid, key).astype(jnp.float32)
        return tokens.reshape(len(video), *grid, -1)
