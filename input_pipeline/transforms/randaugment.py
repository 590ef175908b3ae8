"""RandAugment for uint8 clips, its draws, and the draw of a random-erasing box.

Every frame of a clip gets the same operations with the same arguments.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from input_pipeline.transforms import crops as spatial
from input_pipeline.transforms import lazy
from input_pipeline.transforms.operations import NAMES, Frames, Layer

MAX_LEVEL = 10.0

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


def parse_rand_augment(text: str) -> Policy:
    """Reads a RandAugment string in the notation of timm, such as "rand-m7-n4-mstd0.5-inc1".

    Raises:
        ValueError: the string is not of that form or its magnitude is above 10; the message
            shows the string and the form.
    """
    match = _PATTERN.fullmatch(text)
    if match is None or float(match[1]) > MAX_LEVEL:
        raise ValueError(f"RandAugment string {text!r} is not of the form {_FORM}")
    return Policy(
        magnitude=float(match[1]),
        num_layers=int(match[2]),
        magnitude_std=float(match[3] or 0.0),
        increasing=match[4] == "1",
    )


def argument(operation: str, level: float, sign: float, increasing: bool) -> float:
    """Turns a level into the argument of an operation.

    Rotate: degrees. ShearX/Y: pixels per pixel. TranslateX/Y: fraction of the side. Posterize:
    bits kept. Solarize: threshold. SolarizeAdd: grey levels. Color, Contrast, Brightness,
    Sharpness: blend factor, 1 changes nothing. AutoContrast, Equalize, Invert take none (0).

    Args:
        operation: a name in `operations.NAMES`.
        level: strength, from 0 to 10.
        sign: +1 or -1, the direction of the operations that have two.
        increasing: see `Policy`.
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
            bits = int(strength * 4)
            return 4 - bits if increasing else bits
        case "Solarize":
            threshold = int(strength * 256)
            return 256 - threshold if increasing else threshold
        case "SolarizeAdd":
            return min(128, int(strength * 110))
        case _:
            return 0.0


def draw_layers(rng: np.random.Generator, policy: Policy) -> list[Layer]:
    """Draws the operations of one clip (RandAugment, arXiv:1909.13719, as in timm 0.4.12)."""
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
    out: npt.NDArray[np.uint8],
    frames: Frames,
    layers: Sequence[Layer],
    box: spatial.Box,
    size: int,
    flip: bool = False,
) -> npt.NDArray[np.uint8]:
    """Applies layers to full frames, crops them to a box, scales, mirrors: in the cheapest order.

    The pixels are those of whole frames and `spatial.resize_clip`, except that Rotate, Color and
    Sharpness may round the other way: 1 grey level in less than 1 of 1000 pixels. A later
    operation with a jump in its table (Solarize, SolarizeAdd, Posterize, Equalize) can widen the
    difference of such a pixel.

    Args:
        out: [T, size, size, 3] uint8 to write into.
        frames: T arrays uint8 [H, W, 3] of one size; never written to.
        layers: `draw_layers`; the same for all frames.
        box: the pixels to keep.
        size: side of the result.
        flip: mirror left and right.

    Returns:
        `out`.
    """
    crop = lazy.apply(frames, layers, box)
    return spatial.resize_clip(list(crop), (0, 0, *box[2:]), size, flip, out)


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
