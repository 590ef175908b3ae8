"""The masked video autoencoder (VideoMAE, arXiv 2203.12602; EVEREST, arXiv 2211.10636)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, Shaped

from mvm import tubelets
from mvm.models import vit
from mvm.models.encoder import Encoder, add_positions
from mvm.types import Grid, Mask, Strategy, Tubelet


class Decoder(nnx.Module):
    """Transformer over visible tokens and mask tokens; the last block serves the targets only."""

    def __init__(self, size: vit.Size, pixels: int, run: vit.Run, *, rngs: nnx.Rngs):
        self.run = run
        deep = size.depth > 1
        self.blocks = vit.stack(size.depth - 1, size, "xavier", run, rngs) if deep else None
        self.last = vit.Block(size, "xavier", run, rngs=rngs)
        self.norm = vit.norm(size.width, dtype=run.dtype, rngs=rngs)
        self.head = vit.linear(size.width, pixels, "xavier", run, rngs=rngs)

    def __call__(self, x: Float[Array, "B K D"], num_target: int) -> Float[Array, "B M P"]:
        """Predicts the tubelets of the last `num_target` tokens."""
        if self.blocks is not None:
            x = vit.apply_stack(self.blocks, x, self.run)
        last = vit.rematerialise(
            lambda block, x: self.run.gather(block)(x, num_queries=num_target), self.run.remat
        )
        return self.head(self.norm(last(self.last, x)))


class Reconstruction(NamedTuple):
    """What a forward pass of the autoencoder yields."""

    predicted: Float[Array, "B M P"]
    target: Float[Array, "B M P"]
    mask: Mask


class Autoencoder(nnx.Module):
    """Encodes the visible tubelets and predicts the pixels of the targets.

    Args:
        encoder: size of the encoder.
        decoder: size of the decoder.
        tubelet: size of one token's pixel block.
        run: how to compute.
        normalise: whether targets are normalised tubelet by tubelet.
        rngs: for the initial weights.
    """

    def __init__(
        self,
        encoder: vit.Size,
        decoder: vit.Size,
        tubelet: Tubelet,
        run: vit.Run,
        *,
        normalise: bool = True,
        rngs: nnx.Rngs,
    ):
        self.tubelet, self.normalise = tubelet, normalise
        self.encoder = Encoder(encoder, tubelet.pixels, "xavier", run, final_norm=True, rngs=rngs)
        self.encoder_to_decoder = vit.linear(
            encoder.width, decoder.width, "torch", run, use_bias=False, rngs=rngs
        )
        # One standard deviation is where the released code cuts the normal distribution.
        cut = jax.random.truncated_normal(rngs.params(), -1.0, 1.0, (decoder.width,))
        self.mask_token = nnx.Param(0.02 * cut)
        self.decoder = Decoder(decoder, tubelet.pixels, run, rngs=rngs)

    def __call__(
        self, key: Key[Array, ""], video: Shaped[Array, "B T H W 3"], strategy: Strategy
    ) -> Reconstruction:
        """Draws a mask and reconstructs its targets.

        Args:
            key: for the mask.
            video: clips, bytes or floats in [0, 1].
            strategy: the masking strategy, built for this clip's grid.
        """
        pixels, grid = tubelets.split(video, self.tubelet)
        mask = self.encoder.select(key, pixels, grid, strategy)
        target = tubelets.targets(tubelets.gather(pixels, mask.target), self.normalise)
        return Reconstruction(self.reconstruct(pixels, grid, mask), target, mask)

    def reconstruct(
        self, pixels: Shaped[Array, "B N P"], grid: Grid, mask: Mask
    ) -> Float[Array, "B M P"]:
        """Predictions for the targets of a given mask, float32."""
        x = self.encoder(tubelets.gather(pixels, mask.visible), mask.visible, grid)
        x = add_positions(self.encoder_to_decoder(x), grid, mask.visible)
        hidden = jnp.broadcast_to(self.mask_token[...], (*mask.target.shape, x.shape[-1]))
        hidden = add_positions(hidden.astype(x.dtype), grid, mask.target)
        x = self.decoder(jnp.concatenate([x, hidden], axis=1), mask.target.shape[1])
        return x.astype(jnp.float32)
