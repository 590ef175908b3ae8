"""Videos to tubelets and back, and the normalised pixels that the decoder predicts.

One flattening serves the patch embedding and the target: tokens are numbered t-major over the
grid, and a tubelet's P pixels are ordered (frame, row, column, channel).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from mvm.types import Grid, Tubelet

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def split(
    video: Shaped[Array, "B T H W 3"], tubelet: Tubelet
) -> tuple[Shaped[Array, "B N P"], Grid]:
    """Cuts clips into flattened tubelets, keeping the dtype."""
    b, frames, height, width, channels = video.shape
    grid = tubelet.grid(frames, height, width)
    blocks = video.reshape(b, grid.t, tubelet.t, grid.h, tubelet.h, grid.w, tubelet.w, channels)
    blocks = blocks.transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return blocks.reshape(b, grid.n, -1), grid


def join(
    tubelets: Shaped[Array, "B N P"], grid: Grid, tubelet: Tubelet
) -> Shaped[Array, "B T H W 3"]:
    """The inverse of `split`."""
    b = tubelets.shape[0]
    blocks = tubelets.reshape(b, *grid, *tubelet, -1).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return blocks.reshape(
        b, grid.t * tubelet.t, grid.h * tubelet.h, grid.w * tubelet.w, blocks.shape[-1]
    )


def gather(x: Shaped[Array, "B N C"], index: Int[Array, "B K"]) -> Shaped[Array, "B K C"]:
    """Picks tokens by index, clip by clip."""
    return jnp.take_along_axis(x, index[..., None], axis=1, mode="promise_in_bounds")


def unit(pixels: Shaped[Array, "*S"]) -> Float[Array, "*S"]:
    """Pixels in [0, 1] as float32: bytes are divided by 255, floats are taken to be there."""
    if jnp.issubdtype(pixels.dtype, jnp.integer):
        return pixels.astype(jnp.float32) / 255.0
    return pixels.astype(jnp.float32)


def standardise(pixels: Shaped[Array, "*S P"]) -> Float[Array, "*S P"]:
    """Flattened tubelets with ImageNet's channel mean and standard deviation taken out, float32."""
    repeats = pixels.shape[-1] // 3
    mean, std = jnp.tile(IMAGENET_MEAN, repeats), jnp.tile(IMAGENET_STD, repeats)
    return (unit(pixels) - mean) / std


class Targets(NamedTuple):
    """What the decoder predicts of a tubelet."""

    kind: str = "normalised"
    """"normalised" (per tubelet and channel; VideoMAE), "joint" (per tubelet, all channels
    together; mae_st, arXiv 2205.09113) or "pixels" (in [0, 1])."""
    frames: int = 0
    """0 = all frames of the tubelet, 1 = one of them (mae_st)."""


def targets(
    pixels: Shaped[Array, "B M P"],
    what: Targets = Targets(),
    index: Int[Array, "B M"] | None = None,
    grid: Grid | None = None,
    tubelet: Tubelet | None = None,
) -> Float[Array, "B M Q"]:
    """What the decoder predicts of flattened tubelets, bytes or floats in [0, 1]; no gradient.

    "normalised": (x - mean) / (sqrt(unbiased variance) + 1e-6) of pixels in [0, 1], per tubelet and
    channel. "joint": over all channels together, and divided by sqrt(unbiased variance + 1e-6).

    For one frame, Q = P / p_t and token indices, grid and tubelet are needed; else Q = P.
    """
    x = unit(jax.lax.stop_gradient(pixels))
    if what.frames:
        assert index is not None and grid is not None and tubelet is not None  # noqa: PT018
        frame = jnp.asarray(one_frame(grid, tubelet) % tubelet.t)[index // (grid.h * grid.w)]
        x = x.reshape(*x.shape[:2], tubelet.t, -1)
        x = jnp.take_along_axis(x, frame[..., None, None], axis=2)[:, :, 0]
    shape = x.shape
    if what.kind == "pixels":
        return x
    if what.kind == "joint":
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.sum(centred * centred, axis=-1, keepdims=True) / (shape[-1] - 1)
        return centred / jnp.sqrt(variance + 1e-6)
    x = x.reshape(*shape[:-1], -1, 3)
    centred = x - x.mean(axis=-2, keepdims=True)
    variance = jnp.sum(centred * centred, axis=-2, keepdims=True) / (x.shape[-2] - 1)
    return (centred / (jnp.sqrt(variance) + 1e-6)).reshape(shape)


def one_frame(grid: Grid, tubelet: Tubelet) -> np.ndarray:
    """The frame of a clip that mae_st predicts in each slot, `[t]`.

    They are spread evenly from the first frame of a clip to its last: 0, 2, 4, 6, 8, 10, 12 and 15
    of 16 frames, which is the first frame of every tubelet but the second of the last.
    """
    first = np.arange(grid.t) * tubelet.t
    chosen = np.linspace(0, grid.t * tubelet.t - 1, grid.t).astype(np.int64)
    return np.clip(chosen, first, first + tubelet.t - 1)
