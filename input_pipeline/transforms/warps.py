"""RandAugment's warps (Rotate, Shear, Translate) of uint8 clips.

A warp is a 3 x 3 matrix from pixel (x, y, 1) of the result to that of the frame it is read from.
"""

from collections.abc import Callable, Sequence

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


def warped(
    name: str, frames: Sequence[np.ndarray], warp: np.ndarray, h: int, w: int
) -> list[np.ndarray]:
    """What a warp of this name makes of frames, `[h, w, 3]` each; bicubic."""
    if name.endswith("X"):
        return _slid(frames, warp, h, w)
    if name.endswith("Y"):
        swap, turned = [1, 0, 2], [cv2.transpose(frame) for frame in frames]
        return [cv2.transpose(frame) for frame in _slid(turned, warp[swap][:, swap], w, h)]
    how = (cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, cv2.BORDER_CONSTANT, (FILL,) * 3)
    return [cv2.warpAffine(frame, warp[:2], (w, h), None, *how) for frame in frames]


def _slid(frames: Sequence[np.ndarray], warp: np.ndarray, h: int, w: int) -> list[np.ndarray]:
    """`warped` along the rows, with five taps that all pixels of a row share.

    Four times faster than `cv2.warpAffine`, and PIL's own kernel (bicubic, a = -1).
    """
    _, slope, offset = warp[0]
    top, width = round(warp[1, 2]), frames[0].shape[1]
    shifts = offset + slope * np.arange(h)
    wholes = np.floor(shifts + 0.5)
    distance = np.abs(np.arange(-2, 3) - (shifts - wholes)[:, None, None])
    near = (distance - 2) * distance**2 + 1
    far = ((5 - distance) * distance - 8) * distance + 4
    taps = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    rows = np.stack([frame[top : top + h] for frame in frames], axis=1)  # [h, T, width, 3]
    out = np.empty((h, len(frames), w + 4, 3), np.uint8)
    for old, new, whole, own in zip(rows, out, wholes.astype(int).tolist(), taps):
        first, last = (min(max(edge, 0), w) for edge in (-whole, width - whole))
        if first < last:
            left, right = max(first + whole - 2, 0), min(last + whole + 2, width)
            target = new[:, left - whole + 2 : right - whole + 2]
            edge = cv2.BORDER_REPLICATE  # PIL's, and garbage in the outer two columns of `out`
            cv2.filter2D(old[:, left:right], -1, own, target, delta=TRUNCATE, borderType=edge)
        new[:, : first + 2] = new[:, last + 2 :] = FILL
    return list(out[:, :, 2:-2].swapaxes(0, 1))
