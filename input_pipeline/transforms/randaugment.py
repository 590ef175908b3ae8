"""RandAugment (arXiv:1909.13719) of uint8 clips, as in timm 0.4.12 and VideoMAE; random erasing.

Every frame of a clip gets the same operations with the same arguments. Neighbouring operations on
grey levels are one lookup table, and only what the crop needs is computed.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from input_pipeline.transforms.crops import Box, resize

Frame = np.ndarray  # uint8 [H, W, 3], RGB
Table = np.ndarray  # uint8 [256, 1 or 3]: new level by old level and channel
Matrix = np.ndarray  # 3 x 3: from pixel (x, y, 1) of the result to the one it reads

# All operations, in the order in which a draw numbers them.
NAMES = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd"),
    *("Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY"),
    *("TranslateX", "TranslateY"),
)
MAX_LEVEL = 10.0

_FORM = "rand-m<magnitude 0..10>-n<layers>[-mstd<standard deviation>][-inc<0 or 1>]"
_NUMBER = r"\d+(?:\.\d+)?"
_PATTERN = re.compile(rf"rand-m({_NUMBER})-n(\d+)(?:-mstd({_NUMBER}))?(?:-inc([01]))?")


class Policy(NamedTuple):
    """How many operations are drawn, with replacement, and their levels, from 0 to 10."""

    magnitude: float
    num_layers: int
    magnitude_std: float = 0.0
    probability: float = 0.5  # That a drawn operation is applied.
    increasing: bool = False  # Whether all arguments grow stronger with the level.


class Layer(NamedTuple):
    """An operation and its argument, see `argument`."""

    operation: str
    argument: float


def parse_rand_augment(text: str) -> Policy:
    """Reads a policy in timm's notation, such as "rand-m7-n4-mstd0.5-inc1".

    Raises:
        ValueError: the text is not of that form or its magnitude is above 10.
    """
    match = _PATTERN.fullmatch(text)
    if match is None or float(match[1]) > MAX_LEVEL:
        raise ValueError(f"RandAugment string {text!r} is not of the form {_FORM}")
    return Policy(float(match[1]), int(match[2]), float(match[3] or 0), increasing=match[4] == "1")


def argument(operation: str, level: float, sign: float, increasing: bool) -> float:
    """Turns a level from 0 to 10 and a direction, +1 or -1, into the argument of an operation.

    Rotate: degrees. ShearX/Y: pixels per pixel. TranslateX/Y: fraction of the side. Posterize:
    bits kept. Solarize: threshold. SolarizeAdd: grey levels. Color, Contrast, Brightness,
    Sharpness: blend factor, 1 changes nothing. AutoContrast, Equalize, Invert take none (0).
    """
    strength = level / MAX_LEVEL
    match operation:
        case "Rotate":
            return sign * 30.0 * strength
        case "ShearX" | "ShearY":
            return sign * 0.3 * strength
        case "TranslateX" | "TranslateY":
            return sign * 0.45 * strength
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return 1.0 + sign * 0.9 * strength if increasing else 0.1 + 1.8 * strength
        case "Posterize":
            return 4 - int(strength * 4) if increasing else int(strength * 4)
        case "Solarize":
            return 256 - int(strength * 256) if increasing else int(strength * 256)
        case "SolarizeAdd":
            return min(128, int(strength * 110))
        case _:
            return 0.0


def draw_layers(rng: np.random.Generator, policy: Policy) -> list[Layer]:
    """Draws the operations of one clip."""
    n = policy.num_layers
    names = [NAMES[i] for i in rng.integers(len(NAMES), size=n)]
    applied = rng.random(n) < policy.probability
    levels = rng.normal(policy.magnitude, policy.magnitude_std, n).clip(0.0, MAX_LEVEL)
    signs = rng.choice([-1.0, 1.0], n)
    return [
        Layer(name, argument(name, float(level), float(sign), policy.increasing))
        for name, keep, level, sign in zip(names, applied, levels, signs)
        if keep
    ]


def augmented_clip(
    out: np.ndarray,
    frames: Sequence[Frame],
    layers: Sequence[Layer],
    box: Box,
    size: int,
    flip: bool = False,
) -> np.ndarray:
    """Applies layers to full frames, crops them to a box, scales and mirrors.

    Args:
        out: uint8 `[T, size, size, 3]` to write into and return.
        frames: T arrays of one size; never written to.
        layers: `draw_layers`; none only crops.
        box: the pixels to keep.
        size: side of the result.
        flip: mirror left and right.
    """
    steps = plan(layers, frames[0].shape[:2], box)
    for target, frame in zip(out, frames):
        resize(apply(frame, steps, box), size, size, target)
        if flip:
            cv2.flip(target, 1, dst=target)
    return out


class Step(NamedTuple):
    """A layer with all that is the same for every frame."""

    operation: str
    argument: Any
    """A lookup table or a matrix in place of the number, for operations that are one."""
    source: Box
    """What it is given of the full frame; its result is the source of the next step."""


def plan(layers: Sequence[Layer], size: tuple[int, int], box: Box) -> list[Step]:
    """From the last layer to the first: what each needs for a box of the last one's result."""
    steps: list[Step] = []
    found: Any
    for name, value in reversed(layers):
        given, found = box, value
        if name in _STATISTICS:
            given = (0, 0, *size)
        elif name in _TABLES:
            found = _TABLES[name](value)
        elif name == "Sharpness":
            given = _source(np.eye(3), box, 1, size)
        elif name in _WARPS:
            warp = _WARPS[name](value, *size)
            given = _source(warp, box, 3, size)
            found = _shift(-given[1], -given[0]) @ warp @ _shift(box[1], box[0])
        steps.insert(0, Step(name, found, given))
        box = given
    return steps


