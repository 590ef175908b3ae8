"""Actions of people in a clip: RoIAlign over the encoder's tokens, max pool, linear head.

The detector of VideoMAE (arXiv 2203.12602) on AVA: boxes are given, it says what is done in them.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, Shaped

from mvm.models import vit
from mvm.models.encoder import Encoder

BINS = 7
"""Along each axis of a box."""


def _weights(
    first: Float[Array, "B K"], last: Float[Array, "B K"], cells: int, most: int
) -> Float[Array, "B K bins cells"]:
    """How much each cell of an axis adds to each bin: the mean over samples of the bin."""
    length, number = jnp.maximum(last - first, 1.0), jnp.arange(most)
    # ceil(length / bins) samples, counted without a division that may round up.
    used = length[..., None] > BINS * number
    count = jnp.maximum(used.sum(-1, keepdims=True), 1)
    inside = (number + 0.5) / count  # Of a bin.
    at = (jnp.arange(BINS)[:, None] + inside[..., None, :]) * (length / BINS)[..., None, None]
    at = first[..., None, None] + at
    used = used[..., None, :] & (at >= -1.0) & (at <= cells)
    at = jnp.clip(at, 0.0, cells - 1.0)
    near = jnp.maximum(1.0 - jnp.abs(at[..., None] - jnp.arange(cells)), 0.0)
    return (near * used[..., None]).sum(-2) / count[..., None]


def align(
    features: Float[Array, "B H W D"], boxes: Float[Array, "B K 4"], most: int = 0
) -> Float[Array, "B K 7 7 D"]:
    """RoIAlign (arXiv 1703.06870) of boxes (x1, y1, x2, y2) in cells, as torchvision computes it.

    Cell i has its centre at i (`aligned=False` there), boxes without area are one cell. A mean of
    bilinear samples is a product of one matrix per axis, so nothing is gathered. A bin has at
    `most` so many samples along an axis; 0 is enough for boxes inside the map.
    """
    height, width = features.shape[1:3]
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    rows = _weights(y1, y2, height, most or -(-height // BINS))
    columns = _weights(x1, x2, width, most or -(-width // BINS))
    exact = {"precision": "highest", "preferred_element_type": jnp.float32}
    strips = jnp.einsum("bkph,bhwd->bkpwd", rows, features, **exact)
    return jnp.einsum("bkqw,bkpwd->bkpqd", columns, strips, **exact)


class Detector(nnx.Module):
    """What is done in each box of a clip: the encoder ends in pre-training's norm."""

    def __init__(self, encoder: Encoder, num_classes: int, *, rngs: nnx.Rngs):
        self.encoder = encoder
        self.head = vit.linear(encoder.size.width, num_classes, "normal", vit.Run(), rngs=rngs)
        self.head.kernel[...] = self.head.kernel[...] * 0.001  # As released.

    def __call__(
        self,
        video: Shaped[Array, "B T H W 3"],
        boxes: Float[Array, "B K 4"],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B K C"]:
        """Logits, float32; boxes are (x1, y1, x2, y2) in pixels, the key is for drop path."""
        tubelet = self.encoder.tubelet
        cells = jnp.array([tubelet.w, tubelet.h] * 2, jnp.float32)
        features = self.encoder.whole(video, key).mean(axis=1)  # Over time.
        return self.head(align(features, boxes / cells).max(axis=(2, 3)))
