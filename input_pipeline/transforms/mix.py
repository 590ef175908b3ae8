"""Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899): how a batch is mixed.

Only parameters are drawn here; pixels and labels are mixed on the device. Clip i is mixed with clip
B - 1 - i, the whole batch shares one lambda and one box, and the box spans all frames.
"""

import math
from typing import NamedTuple

import numpy as np


class Mix(NamedTuple):
    """How a batch is mixed with itself reversed."""

    lam: float  # Share of the clip's own label; also of its own pixels when `box` is empty.
    # (yl, yh, xl, xh) in pixels, `yh` and `xh` excluded: the window taken from the partner, empty
    # for mixup. An empty box of CutMix has lam 1, so that it may always be read as mixup.
    box: tuple[int, int, int, int] = (0, 0, 0, 0)


def box_from_lambda(lam: float, centre_y: int, centre_x: int, height: int, width: int) -> Mix:
    """Places the CutMix box of a drawn lambda and corrects lambda for the area it really has.

    Sides are sqrt(1 - lam) of the image, rounded down; half of a side, rounded down again, goes
    to either side of the centre (an odd side loses a pixel, as in timm 0.4.12); the image clips.
    """
    side = math.sqrt(1.0 - lam)
    half_y, half_x = int(height * side) // 2, int(width * side) // 2
    yl, yh = max(centre_y - half_y, 0), min(centre_y + half_y, height)
    xl, xh = max(centre_x - half_x, 0), min(centre_x + half_x, width)
    return Mix(1.0 - (yh - yl) * (xh - xl) / (height * width), (yl, yh, xl, xh))


def draw(
    rng: np.random.Generator, height: int, width: int, *, mixup_alpha: float, cutmix_alpha: float
) -> Mix:
    """Lambda is of Beta(alpha, alpha), where 0 turns mixup or CutMix off; both are as likely."""
    if mixup_alpha == cutmix_alpha == 0:
        return Mix(1.0)
    rng.random()  # The released code draws here whether to mix at all; all recipes always do.
    cut = cutmix_alpha > 0 and (mixup_alpha == 0 or rng.random() < 0.5)
    alpha = cutmix_alpha if cut else mixup_alpha
    lam = float(rng.beta(alpha, alpha))
    if not cut:
        return Mix(lam)
    centre_y, centre_x = int(rng.integers(0, height)), int(rng.integers(0, width))
    return box_from_lambda(lam, centre_y, centre_x, height, width)
