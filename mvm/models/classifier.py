"""The video classifier of fine-tuning: encoder, mean over tokens, norm, linear head."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, Shaped

from mvm import tubelets
from mvm.models import vit
from mvm.models.encoder import Encoder
from mvm.types import Strategy, Tubelet


class Classifier(nnx.Module):
    """Classifies clips from all their tokens, or from those a strategy selects.

    Args:
        size: size of the encoder.
        num_classes: C.
        tubelet: size of one token's pixel block.
        run: how to compute.
        drop_path: drop-path rate of the last block.
        head_dropout: dropout rate before the head.
        head_scale: factor on the head's initial weights (0.001 in the released code).
        rngs: for the initial weights.
    """

    def __init__(
        self,
        size: vit.Size,
        num_classes: int,
        tubelet: Tubelet,
        run: vit.Run,
        *,
        drop_path: float = 0.0,
        head_dropout: float = 0.0,
        head_scale: float = 0.001,
        rngs: nnx.Rngs,
    ):
        self.tubelet, self.head_dropout = tubelet, head_dropout
        self.encoder = Encoder(
            size, tubelet.pixels, "normal", run, final_norm=False, drop_rate=drop_path, rngs=rngs
        )
        self.fc_norm = vit.norm(size.width, rngs=rngs)
        self.head = vit.linear(size.width, num_classes, "normal", vit.Run(), rngs=rngs)
        self.head.kernel[...] = self.head.kernel[...] * head_scale

    def __call__(
        self,
        video: Shaped[Array, "B T H W 3"],
        strategy: Strategy | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B C"]:
        """Logits, float32.

        Args:
            video: clips, bytes or floats in [0, 1].
            strategy: selects the tokens to look at; None looks at all.
            key: for drop path and dropout; None switches both off. A strategy draws from it too,
                or from a fixed key without it, so evaluation is deterministic.
        """
        pixels, grid = tubelets.split(video, self.tubelet)
        select_key, path_key, dropout_key = (
            (jax.random.key(0), None, None) if key is None else jax.random.split(key, 3)
        )
        index = jnp.arange(grid.n)
        if strategy is not None:
            index = self.encoder.select(select_key, pixels, grid, strategy).visible
            pixels = tubelets.gather(pixels, index)
        x = self.encoder(pixels, index, grid, path_key).astype(jnp.float32).mean(axis=1)
        x = self.fc_norm(x)
        if dropout_key is not None and self.head_dropout:
            keep = jax.random.bernoulli(dropout_key, 1 - self.head_dropout, x.shape)
            x = jnp.where(keep, x / (1 - self.head_dropout), 0.0)
        return self.head(x)
