"""Actions of people in a clip: RoIAlign over the encoder's tokens, max pool, linear head.

The detector of VideoMAE (arXiv 2203.12602) on AVA: boxes are given, it says what is done in them.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, Shaped

from mvm.models import vit
from mvm.models.encoder import Encoder

BINS = (7, 7)


def _weights(
    first: Float[Array, "B K"],
    last: Float[Array, "B K"],
    cells: int,
    bins: int,
    most: int,
    aligned: bool,
    ratio: int,
) -> Float[Array, "B K bins cells"]:
    """How much each cell of an axis adds to each bin: the mean over samples of the bin."""
    shift = 0.5 if aligned else 0.0
    first, length = first - shift, last - first
    if not aligned:
        length = jnp.maximum(length, 1.0)
    number = jnp.arange(ratio or most)
    # ceil(length / bins) samples, counted without a division that may round up.
    used = (length[..., None] > bins * number) | bool(ratio)
    count = jnp.maximum(used.sum(-1, keepdims=True), 1)
    inside = (number + 0.5) / count  # Of a bin.
    at = (jnp.arange(bins)[:, None] + inside[..., None, :]) * (length / bins)[..., None, None]
    at = first[..., None, None] + at
    used = used[..., None, :] & (at >= -1.0) & (at <= cells)
    at = jnp.clip(at, 0.0, cells - 1.0)
    near = jnp.maximum(1.0 - jnp.abs(at[..., None] - jnp.arange(cells)), 0.0)
    return (near * used[..., None]).sum(-2) / count[..., None]


def align(
    features: Float[Array, "B H W D"],
    boxes: Float[Array, "B K 4"],
    *,
    bins: tuple[int, int] = BINS,
    aligned: bool = False,
    ratio: int = 0,
    most: tuple[int, int] | None = None,
) -> Float[Array, "B K h w D"]:
    """RoIAlign (arXiv 1703.06870) of boxes (x1, y1, x2, y2) in cells, as torchvision computes it.

    A mean of bilinear samples is a product of one matrix per axis, so nothing is gathered. Boxes
    without area are one cell, or nothing if `aligned`.

    Args:
        aligned: whether cell i has its centre at i + 0.5; VideoMAE's detector has it at i.
        ratio: samples of a bin along each axis; 0 is one for each cell it covers.
        most: of those, along y and x; None is enough for boxes inside the map.
    """
    height, width = features.shape[1:3]
    most = most or (-(-height // bins[0]), -(-width // bins[1]))
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    rows = _weights(y1, y2, height, bins[0], most[0], aligned, ratio)
    columns = _weights(x1, x2, width, bins[1], most[1], aligned, ratio)
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
