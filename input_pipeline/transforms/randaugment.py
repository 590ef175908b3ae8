"""RandAugment (arXiv:1909.13719) of uint8 clips, as in timm 0.4.12 and VideoMAE; random erasing.

Every frame of a clip gets the same operations with the same arguments. Operations on grey levels
are composed into one lookup table, neighbouring warps into one affine map, and only the crop is
computed, or what the crop needs.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from input_pipeline.transforms import crops, warps
from input_pipeline.transforms.crops import Box
from input_pipeline.transforms.warps import TRUNCATE, WARPS, Clip, Frames

Table = npt.NDArray[np.uint8]  # [1 or T, 256, 1 or 3]: new level by frame, old level and channel

# All operations, in the order in which a draw numbers them.
NAMES = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd"),
    *("Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY"),
    *("TranslateX", "TranslateY"),
)
MAX_LEVEL = 10.0

_LEVELS = np.arange(256)
_FORM = "rand-m<magnitude 0..10>-n<layers>[-mstd<standard deviation>][-inc<0 or 1>]"
_NUMBER = r"\d+(?:\.\d+)?"
_PATTERN = re.compile(rf"rand-m({_NUMBER})-n(\d+)(?:-mstd({_NUMBER}))?(?:-inc([01]))?")


class Policy(NamedTuple):
    """How RandAugment draws its operations.

    Attributes:
        magnitude: mean level, from 0 to 10.
        num_layers: operations drawn per clip, with replacement.
        magnitude_std: standard deviation of the level.
        probability: chance that a drawn operation is applied.
        increasing: True for arguments that all grow stronger with the level.
    """

    magnitude: float
    num_layers: int
    magnitude_std: float = 0.0
    probability: float = 0.5
    increasing: bool = False


class Layer(NamedTuple):
    """One operation to apply, with what the function `argument` gives for it."""

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
    out: Clip, frames: Frames, layers: Sequence[Layer], box: Box, size: int, flip: bool = False
) -> Clip:
    """Applies layers to full frames, crops them to a box, scales and mirrors.

    Args:
        out: uint8 `[T, size, size, 3]` to write into.
        frames: T arrays uint8 `[H, W, 3]` of one size; never written to.
        layers: `draw_layers`; the same for all frames.
        box: the pixels to keep.
        size: side of the result.
        flip: mirror left and right.

    Returns:
        `out`.

    Note:
        Neighbouring warps along one axis, and any next to a rotation, are one affine map, so pixels
        are interpolated once; the released code interpolates for each. What one of them moves out
        of the frame is lost, as there. Color and Sharpness may round the other way.
    """
    cropped = list(apply(frames, layers, box))
    return crops.resize_clip(cropped, (0, 0, *box[2:]), size, flip, out)


def apply(frames: Frames, layers: Sequence[Layer], box: Box) -> Frames:
    """The box of what the layers make of full frames, as T arrays `[h, w, 3]`.

    They are parts of `frames`, or of scratch memory that the thread's next call writes to.
    """
    pending = _Pending(frames)
    for i, (name, value) in enumerate(layers):
        if name in WARPS:
            warp = WARPS[name](value, *pending.size)
            if {pending.axis, warps.axis(warp)} == {"x", "y"}:  # two are cheaper than one of "xy"
                pending.compute(_needed(layers[i:], box, pending.size))
            pending.warps = [earlier @ warp for earlier in pending.warps] + [warp]
            continue
        if pending.warps or name not in _TABLES:
            pending.compute(_needed(layers[i:], box, pending.size))
        if name in _TABLES:
            pending.add_table(_TABLES[name](value))
        elif name in _STATISTICS:
            pending.add_table(_STATISTICS[name](pending.frames, value))
        else:
            old, pending.frames = pending.frames, _empty_like(pending.frames)
            for source, target in zip(old, pending.frames):
                _PIXELS[name](source, target, value)
    pending.compute(box)
    return pending.frames


class _Pending:
    """Frames, a table that they are to go through, and the warps after it.

    Attributes:
        size: height and width of the full frame.
        frames: T arrays `[h, w, 3]` of the box `have` of the full frame.
        table: None changes nothing.
        warps: from pixels of the result to those that each warp reads; the first is all of them.
    """

    def __init__(self, frames: Frames) -> None:
        self.frames, self.size = frames, frames[0].shape[:2]
        self.have: Box = (0, 0, *self.size)
        self.table: Table | None = None
        self.warps: list[warps.Matrix] = []

    @property
    def axis(self) -> str:
        return warps.axis(self.warps[0]) if self.warps else ""

    def add_table(self, table: Table) -> None:
        if self.table is not None:
            table = np.take_along_axis(table, self.table.astype(np.intp), axis=1)
        self.table = table

    def compute(self, box: Box) -> None:
        """Does what is pending, for a box of the full frame."""
        source = warps.source(self.warps[0], box, 3, self.have) if self.warps else box
        if source != self.have:
            y, x = source[0] - self.have[0], source[1] - self.have[1]
            inner = np.s_[y : y + source[2], x : x + source[3]]
            self.frames = [frame[inner] for frame in self.frames]
        if self.table is not None:
            self.frames = _lookup(self.frames, self.table)
        if self.warps:
            clip = self.frames = warps.warped(self.frames, self.warps[0], source, box)
            for warp in self.warps[1:]:
                warps.fill_outside(clip, warp, self.size, box)
        self.have, self.table, self.warps = box, None, []


def _needed(layers: Sequence[Layer], box: Box, size: tuple[int, int]) -> Box:
    """What layers must be given of the full frame for a box of their result."""
    whole: Box = (0, 0, *size)
    if any(name in _STATISTICS for name, _ in layers):
        return whole
    warp, margin = np.eye(3), len(layers)  # Sharpness looks one pixel further.
    for name, value in layers:
        if name in WARPS:
            warp, margin = warp @ WARPS[name](value, *size), margin + 4
    return warps.source(warp, box, margin, whole)


def _empty_like(frames: Frames) -> Clip:
    return warps.empty(len(frames), *frames[0].shape[:2])


def _lookup(frames: Frames, table: Table) -> Clip:
    out = _empty_like(frames)
    invert = len(table) == 1 and np.array_equal(table[0, :, 0], 255 - _LEVELS)
    same = (table == _LEVELS[:, None]).all(axis=(1, 2))
    for i, (old, new) in enumerate(zip(frames, out)):
        own = i % len(table)
        if invert:
            cv2.bitwise_not(old, dst=new)  # ten times faster than a table
        elif same[own]:
            np.copyto(new, old)  # Many frames have their darkest and brightest levels already.
        else:
            cv2.LUT(old, table[own][None], dst=new)
    return out


def _levels(levels: npt.ArrayLike) -> Table:
    return np.asarray(levels).astype(np.uint8)[None, :, None]


def _blend(base: npt.ArrayLike, factor: float) -> Table:
    """base + factor * (level - base), in PIL's single precision; base `[T]` or a number."""
    start = np.asarray(base, np.float32).reshape(-1, 1)
    levels = start + np.float32(factor) * (_LEVELS.astype(np.float32) - start)
    return levels.clip(0, 255).astype(np.uint8)[..., None]


