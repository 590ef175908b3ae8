"""The video classifier of fine-tuning: encoder, mean over tokens, norm, linear head."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, Shaped

from mvm.models import tubelets, vit
from mvm.models.encoder import OWN, Encoder
from mvm.types import Strategy


class Classifier(nnx.Module):
    """Classifies clips from all their tokens, or from those a strategy selects.

    `head_scale` is a factor on the head's initial weights (0.001 in the released code). A LayerNorm
    of `head_epsilon` follows the mean over tokens if `fc_norm`; a pooler stands for both.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        *,
        head_dropout: float = 0.0,
        head_scale: float = 0.001,
        head_epsilon: float = 1e-6,
        fc_norm: bool = True,
        pooler: nnx.Module | None = None,
        rngs: nnx.Rngs,
    ):
        self.encoder, self.head_dropout, self.pooler = encoder, head_dropout, pooler
        width = encoder.size.width
        self.fc_norm = vit.norm(width, epsilon=head_epsilon, rngs=rngs) if fc_norm else None
        self.head = vit.linear(width, num_classes, "normal", vit.Run(), rngs=rngs)
        self.head.kernel[...] = self.head.kernel[...] * head_scale

    def __call__(
        self,
        video: Shaped[Array, "B T H W 3"],
        strategy: Strategy | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B C"]:
        """Logits, float32, of bytes or floats in [0, 1].

        Without a key nothing is dropped, the most eventful frames are kept, and the strategy draws
        from a fixed key: evaluation is deterministic.
        """
        return self.logits(self.pool(self.features(video, strategy, key)), key)

    def logits(
        self, pooled: Float[Array, "B D"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "B C"]:
        """What the head makes of what `pool` gives."""
        dropout_key = None if key is None else jax.random.split(key, 3)[2]
        return self.head(vit.dropout(pooled, self.head_dropout, dropout_key))

    def features(
        self,
        video: Shaped[Array, "B T H W 3"],
        strategy: Strategy | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B V D"]:
        """Tokens after the last block, float32."""
        select_key, path_key, frames_key = jax.random.key(0), None, None
        if key is not None:
            select_key, path_key, _ = jax.random.split(key, 3)
            frames_key = jax.random.fold_in(key, OWN)
        pixels, grid = self.encoder.split(video, frames_key)
        index = jnp.arange(grid.n)
        if strategy is not None:
            index = self.encoder.select(select_key, pixels, grid, strategy).visible
            pixels = tubelets.gather(pixels, index)
        return self.encoder(pixels, index, grid, path_key).astype(jnp.float32)

    def pool(self, tokens: Float[Array, "B V D"]) -> Float[Array, "B D"]:
        """The head's input: the mean over tokens, normalised, or what the pooler makes of them."""
        if self.pooler is not None:
            return self.pooler(tokens)
        mean = tokens.mean(axis=1)
        return mean if self.fc_norm is None else self.fc_norm(mean)
