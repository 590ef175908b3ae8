"""RandAugment's operations that look at neighbours or move pixels, on regions of uint8 frames.

Each comes as two functions: the source box that a target box needs, and the pixels of the target
from those of that source. A box is `(y, x, height, width)` in pixels of the full frame; inside a
source box lie all pixels of the frame that the target reads, so what lies outside both box and
frame is the fill or the border rule, as for the full frame.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from input_pipeline.transforms.crops import Box
from input_pipeline.transforms.operations import TRUNCATE, Clip, Frames

Size = tuple[int, int]  # of the full frame: height, width
Empty = Callable[..., Clip]  # (T, H, W) -> [T, H, W, 3]; ends the life of the result before last

FILL = 128


class Warp(NamedTuple):
    """An operation; `argument` is RandAugment's (`augment.argument`).

    Attributes:
        source: `(target, size, argument) -> Box`, what a target box needs, never empty.
        apply: `(frames, source, target, size, argument, empty) -> clip`, from T frames of exactly
            the source box.
    """

    source: Callable[[Box, Size, float], Box]
    apply: Callable[[Frames, Box, Box, Size, float, Empty], Clip]


def _inside(top: float, left: float, bottom: float, right: float, size: Size) -> Box:
    """The part of a rectangle that the frame has, at least one pixel of it."""
    y = min(max(math.floor(top), 0), size[0] - 1)
    x = min(max(math.floor(left), 0), size[1] - 1)
    end_y, end_x = min(math.ceil(bottom), size[0]), min(math.ceil(right), size[1])
    return y, x, max(end_y - y, 1), max(end_x - x, 1)


def _sharpness_source(target: Box, size: Size, _: float) -> Box:
    y, x, h, w = target
    return _inside(y - 1, x - 1, y + h + 1, x + w + 1, size)


def _sharpness(
    frames: Frames, source: Box, target: Box, size: Size, factor: float, empty: Empty
) -> Clip:
    # PIL smooths with weights 5 (centre) and 1 (neighbours) of 13: 9 box means and 4 centres.
    centre, box = factor + (1 - factor) * 4 / 13, (1 - factor) * 9 / 13
    h, w = source[2:]
    rim_y = [i - source[0] for i in (0, size[0] - 1) if 0 <= i - source[0] < h]
    rim_x = [i - source[1] for i in (0, size[1] - 1) if 0 <= i - source[1] < w]
    out = empty(len(frames), h, w)
    for old, new in zip(frames, out):
        cv2.blur(old, (3, 3), dst=new)
        cv2.addWeighted(old, centre, new, box, TRUNCATE, dst=new)
        for i in rim_y:  # PIL leaves the outermost pixels as they are
            new[i] = old[i]
        for i in rim_x:
            new[:, i] = old[:, i]
    y, x = target[0] - source[0], target[1] - source[1]
    return out[:, y : y + target[2], x : x + target[3]]


def _rotation(size: Size, degrees: float) -> npt.NDArray[np.float64]:
    """`[2, 3]`, from target (x, y, 1) to source (x, y)."""
    centre = ((size[1] - 1) / 2, (size[0] - 1) / 2)
    matrix = cv2.invertAffineTransform(cv2.getRotationMatrix2D(centre, degrees, 1.0))
    return matrix.astype(np.float64)


def _rotate_source(target: Box, size: Size, degrees: float) -> Box:
    y, x, h, w = target
    corners = [(i, j, 1) for i in (x, x + w - 1) for j in (y, y + h - 1)]
    at = _rotation(size, degrees) @ np.array(corners, np.float64).T
    low, high = at.min(axis=1) - 2, at.max(axis=1) + 4  # 4 taps from -1 on, and one to spare
    return _inside(low[1], low[0], high[1], high[0], size)


def _rotate(
    frames: Frames, source: Box, target: Box, size: Size, degrees: float, empty: Empty
) -> Clip:
    y, x, h, w = target
    matrix = _rotation(size, degrees)
    across = matrix[:, :1] * np.arange(x, x + w)
    down = matrix[:, 1:2] * np.arange(y, y + h) + matrix[:, 2:] - np.array(source[1::-1])[:, None]
    maps = np.empty((2, h, w), np.float32)
    np.add(down[:, :, None], across[:, None], out=maps, casting="same_kind")
    out = empty(len(frames), h, w)
    border = (cv2.BORDER_CONSTANT, (FILL,) * 3)
    for old, new in zip(frames, out):
        cv2.remap(old, maps[0], maps[1], cv2.INTER_CUBIC, new, *border)
    return out


def _taps(shifts: npt.NDArray[np.float64]) -> tuple[list[int], npt.NDArray[np.float64]]:
    """Whole parts of shifts `[R]` in pixels, and PIL's bicubic weights (a = -1) `[R, 1, 5]`."""
    wholes = np.floor(shifts + 0.5).astype(int)
    distance = np.abs(np.arange(-2, 3) - (shifts - wholes)[:, None, None])
    near = (distance - 2) * distance**2 + 1
    far = ((5 - distance) * distance - 8) * distance + 4
    weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    return wholes.tolist(), weights