def apply(frame: Frame, steps: Sequence[Step], box: Box) -> Frame:
    """The box of what the steps of its `plan` make of a full frame; may be a part of the frame."""
    boxes = [step.source for step in steps] + [box]
    frame = _cut(frame, (0, 0, *frame.shape[:2]), boxes[0])
    table: Table | None = None
    for (name, value, source), wanted in zip(steps, boxes[1:]):
        if name in _TABLES:
            table = value if table is None else np.take_along_axis(value, table.astype(int), axis=0)
            continue
        frame, table = _lookup(frame, table), None
        if name in _WARPS:
            how = (cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, cv2.BORDER_CONSTANT, (_FILL,) * 3)
            frame = cv2.warpAffine(frame, value[:2], wanted[:1:-1], None, *how)
            continue
        if name in _STATISTICS:
            table = _STATISTICS[name](frame, value)
        else:
            frame = _PIXELS[name](frame, value)
        frame = _cut(frame, source, wanted)
    return _lookup(frame, table)


def _cut(frame: Frame, have: Box, wanted: Box) -> Frame:
    y, x = wanted[0] - have[0], wanted[1] - have[1]
    return frame[y : y + wanted[2], x : x + wanted[3]]


def _lookup(frame: Frame, table: Table | None) -> Frame:
    # Many frames have their darkest and brightest levels already.
    if table is None or (table == _LEVELS[:, None]).all():
        return frame
    return cv2.LUT(frame, table[None])


def _source(warp: Matrix, box: Box, margin: int, size: tuple[int, int]) -> Box:
    """The part of a frame, at least a pixel of it, that a box of a warp's result is read from."""
    y, x, h, w = box
    corners = [(i, j, 1) for i in (x, x + w - 1) for j in (y, y + h - 1)]
    read = (warp @ np.array(corners, np.float64).T)[1::-1]  # y and x
    limit = np.array(size)
    low = (np.floor(read.min(axis=1)).astype(int) - margin).clip(0, limit - 1)
    high = (np.ceil(read.max(axis=1)).astype(int) + margin + 1).clip(low + 1, limit)
    return (*low.tolist(), *(high - low).tolist())


def _shift(x: float, y: float) -> Matrix:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _rotation(degrees: float, h: int, w: int) -> Matrix:
    matrix = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), -degrees, 1.0)
    return np.vstack([matrix, [0, 0, 1]])


_LEVELS = np.arange(256)
_FILL = 128  # of what lies outside the frame
_TRUNCATE = -0.499  # PIL truncates where OpenCV rounds; just above -1/2 keeps integers as they are

# Matrices from the argument and the height and width of the frame. OpenCV's bicubic kernel is a
# little softer than PIL's.
_WARPS: dict[str, Callable[[float, int, int], Matrix]] = {
    "Rotate": _rotation,
    "ShearX": lambda slope, h, w: np.array([[1, slope, slope / 2], [0, 1, 0], [0, 0, 1]]),
    "ShearY": lambda slope, h, w: np.array([[1, 0, 0], [slope, 1, slope / 2], [0, 0, 1]]),
    "TranslateX": lambda share, h, w: _shift(share * w, 0),
    "TranslateY": lambda share, h, w: _shift(0, share * h),
}


