"""RandAugment (arXiv:1909.13719) of uint8 clips, as in timm 0.4.12 and VideoMAE; random erasing.

Every frame of a clip gets the same operations with the same arguments. Neighbouring operations on
grey levels are one lookup table, and only what the crop needs is computed.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from input_pipeline.sources.records import DataError
from input_pipeline.transforms.crops import Box, resize

Frame = np.ndarray  # uint8 [H, W, 3], RGB
Table = np.ndarray  # uint8 [1 or T, 256, 1 or 3]: new level by frame, old level and channel

# All operations, in the order in which a draw numbers them.
NAMES = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd"),
    *("Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY"),
    *("TranslateX", "TranslateY"),
)
_FORM = "rand-m<magnitude 0..10>-n<layers>[-mstd<standard deviation>]-inc1"
_NUMBER = r"\d+(?:\.\d+)?"
_PATTERN = re.compile(rf"rand-m({_NUMBER})-n(\d+)(?:-mstd({_NUMBER}))?-inc1")
_APPLIED = 0.5  # Probability of a drawn operation.
_FILL = (128,) * 3  # Of what lies outside the frame.
_TRUNCATE = -0.499  # PIL truncates where OpenCV rounds; just above -1/2 keeps integers as they are.
_LEVELS = np.arange(256)


class Policy(NamedTuple):
    """How many operations are drawn, with replacement, and their levels, from 0 to 10."""

    magnitude: float
    num_layers: int
    magnitude_std: float


class Layer(NamedTuple):
    """An operation and its argument, see `argument`."""

    operation: str
    argument: float


def parse_rand_augment(text: str) -> Policy:
    """Reads a policy in timm's notation, such as "rand-m7-n4-mstd0.5-inc1"."""
    match = _PATTERN.fullmatch(text)
    if match is None or float(match[1]) > 10:
        raise DataError(f"data.rand_augment={text!r} is not of the form {_FORM}")
    return Policy(float(match[1]), int(match[2]), float(match[3] or 0))


def argument(operation: str, level: float, sign: float) -> float:
    """Turns a level from 0 to 10 and a direction, +1 or -1, into the argument of an operation.

    Rotate: degrees. ShearX/Y: pixels per pixel. TranslateX/Y: fraction of the side. Posterize:
    bits kept. Solarize: threshold. SolarizeAdd: grey levels. Color, Contrast, Brightness,
    Sharpness: blend factor, 1 changes nothing. AutoContrast, Equalize, Invert take none (0).
    """
    strength = level / 10
    match operation:
        case "Rotate":
            return sign * 30.0 * strength
        case "ShearX" | "ShearY":
            return sign * 0.3 * strength
        case "TranslateX" | "TranslateY":
            return sign * 0.45 * strength
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return 1.0 + sign * 0.9 * strength
        case "Posterize":
            return 4 - int(strength * 4)
        case "Solarize":
            return 256 - int(strength * 256)
        case "SolarizeAdd":
            return min(128, int(strength * 110))
        case _:
            return 0.0


def draw_layers(rng: np.random.Generator, policy: Policy) -> list[Layer]:
    n = policy.num_layers
    names = [NAMES[i] for i in rng.integers(len(NAMES), size=n)]
    applied = rng.random(n) < _APPLIED
    levels = rng.normal(policy.magnitude, policy.magnitude_std, n).clip(0.0, 10.0).tolist()
    signs = rng.choice([-1.0, 1.0], n).tolist()
    drawn = zip(names, applied, levels, signs)
    return [Layer(name, argument(name, level, sign)) for name, keep, level, sign in drawn if keep]


def augmented_clip(
    out: np.ndarray, frames: Sequence[Frame], layers: Sequence[Layer], box: Box, flip: bool = False
) -> None:
    """Applies layers to full frames, which stay as they are, crops to a box, scales and mirrors.

    Writes into `out`, uint8 `[T, h, w, 3]`.
    """
    for target, frame in zip(out, apply(frames, layers, box)):
        resize(frame, target.shape[0], target.shape[1], target)
        if flip:
            cv2.flip(target, 1, dst=target)


def apply(frames: Sequence[Frame], layers: Sequence[Layer], box: Box) -> Sequence[Frame]:
    """The box of what layers make of full frames; may be parts of the frames.

    Each layer asks those before it for as much of the full frame as it needs.
    """
    size = frames[0].shape[:2]
    whole: Box = (0, 0, *size)
    if not layers:
        return _cut(frames, whole, box)
    *before, (name, value) = layers
    if name in _WARPS:
        warp = _WARPS[name](value, *size)
        given = _source(warp, box, size)
        return _warped(apply(frames, before, given), warp, given, box)
    if name == "Color":
        return [_color(frame, value) for frame in apply(frames, before, box)]
    if name == "Sharpness":
        given = _source(np.eye(3), box, size)
        sharp = [_sharpness(frame, value) for frame in apply(frames, before, given)]
        return _cut(sharp, given, box)
    before, table = list(layers), _levels(_LEVELS)
    while before and before[-1].operation in _TABLES:
        name, value = before.pop()
        table = _composed(_TABLES[name](value), table)
    if before and before[-1].operation in _STATISTICS:
        name, value = before.pop()
        full = apply(frames, before, whole)
        table = _composed(_STATISTICS[name](full, value), table)
        cut = _cut(full, whole, box)
    else:
        cut = apply(frames, before, box)
    return [cv2.LUT(frame, table[i % len(table)][None]) for i, frame in enumerate(cut)]


def _cut(frames: Sequence[Frame], have: Box, wanted: Box) -> Sequence[Frame]:
    y, x = wanted[0] - have[0], wanted[1] - have[1]
    return [frame[y : y + wanted[2], x : x + wanted[3]] for frame in frames]