def _slide(
    old: Clip, new: Clip, whole: int, taps: npt.NDArray[np.float64], start: int, x: int, width: int
) -> None:
    """Reads rows at `whole` pixels and a fraction (`taps`) further right, filled outside.

    A shear or translation moves along one axis only, so a few taps do, and all pixels of a row
    share them: several times faster than a general warp.

    Args:
        old: `[R, W, 3]`, from column `start` of the frame on.
        new: `[R, w + 4, 3]`, columns x - 2 to x + w + 2; the outer two on both sides are garbage.
        whole: pixels.
        taps: `[1, 5]`.
        start: first column of `old` in the frame.
        x: first column of the target in the frame.
        width: of the full frame.
    """
    end = x + new.shape[1] - 4
    first, last = max(x, -whole), min(end, width - whole)  # target columns with a source
    if first >= last:
        new[:] = FILL
        return
    left, right = max(first + whole - 2, 0), min(last + whole + 2, width)
    shift = 2 - x - whole
    cv2.filter2D(
        old[:, left - start : right - start],
        -1,
        taps,
        dst=new[:, left + shift : right + shift],
        delta=TRUNCATE,
        borderType=cv2.BORDER_REPLICATE,
    )
    if first > x:
        new[:, : first - x + 2] = FILL
    if last < end:
        new[:, last - x + 2 :] = FILL


def _shear_x_source(target: Box, size: Size, slope: float) -> Box:
    y, x, h, w = target
    low, high = sorted((slope * (y + 0.5), slope * (y + h - 0.5)))
    return _inside(y, x + low - 3, y + h, x + w + high + 3, size)


def _shear_x(
    frames: Frames, source: Box, target: Box, size: Size, slope: float, empty: Empty
) -> Clip:
    clip = _as_clip(frames, empty)
    y, x, h, w = target
    out = empty(len(clip), h, w + 4)
    wholes, taps = _taps(slope * (np.arange(y, y + h, dtype=np.float64) + 0.5))
    for row in range(h):
        _slide(clip[:, row], out[:, row], wholes[row], taps[row], source[1], x, size[1])
    return out[:, :, 2:-2]


def _translate_x_source(target: Box, size: Size, fraction: float) -> Box:
    y, x, h, w = target
    shift = fraction * size[1]
    return _inside(y, x + shift - 3, y + h, x + w + shift + 3, size)


def _translate_x(
    frames: Frames, source: Box, target: Box, size: Size, fraction: float, empty: Empty
) -> Clip:
    out = empty(len(frames), target[2], target[3] + 4)
    (whole,), (taps,) = _taps(np.array([fraction * size[1]]))
    for old, new in zip(frames, out):
        _slide(old, new, whole, taps, source[1], target[1], size[1])
    return out[:, :, 2:-2]


def _as_clip(frames: Frames, empty: Empty) -> Clip:
    if isinstance(frames, np.ndarray):
        return frames
    clip = empty(len(frames), *frames[0].shape[:2])
    for old, new in zip(frames, clip):
        np.copyto(new, old)
    return clip


def _turned_box(box: Box) -> Box:
    return box[1], box[0], box[3], box[2]


def _transpose(frames: Frames, empty: Empty) -> Clip:
    h, w = frames[0].shape[:2]
    out = empty(len(frames), w, h)
    for old, new in zip(frames, out):
        cv2.transpose(old, dst=new)
    return out


def _along_y(along_x: Warp) -> Warp:
    """The operation with the axes of the frame exchanged."""

    def source(target: Box, size: Size, argument: float) -> Box:
        return _turned_box(along_x.source(_turned_box(target), size[::-1], argument))

    def apply(
        frames: Frames, source: Box, target: Box, size: Size, argument: float, empty: Empty
    ) -> Clip:
        boxes = _turned_box(source), _turned_box(target)
        turned = along_x.apply(_transpose(frames, empty), *boxes, size[::-1], argument, empty)
        return _transpose(turned, empty)

    return Warp(source, apply)


_SHEAR = Warp(_shear_x_source, _shear_x)
_TRANSLATE = Warp(_translate_x_source, _translate_x)

WARPS: dict[str, Warp] = {
    "Rotate": Warp(_rotate_source, _rotate),
    "Sharpness": Warp(_sharpness_source, _sharpness),
    "ShearX": _SHEAR,
    "ShearY": _along_y(_SHEAR),
    "TranslateX": _TRANSLATE,
    "TranslateY": _along_y(_TRANSLATE),
}