def _solarize_add(add: float) -> Table:
    return _levels(np.where(_LEVELS < 128, np.minimum(_LEVELS + int(add), 255), _LEVELS))


# Tables from the argument alone.
_TABLES: dict[str, Callable[[float], Table]] = {
    "Invert": lambda _: _levels(255 - _LEVELS),
    # 0 bits, the top level of the increasing form, is a black frame, as in timm.
    "Posterize": lambda bits: _levels(_LEVELS & (256 - 2 ** (8 - int(bits)))),
    "Solarize": lambda bound: _levels(np.where(bound > _LEVELS, _LEVELS, 255 - _LEVELS)),
    "SolarizeAdd": _solarize_add,
    "Brightness": lambda factor: _blend(0.0, factor),
}


def _auto_contrast(frames: Frames, _: float) -> Table:
    """Spreads the levels of each frame and channel over 0 to 255."""
    rows = [frame.reshape(len(frame), -1) for frame in frames]  # long ones, for the sake of speed
    shape = (len(rows), -1, 3)
    low = np.array([row.min(axis=0) for row in rows], np.float64).reshape(shape).min(axis=1)
    high = np.array([row.max(axis=0) for row in rows], np.float64).reshape(shape).max(axis=1)
    scale = np.where(high > low, 255.0 / np.maximum(high - low, 1.0), 1.0)
    offset = np.where(high > low, -low * scale, 0.0)
    levels = _LEVELS[:, None] * scale[:, None] + offset[:, None]
    return levels.clip(0, 255).astype(np.uint8)


def _equalize(frames: Frames, _: float) -> Table:
    """Makes the levels of each frame and channel equally frequent."""
    found = [[cv2.calcHist([f], [c], None, [256], [0, 256]) for c in range(3)] for f in frames]
    counts = np.array(found).astype(np.int64).reshape(len(frames), 3, 256)
    brightest = 255 - (counts[:, :, ::-1] > 0).argmax(axis=2, keepdims=True)
    step = (counts.sum(axis=2, keepdims=True) - np.take_along_axis(counts, brightest, 2)) // 255
    below = counts.cumsum(axis=2) - counts
    levels = np.where(step > 0, (step // 2 + below) // np.maximum(step, 1), _LEVELS)
    return np.ascontiguousarray(levels.clip(0, 255).astype(np.uint8).transpose(0, 2, 1))


def _contrast(frames: Frames, factor: float) -> Table:
    """Blends each frame with its mean grey level."""
    greys = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames)
    return _blend([int(cv2.sumElems(grey)[0] / grey.size + 0.5) for grey in greys], factor)


# Tables that need statistics of whole frames.
_STATISTICS: dict[str, Callable[[Frames, float], Table]] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Contrast": _contrast,
}


def _color(old: Clip, new: Clip, factor: float) -> None:
    cv2.cvtColor(cv2.cvtColor(old, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB, dst=new)
    cv2.addWeighted(old, factor, new, 1 - factor, TRUNCATE, dst=new)


def _sharpness(old: Clip, new: Clip, factor: float) -> None:
    # PIL smooths with weights 5 (centre) and 1 (neighbours) of 13: 9 box means and 4 centres.
    cv2.blur(old, (3, 3), dst=new)
    centre, box = factor + (1 - factor) * 4 / 13, (1 - factor) * 9 / 13
    cv2.addWeighted(old, centre, new, box, TRUNCATE, dst=new)
    for rim in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        new[rim] = old[rim]  # PIL leaves the outermost pixels as they are.


# From the pixels of one frame to those of another.
_PIXELS: dict[str, Callable[[Clip, Clip, float], None]] = {
    "Color": _color,
    "Sharpness": _sharpness,
}


def erasing_box(rng: np.random.Generator, size: int, probability: float) -> npt.NDArray[np.int32]:
    """Draws the one box of random erasing (arXiv:1708.04896) for a square image.

    Area is uniform in [0.02, 1/3] of the image, aspect h / w log-uniform in [0.3, 1/0.3]; a box
    as large as the image is drawn again, 10 times at most.

    Args:
        rng: the only source of randomness.
        size: side of the image in pixels.
        probability: chance of a box.

    Returns:
        [4] int32 (y, x, h, w) in pixels; zeros when nothing is to be erased.
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
