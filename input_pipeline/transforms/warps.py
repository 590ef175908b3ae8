"""RandAugment's warps (Rotate, Shear, Translate) of uint8 clips.

A warp is a 3 x 3 matrix from pixel (x, y, 1) of the result to that of the frame it is read from; a
box is `(y, x, height, width)` in pixels of the full frame.
"""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from input_pipeline.transforms.crops import Box

FILL = 128  # of what lies outside the frame
TRUNCATE = -0.499  # PIL truncates where OpenCV rounds; just above -1/2 keeps integers as they are


def shift(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _rotation(degrees: float, h: int, w: int) -> np.ndarray:
    matrix = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), -degrees, 1.0)
    return np.vstack([matrix, [0, 0, 1]])


# By name: `(argument, height, width of the frame) -> warp`.
WARPS: dict[str, Callable[[float, int, int], np.ndarray]] = {
    "Rotate": _rotation,
    "ShearX": lambda slope, h, w: np.array([[1, slope, slope / 2], [0, 1, 0], [0, 0, 1]]),
    "ShearY": lambda slope, h, w: np.array([[1, 0, 0], [slope, 1, slope / 2], [0, 0, 1]]),
    "TranslateX": lambda share, h, w: shift(share * w, 0),
    "TranslateY": lambda share, h, w: shift(0, share * h),
}


def source(warp: np.ndarray, box: Box, margin: int, size: tuple[int, int]) -> Box:
    """The part of a frame, at least a pixel of it, that a box of a warp's result is read from."""
    y, x, h, w = box
    corners = [(i, j, 1) for i in (x, x + w - 1) for j in (y, y + h - 1)]
    read = (warp @ np.array(corners, np.float64).T)[1::-1]  # y and x
    limit = np.array(size)
    low = (np.floor(read.min(axis=1)).astype(int) - margin).clip(0, limit - 1)
    high = (np.ceil(read.max(axis=1)).astype(int) + margin + 1).clip(low + 1, limit)
    return (*low.tolist(), *(high - low).tolist())


def axis(warp: np.ndarray) -> str:
    """ "x" or "y" if pixels move along that axis only and keep their size; "xy" if not."""
    moved = (warp - np.eye(3)).round(9)
    if not moved[1].any() and not moved[0, 0]:
        return "x"
    return "y" if not moved[0].any() and not moved[1, 1] else "xy"


def warped(
    frames: Sequence[np.ndarray],
    maps: Sequence[np.ndarray],
    have: Box,
    box: Box,
    size: tuple[int, int],
) -> Sequence[np.ndarray]:
    """The box of what warps make of frames, of which `frames` are the box `have`; bicubic.

    `maps` lead from pixels of the result to those that each warp reads, the last to the frames.
    """
    *later, warp = maps
    start, (h, w) = shift(box[1], box[0]), box[2:]
    local = shift(-have[1], -have[0]) @ warp @ start
    if axis(warp) == "x":
        out = _slid(frames, local, h, w)
    elif axis(warp) == "y":
        turned, swap = np.empty((len(frames), have[3], have[2], 3), np.uint8), [1, 0, 2]
        for old, new in zip(frames, turned):
            cv2.transpose(old, new)
        out = [cv2.transpose(frame) for frame in _slid(turned, local[swap][:, swap], w, h)]
    else:
        how = (cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, cv2.BORDER_CONSTANT, (FILL,) * 3)
        out = [cv2.warpAffine(frame, local[:2], (w, h), None, *how) for frame in frames]
    fill, nearest = np.full((h, w, 3), FILL, np.uint8), cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    for early in later:  # What leaves the frame on the way is lost.
        whole, to = np.zeros(size, np.uint8), (early @ start)[:2]
        outside = cv2.warpAffine(whole, to, (w, h), flags=nearest, borderValue=1)
        for frame in out:
            cv2.copyTo(fill, outside, frame)
    return out


def _slid(
    frames: Sequence[np.ndarray] | np.ndarray, warp: np.ndarray, h: int, w: int
) -> list[np.ndarray]:
    """`warped` along the rows, with five taps that all pixels of a row share.

    Four times faster than `cv2.warpAffine`, and PIL's own kernel (bicubic, a = -1). Sheared row
    after row, of all frames at once; translated frame after frame.
    """
    _, slope, offset = warp[0]
    top, width = round(warp[1, 2]), frames[0].shape[1]
    parts: Any = [frame[top : top + h] for frame in frames]
    new_parts = out = np.empty((len(frames), h, w + 4, 3), np.uint8)
    if slope:
        parts, new_parts = np.asarray(frames)[:, top : top + h].swapaxes(0, 1), out.swapaxes(0, 1)
    shifts = offset + slope * np.arange(len(parts))
    wholes = np.floor(shifts + 0.5)
    distance = np.abs(np.arange(-2, 3) - (shifts - wholes)[:, None, None])
    near = (distance - 2) * distance**2 + 1
    far = ((5 - distance) * distance - 8) * distance + 4
    taps = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    for old, new, whole, own in zip(parts, new_parts, wholes.astype(int).tolist(), taps):
        first, last = (min(max(edge, 0), w) for edge in (-whole, width - whole))
        if first < last:
            left, right = max(first + whole - 2, 0), min(last + whole + 2, width)
            target = new[:, left - whole + 2 : right - whole + 2]
            edge = cv2.BORDER_REPLICATE  # PIL's, and garbage in the outer two columns of `out`
            cv2.filter2D(old[:, left:right], -1, own, target, delta=TRUNCATE, borderType=edge)
        new[:, : first + 2] = new[:, last + 2 :] = FILL
    return list(out[:, :, 2:-2])
