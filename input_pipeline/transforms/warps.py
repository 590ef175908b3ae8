"""RandAugment's warps (Rotate, Shear, Translate) of uint8 clips.

A warp is a 3 x 3 matrix from pixel (x, y, 1) of the result to that of the frame it is read from; a
box is `(y, x, height, width)` in pixels of the full frame.
"""

import operator
import threading
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from input_pipeline.transforms.crops import Box

Clip = npt.NDArray[np.uint8]  # [T, H, W, 3], RGB, or one frame of it
Frames = Clip | Sequence[Clip]  # T arrays [H, W, 3] of one size
Matrix = npt.NDArray[np.float64]

FILL = 128  # of what lies outside the frame
TRUNCATE = -0.499  # PIL truncates where OpenCV rounds; just above -1/2 keeps integers as they are
_KEPT = 1 << 26  # bytes of one clip that a thread keeps


class _Scratch(threading.local):
    """Two clips per thread, in turn: fresh memory costs more than most operations."""

    def __init__(self) -> None:
        self.kept = [np.empty(0, np.uint8), np.empty(0, np.uint8)]


_scratch = _Scratch()


def empty(t: int, h: int, w: int) -> Clip:
    """Scratch memory `[t, h, w, 3]`, good until the thread's call after next."""
    count, kept = t * h * w * 3, _scratch.kept
    if count > _KEPT:
        return np.empty((t, h, w, 3), np.uint8)
    kept.reverse()
    if kept[0].size < count:
        kept[0] = np.empty(count, np.uint8)
    return kept[0][:count].reshape(t, h, w, 3)


def shift(x: float, y: float) -> Matrix:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _rotation(degrees: float, h: int, w: int) -> Matrix:
    matrix = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), -degrees, 1.0)
    return np.vstack([matrix, [0, 0, 1]])


# By name: `(argument, height, width of the frame) -> warp`.
WARPS: dict[str, Callable[[float, int, int], Matrix]] = {
    "Rotate": _rotation,
    "ShearX": lambda slope, h, w: np.array([[1, slope, slope / 2], [0, 1, 0], [0, 0, 1]]),
    "ShearY": lambda slope, h, w: np.array([[1, 0, 0], [slope, 1, slope / 2], [0, 0, 1]]),
    "TranslateX": lambda share, h, w: shift(share * w, 0),
    "TranslateY": lambda share, h, w: shift(0, share * h),
}


def axis(warp: Matrix) -> str:
    """ "x" or "y" if pixels move along that axis only and keep their size; "xy" if not."""
    if warp[0, 0] == warp[1, 1] == 1:
        if tuple(warp[1]) == (0, 1, 0):
            return "x"
        if tuple(warp[0]) == (1, 0, 0):
            return "y"
    return "xy"


def source(warp: Matrix, box: Box, margin: int, limit: Box) -> Box:
    """The part of `limit`, at least a pixel of it, that a box of the result is read from."""
    y, x, h, w = box
    corners = [(i, j, 1) for i in (x, x + w - 1) for j in (y, y + h - 1)]
    read = (warp @ np.array(corners, np.float64).T)[1::-1]  # y and x
    start, size = np.array(limit[:2]), np.array(limit[2:])
    low = np.floor(read.min(axis=1)).astype(int) - margin - start
    high = np.ceil(read.max(axis=1)).astype(int) + margin + 1 - start
    low = low.clip(0, size - 1)
    high = high.clip(low + 1, size)
    return (*(low + start).tolist(), *(high - low).tolist())


def warped(frames: Frames, warp: Matrix, have: Box, box: Box) -> Clip:
    """The box of what a warp makes of frames of which `frames` are the box `have`; bicubic."""
    if axis(warp) == "x":
        return _slid(frames, warp, have, box)
    if axis(warp) == "y":
        swap, axes = [1, 0, 2], operator.itemgetter(1, 0, 3, 2)
        slid = _slid(_transposed(frames), warp[swap][:, swap], axes(have), axes(box))
        return _transposed(slid)
    local = (shift(-have[1], -have[0]) @ warp @ shift(box[1], box[0]))[:2]
    how = (cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, cv2.BORDER_CONSTANT, (FILL,) * 3)
    out = empty(len(frames), *box[2:])
    for old, new in zip(frames, out):
        cv2.warpAffine(old, local, box[:1:-1], new, *how)
    return out


def fill_outside(clip: Clip, warp: Matrix, size: tuple[int, int], box: Box) -> None:
    """Fills what a warp reads outside a frame of `size`, in the box of its result."""
    local = (warp @ shift(box[1], box[0]))[:2]
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    clip[:, cv2.warpAffine(np.ones(size, np.uint8), local, box[:1:-1], flags=flags) == 0] = FILL


def _transposed(frames: Frames) -> Clip:
    h, w = frames[0].shape[:2]
    out = empty(len(frames), w, h)
    for old, new in zip(frames, out):
        cv2.transpose(old, dst=new)
    return out


def _slid(frames: Frames, warp: Matrix, have: Box, box: Box) -> Clip:
    """`warped` along the rows, with five taps that all pixels of a row share.

    Four times faster than `cv2.warpAffine`, and PIL's own kernel (bicubic, a = -1).
    """
    y, x, h, w = box
    _, slope, offset = warp[0]
    rows_or_frames = np.arange(y, y + h) if slope else np.zeros(len(frames))
    shifts = offset + x - have[1] + slope * rows_or_frames
    wholes = np.floor(shifts + 0.5)
    distance = np.abs(np.arange(-2, 3) - (shifts - wholes)[:, None, None])
    near = (distance - 2) * distance**2 + 1
    far = ((5 - distance) * distance - 8) * distance + 4
    taps = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    rows = slice(y - have[0], y - have[0] + h)
    if slope:  # row after row, of all frames at once
        clip = empty(len(frames), *frames[0][rows].shape[:2])
        for old, new in zip(frames, clip):
            np.copyto(new, old[rows])
        out = empty(len(frames), h, w + 4)
        pairs = zip(clip.transpose(1, 0, 2, 3), out.transpose(1, 0, 2, 3))
    else:
        out = empty(len(frames), h, w + 4)
        pairs = zip([frame[rows] for frame in frames], out)
    for (old, new), whole, own in zip(pairs, wholes.astype(int).tolist(), taps):
        first, last = (min(max(edge, 0), w) for edge in (-whole, have[3] - whole))
        if first < last:
            left, right = max(first + whole - 2, 0), min(last + whole + 2, have[3])
            target = new[:, left - whole + 2 : right - whole + 2]
            edge = cv2.BORDER_REPLICATE  # PIL's, and garbage in the outer two columns of `out`
            cv2.filter2D(old[:, left:right], -1, own, target, delta=TRUNCATE, borderType=edge)
        new[:, : first + 2] = new[:, last + 2 :] = FILL
    return out[:, :, 2:-2]
