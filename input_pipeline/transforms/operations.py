"""RandAugment's operations that act on grey levels, for uint8 clips: tables, and Color.

A table is uint8 `[1 or T, 256, 1 or 3]`: the new grey level by frame, old level and channel.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Clip = npt.NDArray[np.uint8]  # [T, H, W, 3], RGB
Frames = Clip | Sequence[npt.NDArray[np.uint8]]  # a clip, or T arrays [H, W, 3] of one size
Table = npt.NDArray[np.uint8]

# All operations, in the order in which a draw numbers them.
NAMES = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd"),
    *("Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY"),
    *("TranslateX", "TranslateY"),
)

# PIL truncates where OpenCV rounds; the little above -1/2 keeps exact integers as they are.
TRUNCATE = -0.499
_LEVELS = np.arange(256)


class Layer(NamedTuple):
    """One operation to apply; `argument` is in the operation's own unit (`augment.argument`)."""

    operation: str
    argument: float


def lookup(frames: Frames, table: Table, out: Clip) -> Clip:
    """Replaces the grey levels of T arrays `[H, W, 3]`; writes to `out` and returns it."""
    if len(table) > 1:
        same = (table == _LEVELS[:, None]).all(axis=(1, 2))
        for source, own, unchanged, target in zip(frames, table, same, out):
            if unchanged:  # many pictures have their darkest and brightest levels already
                np.copyto(target, source)
            else:
                cv2.LUT(source, own[None], dst=target)
        return out
    levels = table[0, :, 0]
    invert = np.array_equal(levels, 255 - _LEVELS)
    mask = bool(np.array_equal(levels, _LEVELS & int(levels[255])))
    for source, target in zip(frames, out):
        if invert:  # this and masks: ten times faster than a table
            cv2.bitwise_not(source, dst=target)
        elif mask:
            np.bitwise_and(source, levels[255], out=target)
        else:
            cv2.LUT(source, table, dst=target)
    return out


def compose(first: Table, second: Table) -> Table:
    """The one table that does the work of two."""
    return np.take_along_axis(second, first.astype(np.intp), axis=1)


def _one_table(levels: npt.ArrayLike) -> Table:
    return np.asarray(levels).astype(np.uint8)[None, :, None]


def _solarize(threshold: float) -> Table:
    return _one_table(np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))


def _solarize_add(add: float) -> Table:
    raised = np.minimum(_LEVELS + int(add), 255)
    return _one_table(np.where(_LEVELS < 128, raised, _LEVELS))


def _blend(base: float, factor: float) -> npt.NDArray[np.uint8]:
    """`[256]`: base + factor * (v - base), in the single precision of PIL's blend."""
    levels = _LEVELS.astype(np.float32) - np.float32(base)
    return (np.float32(base) + np.float32(factor) * levels).clip(0, 255).astype(np.uint8)


# Tables by name, from the argument alone.
TABLES: dict[str, Callable[[float], Table]] = {
    "Invert": lambda _: _one_table(255 - _LEVELS),
    # 0 bits, the top level of the increasing form, is a black frame, as in timm.
    "Posterize": lambda bits: _one_table(_LEVELS & (256 - 2 ** (8 - int(bits)))),
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Brightness": lambda factor: _one_table(_blend(0.0, factor)),
}


def auto_contrast_tables(frames: Frames) -> Table:
    """Tables that spread each frame's and channel's levels over 0 to 255."""
    # Over h first and with long rows, which keeps to contiguous vectors.
    rows = [frame.reshape(len(frame), -1) for frame in frames]
    shape = (len(frames), -1, 3)
    low = np.stack([r.min(axis=0) for r in rows]).reshape(shape).min(axis=1).astype(np.float64)
    high = np.stack([r.max(axis=0) for r in rows]).reshape(shape).max(axis=1).astype(np.float64)
    low, high = low[:, None], high[:, None]
    flat = high <= low
    scale = np.where(flat, 1.0, 255.0 / np.maximum(high - low, 1.0))
    offset = np.where(flat, 0.0, -low * scale)
    tables = np.arange(256.0)[None, :, None] * scale + offset
    return tables.clip(0, 255).astype(np.uint8)


def equalize_tables(frames: Frames, before: Table | None = None) -> Table:
    """Tables that make each frame's and channel's levels equally frequent.

    Args:
        frames: T whole frames.
        before: a table that the frames are still to go through first.
    """
    counts = np.array(
        [[cv2.calcHist([f], [c], None, [256], [0, 256]).ravel() for c in range(3)] for f in frames]
    ).astype(np.int64)  # [T, 3, 256]
    if before is not None:
        rows = np.arange(counts.size // 256).reshape(*counts.shape[:2], 1) * 256
        moved = np.bincount((rows + before.transpose(0, 2, 1)).ravel(), counts.ravel(), counts.size)
        counts = moved.astype(np.int64).reshape(counts.shape)
    total = counts.sum(axis=2)
    last = 255 - (counts[:, :, ::-1] > 0).argmax(axis=2)
    step = (total - np.take_along_axis(counts, last[..., None], axis=2)[..., 0]) // 255
    step = step[..., None]
    below = counts.cumsum(axis=2) - counts
    tables = np.where(step > 0, (step // 2 + below) // np.maximum(step, 1), _LEVELS)
    return np.ascontiguousarray(tables.clip(0, 255).astype(np.uint8).transpose(0, 2, 1))


def contrast_tables(frames: Frames, factor: float) -> Table:
    """Tables that blend each frame with its mean grey level."""
    greys = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames)
    means = [int(cv2.sumElems(grey)[0] / grey.size + 0.5) for grey in greys]
    return np.stack([_blend(mean, factor) for mean in means])[..., None]


def color(frames: Frames, factor: float, out: Clip) -> Clip:
    """Blends each of T frames `[H, W, 3]` with its grey self, into `out` `[T, H, W, 3]`."""
    for source, target in zip(frames, out):
        cv2.cvtColor(cv2.cvtColor(source, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB, dst=target)
        cv2.addWeighted(source, factor, target, 1 - factor, TRUNCATE, dst=target)
    return out