# --- Warps: matrices from pixel (x, y, 1) of the result to that of the frame it is read from. ---


def _shift(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _rotation(degrees: float, h: int, w: int) -> np.ndarray:
    matrix = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), -degrees, 1.0)
    return np.vstack([matrix, [0, 0, 1]])


# By name: `(argument, height, width of the frame) -> warp`.
_WARPS: dict[str, Callable[[float, int, int], np.ndarray]] = {
    "Rotate": _rotation,
    "ShearX": lambda slope, h, w: np.array([[1, slope, slope / 2], [0, 1, 0], [0, 0, 1]]),
    "ShearY": lambda slope, h, w: np.array([[1, 0, 0], [slope, 1, slope / 2], [0, 0, 1]]),
    "TranslateX": lambda share, h, w: _shift(share * w, 0),
    "TranslateY": lambda share, h, w: _shift(0, share * h),
}


def _source(warp: np.ndarray, box: Box, size: tuple[int, int]) -> Box:
    """The part of a frame that a box of a warp's result is read from, three pixels around it."""
    y, x, h, w = box
    corners = [(i, j, 1) for i in (x, x + w - 1) for j in (y, y + h - 1)]
    read = (warp @ np.array(corners, np.float64).T)[1::-1]  # y and x
    limit = np.array(size)
    low = (np.floor(read.min(axis=1)).astype(int) - 3).clip(0, limit - 1)
    high = (np.ceil(read.max(axis=1)).astype(int) + 4).clip(low + 1, limit)
    return (*low.tolist(), *(high - low).tolist())


def _warped(frames: Sequence[Frame], warp: np.ndarray, have: Box, box: Box) -> Sequence[Frame]:
    """The box of what a warp makes of frames, of which `frames` are the box `have`; bicubic."""
    local = (_shift(-have[1], -have[0]) @ warp @ _shift(box[1], box[0]))[:2]
    how = (cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, cv2.BORDER_CONSTANT, _FILL)
    return [cv2.warpAffine(frame, local, box[:1:-1], None, *how) for frame in frames]


# --- Tables of grey levels ---


def _composed(first: Table, then: Table) -> Table:
    return np.take_along_axis(then, first.astype(int), axis=1)


def _levels(levels: npt.ArrayLike) -> Table:
    return np.asarray(levels).astype(np.uint8)[None, :, None]


def _blend(base: npt.ArrayLike, factor: float) -> Table:
    """base + factor * (level - base), in PIL's single precision; base `[T]` or a number."""
    start = np.asarray(base, np.float32).reshape(-1, 1)
    levels = start + np.float32(factor) * (_LEVELS.astype(np.float32) - start)
    return levels.clip(0, 255).astype(np.uint8)[..., None]


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


def _auto_contrast(frames: Sequence[Frame], _: float) -> Table:
    """Spreads the levels of each frame and channel over 0 to 255."""
    rows = [frame.reshape(len(frame), -1) for frame in frames]  # long ones, for the sake of speed
    shape = (len(rows), -1, 3)
    low = np.array([row.min(axis=0) for row in rows], np.float64).reshape(shape).min(axis=1)
    high = np.array([row.max(axis=0) for row in rows], np.float64).reshape(shape).max(axis=1)
    scale = np.where(high > low, 255.0 / np.maximum(high - low, 1.0), 1.0)
    offset = np.where(high > low, -low * scale, 0.0)
    levels = _LEVELS[:, None] * scale[:, None] + offset[:, None]
    return levels.clip(0, 255).astype(np.uint8)


def _equalize(frames: Sequence[Frame], _: float) -> Table:
    """Makes the levels of each frame and channel equally frequent."""
    found = [[cv2.calcHist([f], [c], None, [256], [0, 256]) for c in range(3)] for f in frames]
    counts = np.array(found).astype(np.int64).reshape(len(frames), 3, 256)
    brightest = 255 - (counts[:, :, ::-1] > 0).argmax(axis=2, keepdims=True)
    step = (counts.sum(axis=2, keepdims=True) - np.take_along_axis(counts, brightest, 2)) // 255
    below = counts.cumsum(axis=2) - counts
    levels = np.where(step > 0, (step // 2 + below) // np.maximum(step, 1), _LEVELS)
    return np.ascontiguousarray(levels.clip(0, 255).astype(np.uint8).transpose(0, 2, 1))


def _contrast(frames: Sequence[Frame], factor: float) -> Table:
    """Blends each frame with its mean grey level."""
    greys = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames)
    return _blend([int(cv2.sumElems(grey)[0] / grey.size + 0.5) for grey in greys], factor)


# Tables that need statistics of whole frames.
_STATISTICS: dict[str, Callable[[Sequence[Frame], float], Table]] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Contrast": _contrast,
}


def _color(frame: Frame, factor: float) -> Frame:
    grey = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(frame, factor, grey, 1 - factor, _TRUNCATE, grey)


def _sharpness(frame: Frame, factor: float) -> Frame:
    # PIL smooths with weights 5 (centre) and 1 (neighbours) of 13: 9 box means and 4 centres.
    centre, box = factor + (1 - factor) * 4 / 13, (1 - factor) * 9 / 13
    new = cv2.blur(frame, (3, 3))
    cv2.addWeighted(frame, centre, new, box, _TRUNCATE, new)
    for rim in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        new[rim] = frame[rim]  # PIL leaves the outermost pixels as they are.
    return new


def erasing_box(rng: np.random.Generator, size: int, probability: float) -> np.ndarray:
    """The one box of random erasing (arXiv:1708.04896) for a square image of side `size`.

    A box as large as the image is drawn again, 10 times at most. int32 `[4]` (y, x, h, w) in
    pixels; zeros when nothing is to be erased.
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
