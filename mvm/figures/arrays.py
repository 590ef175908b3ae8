"""What a figure shows, from arrays to arrays: tubelets, masks, predictions, errors, means."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mvm.figures.style import FADE, GREY, HEAT, TINT

GridLike = tuple[int, int, int]

EPSILON = 1e-6


def split(video: NDArray[Any], grid: GridLike) -> NDArray[Any]:
    """Cuts a clip `[T, H, W, 3]` into its tubelets `[N, pixels, 3]`, token order t-major.

    Raises:
        ValueError: if the grid does not divide the clip; shows both.
    """
    size, channels = video.shape[:3], video.shape[3]
    if any(s % g for s, g in zip(size, grid)):
        raise ValueError(f"grid {tuple(grid)} does not divide a clip of T, H, W = {size}")
    (t, h, w), (dt, dh, dw) = grid, (s // g for s, g in zip(size, grid))
    blocks = video.reshape(t, dt, h, dh, w, dw, channels).transpose(0, 2, 4, 1, 3, 5, 6)
    return blocks.reshape(t * h * w, dt * dh * dw, channels)


def join(tubelets: NDArray[Any], grid: GridLike, size: Sequence[int]) -> NDArray[Any]:
    """Puts tubelets `[N, pixels, C]` back to a clip `[T, H, W, C]`; the inverse of `split`."""
    (t, h, w), (dt, dh, dw) = grid, (s // g for s, g in zip(size, grid))
    blocks = tubelets.reshape(t, h, w, dt, dh, dw, -1).transpose(0, 3, 1, 4, 2, 5, 6)
    return blocks.reshape(*size, -1)


def members(index: ArrayLike, grid: GridLike) -> NDArray[np.bool_]:
    """Turns token indices into a boolean `[N]`.

    Raises:
        ValueError: if an index lies outside the grid; shows it and N.
    """
    count, found = int(np.prod(grid)), np.asarray(index, dtype=np.int64).reshape(-1)
    outside = found[(found < 0) | (found >= count)]
    if outside.size:
        raise ValueError(f"token {outside[0]} is outside grid {tuple(grid)} of {count} tokens")
    result = np.zeros(count, dtype=bool)
    result[found] = True
    return result


def _rgb(colour: str) -> NDArray[np.float64]:
    return np.asarray([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float64)


def _luma(pixels: NDArray[Any]) -> NDArray[np.float64]:
    return (pixels @ np.asarray([0.299, 0.587, 0.114]))[..., None] / 255


def overlay(
    video: NDArray[np.uint8], visible: ArrayLike, target: ArrayLike, grid: GridLike
) -> NDArray[np.uint8]:
    """Shows a mask on its clip `[T, H, W, 3]`: visible as it is, targets tinted, the rest faded.

    A token that is both visible and a target (VideoMAE V2) is shown as visible.
    """
    shown, aimed = members(visible, grid), members(target, grid)
    tubelets = split(video, grid)
    faded = _rgb(FADE) * (0.86 + 0.14 * _luma(tubelets))
    tinted = _rgb(TINT) * (0.62 + 0.38 * _luma(tubelets))
    drawn = np.where(aimed[:, None, None], tinted, faded)
    drawn = np.where(shown[:, None, None], tubelets, np.rint(drawn)).astype(np.uint8)
    return join(drawn, grid, video.shape[:3])


def faded(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels `[..., 3]` in faint colours, for what was not chosen."""
    return np.rint(0.35 * frame + 0.65 * _rgb(FADE)).astype(np.uint8)


def seen(video: NDArray[np.uint8], visible: ArrayLike, grid: GridLike) -> NDArray[np.uint8]:
    """The clip as the encoder gets it: visible tokens, all others one flat grey."""
    shown = members(visible, grid)[:, None, None]
    drawn = np.where(shown, split(video, grid), _rgb(GREY)).astype(np.uint8)
    return join(drawn, grid, video.shape[:3])


def _moments(tubelets: NDArray[np.uint8], kind: str) -> tuple[Any, Any]:
    """What a target of that kind is shifted and divided by; pixels are in [0, 1]."""
    x = tubelets / 255.0
    if kind == "pixels":
        return 0.0, 1.0
    if kind == "joint":
        both = (1, 2)
        return x.mean(both, keepdims=True), np.sqrt(x.var(both, ddof=1, keepdims=True) + EPSILON)
    return x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True) + EPSILON


