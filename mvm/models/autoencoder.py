"""The masked video autoencoder (VideoMAE, arXiv 2203.12602, and those that followed)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, Shaped

from mvm.models import compute, tubelets, vit
from mvm.models.encoder import OWN, Encoder, Layout
from mvm.types import Grid, Mask, Strategy


class Decoder(nnx.Module):
    """Transformer over visible tokens and mask tokens; the last block serves the targets only."""

    def __init__(
        self,
        size: vit.Size,
        pixels: int,
        run: vit.Run,
        *,
        layout: Layout = Layout(),
        epsilon: float = 1e-6,
        rngs: nnx.Rngs,
    ):
        self.run = run
        deep = size.depth > 1
        self.blocks = vit.stack(size.depth - 1, size, "xavier", run, rngs) if deep else None
        self.last = vit.Block(size, "xavier", run, rngs=rngs)
        self.norm = vit.norm(size.width, epsilon=epsilon, dtype=run.dtype, rngs=rngs)
        self.head = vit.linear(size.width, pixels, "xavier", run, rngs=rngs)
        self.positions = layout.positions(size.width, rngs)

    def __call__(self, x: Float[Array, "B K D"], num_target: int) -> Float[Array, "B M P"]:
        """Predicts the tubelets of the last `num_target` tokens."""
        if self.blocks is not None:
            x = vit.apply_stack(self.blocks, x, self.run)
        last = compute.rematerialise(
            lambda block, x: block(x, num_queries=num_target), self.run, scanned=False
        )
        return self.head(self.norm(last(self.last, x)))


class Reconstruction(NamedTuple):
    """A forward pass of the autoencoder."""

    predicted: Float[Array, "B M P"]
    target: Float[Array, "B M P"]
    mask: Mask
    log_p: Float[Array, "B N"] | None
    """Of the sampler, where there is one."""


class Autoencoder(nnx.Module):
    """Encodes the visible tubelets and predicts the pixels of the targets.

    `head_epsilon` is that of the LayerNorm before the decoder's head; `sampler(rngs=rngs)` makes a
    network that scores tokens for the mask, if it needs one.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: vit.Size,
        *,
        targets: tubelets.Targets = tubelets.Targets(),
        head_epsilon: float = 1e-6,
        sampler: Callable[..., nnx.Module] | None = None,
        rngs: nnx.Rngs,
    ):
        self.encoder, self.targets = encoder, targets
        run, tubelet = encoder.run, encoder.tubelet
        self.encoder_to_decoder = vit.linear(
            encoder.size.width, decoder.width, "torch", run, use_bias=False, rngs=rngs
        )
        # One standard deviation is where the released code cuts the normal distribution.
        cut = jax.random.truncated_normal(rngs.params(), -1.0, 1.0, (decoder.width,))
        self.mask_token = nnx.Param(0.02 * cut)
        predicted = tubelet.pixels // tubelet.t * (targets.frames or tubelet.t)
        self.decoder = Decoder(
            decoder, predicted, run, layout=encoder.layout, epsilon=head_epsilon, rngs=rngs
        )
        self.sampler = sampler(rngs=rngs) if sampler else None

    def __call__(
        self,
        key: Key[Array, ""],
        video: Shaped[Array, "B T H W 3"],
        strategy: Strategy,
        train: bool = True,
    ) -> Reconstruction:
        """Draws a mask and reconstructs its targets; the video is bytes or floats in [0, 1].

        Without `train` the most eventful frames are kept and the sampler has no dropout.
        """
        frames_key, drop_key = (
            jax.random.split(jax.random.fold_in(key, OWN)) if train else (None, None)
        )
        pixels, grid = self.encoder.split(video, frames_key)
        log_p = self.score(drop_key, pixels)
        mask = self.encoder.select(key, pixels, grid, strategy, log_p)
        target = tubelets.gather(pixels, mask.target)
        target = tubelets.targets(target, self.targets, mask.target, grid, self.encoder.tubelet)
        return Reconstruction(self.reconstruct(pixels, grid, mask), target, mask, log_p)

    def score(
        self, key: Key[Array, ""] | None, pixels: Shaped[Array, "B N P"]
    ) -> Float[Array, "B N"] | None:
        """The sampler's log-probabilities, float32, if there is one."""
        return None if self.sampler is None else self.sampler(self.encoder.tokens(pixels), key)

    def reconstruct(
        self, pixels: Shaped[Array, "B N P"], grid: Grid, mask: Mask
    ) -> Float[Array, "B M P"]:
        """Predictions for the targets of a given mask, float32."""
        x = self.encoder(tubelets.gather(pixels, mask.visible), mask.visible, grid)
        x = self.decoder.positions(self.encoder_to_decoder(x), grid, mask.visible)
        hidden = jnp.broadcast_to(self.mask_token[...], (*mask.target.shape, x.shape[-1]))
        hidden = self.decoder.positions(hidden.astype(x.dtype), grid, mask.target)
        x = self.decoder(jnp.concatenate([x, hidden], axis=1), mask.target.shape[1])
        return x.astype(jnp.float32)
