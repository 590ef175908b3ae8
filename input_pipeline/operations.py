"""The 15 operations of RandAugment on uint8 clips: PIL's pixels, made by OpenCV and NumPy."""

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]  # [T, H, W, 3], RGB

FILL = (128, 128, 128)
# PIL truncates where OpenCV rounds; the little above -1/2 keeps exact integers as they are.
_TRUNCATE = -0.499


def _lookup(frames: Frames, tables: npt.NDArray[np.uint8]) -> Frames:
    """Replaces grey levels by table: [256] for all frames, or [T, 256, 1 or 3] for each one."""
    out = np.empty_like(frames)
    if tables.ndim == 1:
        tables = np.broadcast_to(tables[:, None], (len(frames), 256, 1))
    for source, table, target in zip(frames, tables, out):
        cv2.LUT(source, table[None], dst=target)
    return out


def _blend_table(base: float, factor: float) -> npt.NDArray[np.uint8]:
    """Table of base + factor * (v - base), in the single precision of PIL's blend."""
    levels = np.arange(256, dtype=np.float32) - np.float32(base)
    return (np.float32(base) + np.float32(factor) * levels).clip(0, 255).astype(np.uint8)


def _auto_contrast(frames: Frames, _: float) -> Frames:
    t, h, w, _c = frames.shape
    rows = frames.reshape(t, h, w * 3)  # reducing over h first keeps long contiguous vectors
    low = rows.min(axis=1).reshape(t, w, 3).min(axis=1).astype(np.float64)[:, None]
    high = rows.max(axis=1).reshape(t, w, 3).max(axis=1).astype(np.float64)[:, None]
    flat = high <= low
    scale = np.where(flat, 1.0, 255.0 / np.maximum(high - low, 1.0))
    offset = np.where(flat, 0.0, -low * scale)
    tables = np.arange(256.0)[None, :, None] * scale + offset
    return _lookup(frames, tables.clip(0, 255).astype(np.uint8))


def _equalize(frames: Frames, _: float) -> Frames:
    counts = np.array(
        [[cv2.calcHist([f], [c], None, [256], [0, 256]).ravel() for c in range(3)] for f in frames]
    ).astype(np.int64)
    total = counts.sum(axis=2)
    last = 255 - (counts[:, :, ::-1] > 0).argmax(axis=2)
    step = (total - np.take_along_axis(counts, last[..., None], axis=2)[..., 0]) // 255
    step = step[..., None]
    below = counts.cumsum(axis=2) - counts
    tables = np.where(step > 0, (step // 2 + below) // np.maximum(step, 1), np.arange(256))
    return _lookup(frames, tables.clip(0, 255).astype(np.uint8).transpose(0, 2, 1).copy())


def _posterize(frames: Frames, bits: float) -> Frames:
    # 0 bits, the top level of the increasing form, is a black frame, as in timm.
    return frames & np.uint8(256 - 2 ** (8 - int(bits)))


def _solarize(frames: Frames, threshold: float) -> Frames:
    levels = np.arange(256)
    return _lookup(frames, np.where(levels < threshold, levels, 255 - levels).astype(np.uint8))


def _solarize_add(frames: Frames, add: float) -> Frames:
    levels = np.arange(256)
    raised = np.minimum(levels + int(add), 255)
    return _lookup(frames, np.where(levels < 128, raised, levels).astype(np.uint8))


def _contrast(frames: Frames, factor: float) -> Frames:
    means = [int(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY).mean() + 0.5) for f in frames]
    return _lookup(frames, np.stack([_blend_table(m, factor) for m in means])[..., None])


def _color(frames: Frames, factor: float) -> Frames:
    out = np.empty_like(frames)
    for source, target in zip(frames, out):
        grey = cv2.cvtColor(cv2.cvtColor(source, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        cv2.addWeighted(source, factor, grey, 1 - factor, _TRUNCATE, dst=target)
    return out


def _sharpness(frames: Frames, factor: float) -> Frames:
    # PIL smooths with weights 5 (centre) and 1 (neighbours) of 13: 9 box means and 4 centres.
    centre, box = factor + (1 - factor) * 4 / 13, (1 - factor) * 9 / 13
    out = frames.copy()
    for source, target in zip(frames, out):
        sharp = cv2.addWeighted(source, centre, cv2.blur(source, (3, 3)), box, _TRUNCATE)
        target[1:-1, 1:-1] = sharp[1:-1, 1:-1]  # PIL leaves the outermost pixels as they are
    return out


def _rotate(frames: Frames, degrees: float) -> Frames:
    height, width = frames.shape[1:3]
    centre = ((width - 1) / 2, (height - 1) / 2)
    matrix = cv2.getRotationMatrix2D(centre, degrees, 1.0)
    out = np.empty_like(frames)
    for source, target in zip(frames, out):
        cv2.warpAffine(
            source, matrix, (width, height), target, cv2.INTER_CUBIC, cv2.BORDER_CONSTANT, FILL
        )
    return out


def _slide(rows: Frames, shifts: npt.NDArray[np.float64]) -> Frames:
    """Reads row y of an [R, Y, W, 3] array at x + shifts[y] (pixels), bicubic, filled outside.

    A shear or translation moves along one axis only, so a few taps do, and all pixels of a row
    share their weights: several times faster than a general warp. PIL's kernel has a = -1.
    """
    width = rows.shape[2]
    out = np.full_like(rows, FILL[0])
    wholes = np.floor(shifts + 0.5).astype(int)
    distance = np.abs(np.arange(-2, 3) - (shifts - wholes)[:, None, None])
    near = (distance - 2) * distance**2 + 1
    far = ((5 - distance) * distance - 8) * distance + 4
    taps = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    for y, whole in enumerate(wholes):
        first, last = max(0, -whole), min(width, width - whole)
        if first < last:
            moved = cv2.filter2D(
                rows[:, y], -1, taps[y], delta=_TRUNCATE, borderType=cv2.BORDER_REPLICATE
            )
            out[:, y, first:last] = moved[:, first + whole : last + whole]
    return out


def _transpose(frames: Frames) -> Frames:
    out = np.empty((frames.shape[0], frames.shape[2], frames.shape[1], 3), np.uint8)
    for source, target in zip(frames, out):
        cv2.transpose(source, dst=target)
    return out


def _shear_x(frames: Frames, slope: float) -> Frames:
    return _slide(frames, slope * (np.arange(frames.shape[1], dtype=np.float64) + 0.5))


def _translate_x(frames: Frames, fraction: float) -> Frames:
    width = frames.shape[2]
    return _slide(frames.reshape(-1, 1, width, 3), np.array([fraction * width])).reshape(
        frames.shape
    )


OPERATIONS: dict[str, Callable[[Frames, float], Frames]] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": lambda frames, _: 255 - frames,
    "Rotate": _rotate,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Color": _color,
    "Contrast": _contrast,
    "Brightness": lambda frames, factor: _lookup(frames, _blend_table(0.0, factor)),
    "Sharpness": _sharpness,
    "ShearX": _shear_x,
    "ShearY": lambda frames, slope: _transpose(_shear_x(_transpose(frames), slope)),
    "TranslateX": _translate_x,
    "TranslateY": lambda frames, part: _transpose(_translate_x(_transpose(frames), part)),
}
