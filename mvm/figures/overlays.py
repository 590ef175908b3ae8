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
    """Turns token indices into a boolean `[t, h, w]`."""
    result = np.zeros(grid, dtype=bool)
    result.flat[np.asarray(index, dtype=np.int64)] = True
    return result


def _toned(video: Video, colour: Any, depth: float) -> Video:
    """The brightness of a clip in shades of a colour; `depth` 0 leaves the colour alone."""
    luma = (video @ np.asarray([0.299, 0.587, 0.114]))[..., None] / 255
    return np.rint(colour * (1 - depth + depth * luma)).astype(np.uint8)


def overlay(video: Video, visible: ArrayLike, target: ArrayLike, grid: GridLike) -> Video:
    """Shows a mask on its clip `[T, H, W, 3]`: visible as it is, targets tinted, the rest faded.

    A token that is both visible and a target (VideoMAE V2) is shown as visible.
    """
    shown, aimed = members(visible, grid), members(target, grid)
    drawn, tinted = _toned(video, FADED, 0.2), _toned(video, AMBER, 0.3)
    blocks(drawn, grid)[aimed] = blocks(tinted, grid)[aimed]
    blocks(drawn, grid)[shown] = blocks(np.ascontiguousarray(video), grid)[shown]
    return drawn


def seen(video: Video, visible: ArrayLike, grid: GridLike) -> Video:
    """The clip as the encoder gets it: visible tokens, all others one flat grey."""
    drawn = video.copy()
    blocks(drawn, grid)[~members(visible, grid)] = GREY
    return drawn


def predictions(
    video: Video,
    predicted: ArrayLike,
    target: ArrayLike,
    visible: ArrayLike,
    grid: GridLike,
    kind: str = "normalised",
) -> tuple[Video, NDArray[np.float64]]:
    """The clip with predicted tubelets `[M, P]`, and the mean squared error of each, `[t, h, w]`.

    Visible tokens are as they are, the rest is grey; a visible target shows its prediction. What is
    normalised by tubelet (`kind`, see `mvm.models.tubelets.Targets`) is scaled back with its true
    mean and deviation, which a model does not know. Errors are in the space of the loss: of
    normalised tubelets, where 1 is a flat grey guess, or of pixels in [0, 1]; NaN where nothing was
    predicted.
    """
    where = np.unravel_index(np.asarray(target, dtype=np.int64), grid)
    true = blocks(np.ascontiguousarray(video), grid)[where] / 255.0
    shift: Any = 0.0
    scale: Any = 1.0
    if kind != "pixels":
        axes = (1, 2, 3, 4) if kind == "joint" else (1, 2, 3)
        variance = true.var(axes, ddof=1, keepdims=True)
        scale = np.sqrt(variance + EPSILON) if kind == "joint" else np.sqrt(variance) + EPSILON
        shift = true.mean(axes, keepdims=True)
    guess = np.asarray(predicted, dtype=np.float64).reshape(true.shape)
    drawn, errors = seen(video, visible, grid), np.full(grid, np.nan)
    blocks(drawn, grid)[where] = np.rint(255 * np.clip(guess * scale + shift, 0, 1))
    errors[where] = np.square(guess - (true - shift) / scale).mean(axis=(1, 2, 3, 4))
    return drawn, errors


def heat(video: Video, values: ArrayLike, grid: GridLike, low: float, high: float) -> Video:
    """Colours the clip by one number per token `[N]`, pale `low` to dark `high`; NaN is grey."""
    x = np.asarray(values, dtype=np.float64).reshape(grid)
    unit = np.clip((x - low) / (high - low if high > low else 1.0), 0, 1)
    colours = np.empty(video.shape)
    blocks(colours, grid)[:] = 255 * HEAT(unit)[..., None, None, None, :3]
    drawn = _toned(video, colours, 0.3)
    blocks(drawn, grid)[np.isnan(x)] = GREY
    return drawn
