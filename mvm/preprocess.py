"""What happens to pixels on the device before the model: random erasing, mixup and cutmix.

The host draws the geometry, from randomness addressed by (seed, epoch, index); the device writes
the pixels. Videos come as bytes and leave as floats in [0, 1] where anything was changed.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from mvm.models import tubelets


def inside(
    y: Int[Array, "B 2"], x: Int[Array, "B 2"], height: int, width: int
) -> Bool[Array, "B 1 H W 1"]:
    """Which pixels lie in each clip's box; rows `y` and columns `x` as (first, end), px."""
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    y, x = y[:, :, None, None], x[:, :, None, None]
    hit = (rows >= y[:, 0]) & (rows < y[:, 1]) & (columns >= x[:, 0]) & (columns < x[:, 1])
    return hit[:, None, :, :, None]


def erase(
    key: Key[Array, ""], video: Shaped[Array, "B T H W 3"], box: Int[Array, "B 4"]
) -> Float[Array, "B T H W 3"]:
    """Random erasing (arXiv 1708.04896), "pixel" mode: the box of every frame becomes noise.

    The noise is standard normal after ImageNet normalisation, fresh for each pixel and frame.
    `box` is (y, x, h, w) per clip, px; zeros erase nothing.
    """
    noise = jax.random.normal(key, video.shape) * tubelets.IMAGENET_STD + tubelets.IMAGENET_MEAN
    first, size = box[:, :2], box[:, 2:]
    y, x = (jnp.stack([first[:, i], first[:, i] + size[:, i]], axis=1) for i in (0, 1))
    return jnp.where(inside(y, x, *video.shape[2:4]), noise, tubelets.unit(video))


def mix(
    video: Shaped[Array, "B T H W 3"],
    other: Shaped[Array, "B T H W 3"],
    label: Float[Array, "B C"],
    lam: Float[Array, ""],
    box: Int[Array, "4"],
) -> tuple[Float[Array, "B T H W 3"], Float[Array, "B C"]]:
    """Mixup (arXiv 1710.09412) or cutmix (arXiv 1905.04899) of the batch with its reverse.

    `other` is that; bytes are cheaper to send between devices than floats. `lam` is the share of
    the clip's own label and, in mixup, of its own pixels; `box` is (y first, y end, x first, x
    end) of cutmix, px, and empty in mixup.
    """
    video, other = tubelets.unit(video), tubelets.unit(other)
    is_cut = (box[1] > box[0]) & (box[3] > box[2])
    cut = jnp.where(inside(box[None, :2], box[None, 2:], *video.shape[2:4]), other, video)
    video = jnp.where(is_cut, cut, lam * video + (1 - lam) * other)
    return video, lam * label + (1 - lam) * label[::-1]