def _levels(levels: npt.ArrayLike) -> Table:
    return np.asarray(levels).astype(np.uint8)[:, None]


def _blend(base: float, factor: float) -> Table:
    """base + factor * (level - base), in PIL's single precision."""
    start = np.float32(base)
    return _levels((start + np.float32(factor) * (_LEVELS.astype(np.float32) - start)).clip(0, 255))


# Tables from the argument alone.
_TABLES: dict[str, Callable[[float], Table]] = {
    "Invert": lambda _: _levels(255 - _LEVELS),
    # 0 bits, the top level of the increasing form, is a black frame, as in timm.
    "Posterize": lambda bits: _levels(_LEVELS & (256 - 2 ** (8 - int(bits)))),
    "Solarize": lambda bound: _levels(np.where(bound > _LEVELS, _LEVELS, 255 - _LEVELS)),
    "SolarizeAdd": lambda add: _levels(
        np.where(_LEVELS < 128, np.minimum(_LEVELS + int(add), 255), _LEVELS)
    ),
    "Brightness": lambda factor: _blend(0.0, factor),
}


def _auto_contrast(frame: Frame, _: float) -> Table:
    """Spreads the levels of each channel over 0 to 255."""
    rows = frame.reshape(len(frame), -1)  # long ones, for the sake of speed
    low = rows.min(axis=0).reshape(-1, 3).min(axis=0).astype(np.float64)
    high = rows.max(axis=0).reshape(-1, 3).max(axis=0).astype(np.float64)
    scale = np.where(high > low, 255.0 / np.maximum(high - low, 1.0), 1.0)
    offset = np.where(high > low, -low * scale, 0.0)
    return (_LEVELS[:, None] * scale + offset).clip(0, 255).astype(np.uint8)


def _equalize(frame: Frame, _: float) -> Table:
    """Makes the levels of each channel equally frequent."""
    found = [cv2.calcHist([frame], [c], None, [256], [0, 256]).ravel() for c in range(3)]
    counts = np.array(found).astype(np.int64)
    brightest = 255 - (counts[:, ::-1] > 0).argmax(axis=1, keepdims=True)
    step = (counts.sum(axis=1, keepdims=True) - np.take_along_axis(counts, brightest, 1)) // 255
    below = counts.cumsum(axis=1) - counts
    levels = np.where(step > 0, (step // 2 + below) // np.maximum(step, 1), _LEVELS)
    return np.ascontiguousarray(levels.clip(0, 255).astype(np.uint8).T)


def _contrast(frame: Frame, factor: float) -> Table:
    """Blends with the mean grey level."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return _blend(int(cv2.sumElems(grey)[0] / grey.size + 0.5), factor)


# Tables that need statistics of the whole frame.
_STATISTICS: dict[str, Callable[[Frame, float], Table]] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Contrast": _contrast,
}


def _color(frame: Frame, factor: float) -> Frame:
    grey = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(frame, factor, grey, 1 - factor, _TRUNCATE)


def _sharpness(frame: Frame, factor: float) -> Frame:
    # PIL smooths with weights 5 (centre) and 1 (neighbours) of 13: 9 box means and 4 centres.
    centre, box = factor + (1 - factor) * 4 / 13, (1 - factor) * 9 / 13
    new = cv2.addWeighted(frame, centre, cv2.blur(frame, (3, 3)), box, _TRUNCATE)
    for rim in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        new[rim] = frame[rim]  # PIL leaves the outermost pixels as they are.
    return new


# From the pixels of a frame to others; Sharpness looks one pixel further.
_PIXELS: dict[str, Callable[[Frame, float], Frame]] = {"Color": _color, "Sharpness": _sharpness}


def erasing_box(rng: np.random.Generator, size: int, probability: float) -> np.ndarray:
    """The one box of random erasing (arXiv:1708.04896) for a square image of side `size`.

    Area is uniform in [0.02, 1/3] of the image, aspect h / w log-uniform in [0.3, 1/0.3]; a box
    as large as the image is drawn again, 10 times at most.

    Returns:
        int32 `[4]` (y, x, h, w) in pixels; zeros when nothing is to be erased.
    """
    if rng.random() >= probability:
        return np.zeros(4, np.int32)
    for _ in range(10):
        area = rng.uniform(0.02, 1 / 3) * size * size
        aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < size and w < size:
            y, x = rng.integers(0, [size - h, size - w], endpoint=True)
            return np.array([y, x, h, w], np.int32)
    return np.zeros(4, np.int32)
