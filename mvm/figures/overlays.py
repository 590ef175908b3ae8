"""Masks, predictions and errors painted onto a clip: arrays in, arrays out."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mvm.figures.style import HEAT

GridLike = tuple[int, int, int]
Video = NDArray[np.uint8]

EPSILON = 1e-6
GREY, AMBER, FADED = np.array([150, 155, 163]), np.array([251, 207, 122]), np.array([180, 184, 190])


def blocks(video: NDArray[Any], grid: GridLike) -> NDArray[Any]:
    """Tubelets of a contiguous clip `[T, H, W, C]`, a view `[t, h, w, p_t, p_h, p_w, C]` of it."""
    (t, h, w), (frames, height, width, channels) = grid, video.shape
    cut = video.reshape(t, frames // t, h, height // h, w, width // w, channels)
    return cut.transpose(0, 2, 4, 1, 3, 5, 6)


def members(index: ArrayLike, grid: GridLike) -> NDArray[np.bool_]:
    """Turns token indices into a boolean `[N]`."""
    result = np.zeros(int(np.prod(grid)), dtype=bool)
    result[np.asarray(index, dtype=np.int64)] = True
    return result


def _toned(video: Video, colour: Any, depth: float) -> Video:
    """The brightness of a clip in shades of a colour; `depth` 0 leaves the colour alone."""
    luma = (video @ np.asarray([0.299, 0.587, 0.114]))[..., None] / 255
    return np.rint(colour * (1 - depth + depth * luma)).astype(np.uint8)


def overlay(video: Video, visible: ArrayLike, target: ArrayLike, grid: GridLike) -> Video:
    """Shows a mask on its clip `[T, H, W, 3]`: visible as it is, targets tinted, the rest faded.

    A token that is both visible and a target (VideoMAE V2) is shown as visible.
    """
    shown, aimed = (members(index, grid).reshape(grid) for index in (visible, target))
    drawn, tinted = _toned(video, FADED, 0.2), _toned(video, AMBER, 0.3)
    blocks(drawn, grid)[aimed] = blocks(tinted, grid)[aimed]
    blocks(drawn, grid)[shown] = blocks(np.ascontiguousarray(video), grid)[shown]
    return drawn


def seen(video: Video, visible: ArrayLike, grid: GridLike) -> Video:
    """The clip as the encoder gets it: visible tokens, all others one flat grey."""
    drawn = video.copy()
    blocks(drawn, grid)[~members(visible, grid).reshape(grid)] = GREY
    return drawn


def _tubelets(video: Video, index: ArrayLike, grid: GridLike, kind: str) -> tuple[Any, Any, Any]:
    """Tubelets `[M, p_t, p_h, p_w, 3]` in [0, 1], and what their targets are shifted and scaled by.

    `kind` is that of `mvm.models.tubelets.Targets`.
    """
    where = np.unravel_index(np.asarray(index, dtype=np.int64), grid)
    x = blocks(np.ascontiguousarray(video), grid)[where] / 255.0
    if kind == "pixels":
        return x, 0.0, 1.0
    axes = (1, 2, 3, 4) if kind == "joint" else (1, 2, 3)
    variance = x.var(axes, ddof=1, keepdims=True)
    scale = np.sqrt(variance + EPSILON) if kind == "joint" else np.sqrt(variance) + EPSILON
    return x, x.mean(axes, keepdims=True), scale


def paste(
    video: Video,
    predicted: ArrayLike,
    target: ArrayLike,
    visible: ArrayLike,
    grid: GridLike,
    kind: str = "normalised",
) -> Video:
    """Puts predicted tubelets `[M, P]` into the clip: visible tokens as they are, the rest grey.

    A visible target shows its prediction. Predictions that are normalised per tubelet are scaled
    back with its true mean and deviation, which a model does not know.
    """
    x, shift, scale = _tubelets(video, target, grid, kind)
    pixels = np.asarray(predicted, dtype=np.float64).reshape(x.shape) * scale + shift
    drawn = seen(video, visible, grid)
    where = np.unravel_index(np.asarray(target, dtype=np.int64), grid)
    blocks(drawn, grid)[where] = np.rint(255 * np.clip(pixels, 0, 1))
    return drawn


def token_errors(
    video: Video,
    predicted: ArrayLike,
    target: ArrayLike,
    grid: GridLike,
    kind: str = "normalised",
) -> NDArray[np.float64]:
    """Mean squared error of each predicted tubelet, `[N]`; NaN where nothing was predicted.

    In the space the loss lives in: of normalised tubelets, where 1 is a flat grey guess, or of
    pixels in [0, 1].
    """
    x, shift, scale = _tubelets(video, target, grid, kind)
    wrong = np.asarray(predicted, dtype=np.float64).reshape(x.shape) - (x - shift) / scale
    errors = np.full(int(np.prod(grid)), np.nan)
    errors[np.asarray(target, dtype=np.int64)] = np.square(wrong).mean(axis=(1, 2, 3, 4))
    return errors


def heat(video: Video, values: ArrayLike, grid: GridLike, low: float, high: float) -> Video:
    """Colours the clip by one number per token `[N]`, pale `low` to dark `high`; NaN is grey."""
    x = np.asarray(values, dtype=np.float64).reshape(grid)
    unit = np.clip((x - low) / (high - low if high > low else 1.0), 0, 1)
    colours = np.empty(video.shape)
    blocks(colours, grid)[:] = 255 * HEAT(unit)[..., None, None, None, :3]
    drawn = _toned(video, colours, 0.3)
    blocks(drawn, grid)[np.isnan(x)] = GREY
    return drawn
