"""What happens to pixels on the device before the model: random erasing, mixup and cutmix.

The host draws the geometry, from randomness addressed by (seed, epoch, index); the device writes
the pixels. Videos come as bytes and leave as floats in [0, 1] where anything was changed.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from mvm import tubelets


def inside(box: Int[Array, "B 4"], height: int, width: int) -> Bool[Array, "B 1 H W 1"]:
    """Which pixels lie in each clip's box (y, x, h, w)."""
    y, x, h, w = (box[:, i, None, None] for i in range(4))
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    hit = (rows >= y) & (rows < y + h) & (columns >= x) & (columns < x + w)
    return hit[:, None, :, :, None]


def erase(
    key: Key[Array, ""], video: Shaped[Array, "B T H W 3"], box: Int[Array, "B 4"]
) -> Float[Array, "B T H W 3"]:
    """Random erasing (arXiv 1708.04896), "pixel" mode: the box of every frame becomes noise.

    The noise is standard normal after ImageNet normalisation, fresh for each pixel and frame.
    """
    noise = jax.random.normal(key, video.shape) * tubelets.IMAGENET_STD + tubelets.IMAGENET_MEAN
    return jnp.where(inside(box, *video.shape[2:4]), noise, tubelets.unit(video))


def mix(
    video: Shaped[Array, "B T H W 3"],
    label: Float[Array, "B C"],
    lam: Float[Array, ""],
    box: Int[Array, "4"],
) -> tuple[Float[Array, "B T H W 3"], Float[Array, "B C"]]:
    """Mixup (arXiv 1710.09412) or cutmix (arXiv 1905.04899) of the batch with its reverse.

    Args:
        video: clips.
        label: soft labels.
        lam: share of the clip's own label and, in mixup, of its own pixels.
        box: (y, x, h, w) of cutmix; an empty box means mixup.
    """
    video = tubelets.unit(video)
    other, is_cut = video[::-1], box[2] * box[3] > 0
    cut = jnp.where(inside(box[None], *video.shape[2:4]), other, video)
    video = jnp.where(is_cut, cut, lam * video + (1 - lam) * other)
    return video, lam * label + (1 - lam) * label[::-1]