def normalise(tubelets: NDArray[np.uint8], kind: str = "normalised") -> NDArray[np.float64]:
    """The targets of tubelets `[N, pixels, 3]` by `mvm.tubelets.Targets.kind`, in float64."""
    shift, scale = _moments(tubelets, kind)
    return (tubelets / 255.0 - shift) / scale


def unnormalise(
    values: NDArray[np.floating[Any]], tubelets: NDArray[np.uint8], kind: str = "normalised"
) -> NDArray[np.float64]:
    """Inverse of `normalise`, with the true mean and deviation of `tubelets`; not clipped."""
    shift, scale = _moments(tubelets, kind)
    return values * scale + shift


def paste(
    video: NDArray[np.uint8],
    predicted: ArrayLike,
    target: ArrayLike,
    visible: ArrayLike,
    grid: GridLike,
    kind: str = "normalised",
) -> NDArray[np.uint8]:
    """Puts predicted tubelets into the clip: visible tokens as they are, the rest grey.

    Args:
        video: The true clip `[T, H, W, 3]`.
        predicted: `[M, P]`, each a tubelet flattened in the order (t, h, w, c).
        target: Token index `[M]` of each prediction. A visible target shows its prediction.
        visible: Token indices `[V]`.
        grid: Tubelets `(t, h, w)`.
        kind: Of targets. Predictions that are normalised per tubelet are scaled back with its
            true mean and deviation, which a model does not know; "pixels" are in [0, 1].
    """
    tubelets, index = split(video, grid), np.asarray(target, dtype=np.int64)
    values = np.asarray(predicted, dtype=np.float64).reshape(len(index), *tubelets.shape[1:])
    pixels = unnormalise(values, tubelets[index], kind)
    drawn = split(seen(video, visible, grid), grid)
    drawn[index] = np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
    return join(drawn, grid, video.shape[:3])


def token_errors(
    video: NDArray[np.uint8],
    predicted: ArrayLike,
    target: ArrayLike,
    grid: GridLike,
    kind: str = "normalised",
) -> NDArray[np.float64]:
    """Mean squared error of each predicted tubelet, `[N]`; NaN where nothing was predicted.

    In the space the loss lives in: of normalised tubelets, where 1 is a flat grey guess, or of
    pixels in [0, 1].
    """
    tubelets, index = split(video, grid), np.asarray(target, dtype=np.int64)
    true = normalise(tubelets[index], kind)
    values = np.asarray(predicted, dtype=np.float64).reshape(true.shape)
    errors = np.full(len(tubelets), np.nan)
    errors[index] = np.square(values - true).mean(axis=(1, 2))
    return errors


def heat(
    video: NDArray[np.uint8], values: ArrayLike, grid: GridLike, low: float, high: float
) -> NDArray[np.uint8]:
    """Colours the clip by one number per token `[N]`, pale `low` to dark `high`; NaN is grey."""
    x = np.asarray(values, dtype=np.float64)[:, None, None]
    unit = np.clip((x - low) / (high - low if high > low else 1.0), 0, 1)
    colour = 255 * np.asarray(HEAT(np.nan_to_num(unit[:, :, 0])))[..., :3]
    mixed = colour * (0.7 + 0.3 * _luma(split(video, grid)))
    drawn = np.where(np.isnan(x), _rgb(GREY), np.rint(mixed)).astype(np.uint8)
    return join(drawn, grid, video.shape[:3])


def borders(region: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Segments `[S, 2, 2]` of (x, y), in cells, that part true from false cells of `[h, w]`."""
    padded = np.pad(region, 1)
    y, x = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    upright = np.stack([np.stack([x, y], 1), np.stack([x, y + 1], 1)], 1)
    y, x = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    level = np.stack([np.stack([x, y], 1), np.stack([x + 1, y], 1)], 1)
    return np.concatenate([upright, level]).astype(np.float64)


def smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean over up to `window` values centred on each; shorter at the ends, NaN left out."""
    finite = np.isfinite(values)
    sums = np.convolve(np.where(finite, values, 0.0), np.ones(window), "same")
    counts = np.convolve(finite.astype(float), np.ones(window), "same")
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
