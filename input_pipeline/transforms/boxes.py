"""Clips around a key frame, and boxes that move with their pixels (VideoMAE's detection code).

Boxes are float32 `[K, 4]` (x1, y1, x2, y2) in pixels; the pixel (x2, y2) still belongs to one.
"""

from typing import NamedTuple

import cv2
import numpy as np

from input_pipeline.sources.key_frames import KeyFrame
from input_pipeline.transforms.crops import Box, short_side

FILL = (124, 116, 104)  # Nearly zero once ImageNet's mean is taken out.
_HUE, _OTHER = 10, 26  # Of 180 and of 255.


class BoxSpec(NamedTuple):
    """What else is asked of a clip around a key frame; the crop is a random window of training.

    Attributes:
        short: pixels of the shorter side, of which training takes a window of `image_size`.
        multiple: of its height and width that an evaluated frame is padded to.
    """

    short: int
    multiple: tuple[int, int]

    def frame(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of an evaluated frame whose file has frames of `size`."""
        sides = zip(short_side(*size, self.short), self.multiple)
        h, w = (-(-side // unit) * unit for side, unit in sides)
        return h, w


def around(key: int, n: int, num_frames: int, stride: int) -> np.ndarray:
    """Indices int64 `[T]` around frame `key` of n, which lies between the middle two."""
    first = key - num_frames * stride // 2 + (stride - 1) // 2
    return np.clip(first + np.arange(num_frames) * stride, 0, n - 1)


def corners(fractions: np.ndarray, h: int, w: int) -> np.ndarray:
    """Boxes in pixels of an `h x w` frame from fractions of it."""
    return (fractions * np.array([w, h, w, h]) - (0, 0, 1, 1)).astype(np.float32)


def window(rng: np.random.Generator, h: int, w: int, share: float) -> Box:
    """A square of `share` times the shorter side, anywhere in the frame."""
    side = round(min(h, w) * share)
    return int(rng.integers(h - side + 1)), int(rng.integers(w - side + 1)), side, side


def cropped(boxes: np.ndarray, y: float, x: float, h: int, w: int) -> np.ndarray:
    """Boxes in the crop `h x w` at (y, x), limited to it; `empty` once they are outside."""
    moved = boxes - np.array([x, y, x, y], np.float32)
    return moved.clip(0, np.array([w, h, w, h], np.float32))


def flipped(boxes: np.ndarray, w: int) -> np.ndarray:
    """Boxes in the mirrored frame of `w` columns."""
    x1, y1, x2, y2 = boxes.T
    return np.stack([w - x2 - 1, y1, w - x1 - 1, y2], axis=1)


def empty(boxes: np.ndarray) -> np.ndarray:
    """Which boxes have no area, bool `[K]`."""
    return np.any(boxes[:, 2:] <= boxes[:, :2], axis=1)


def moved(
    truth: KeyFrame, frame: tuple[int, int], box: Box, flip: bool, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of a key frame in its square crop, resized to `size`, and which are left there.

    `frame` is height and width.
    """
    y, x, side, _ = box
    boxes = cropped(corners(truth.boxes, *frame), y, x, side, side) * (size / side)
    kept = (truth.score > 0) & ~empty(boxes)
    return (flipped(boxes, size) if flip else boxes) * kept[:, None], kept


def extended(truth: KeyFrame, size: tuple[int, int]) -> np.ndarray:
    """The boxes of a key frame in frames resized to `size`: 10 % wider, 5 % higher, but inside."""
    (height, width), (h, w) = truth.size, size
    scale = np.array([w / width, h / height] * 2, np.float32)
    boxes = corners(truth.boxes, height, width) * scale
    more = (boxes[:, 2:] - boxes[:, :2] + 1) * np.array([0.05, 0.025], np.float32)
    wider = boxes + np.concatenate([-more, more], axis=1)
    inside = wider.clip(0, np.array([w - 1, h - 1] * 2, np.float32))
    return inside * (truth.score > 0)[:, None]


def jitter_colours(clip: np.ndarray, rng: np.random.Generator) -> None:
    """Shifts hue, saturation and value of a clip uint8 `[T, H, W, 3]`, the same in all frames."""
    levels = np.arange(256)
    hue, *others = (int(rng.integers(-most, most + 1)) for most in (_HUE, _OTHER, _OTHER))
    tables = [(levels + hue) % 180, *((levels + shift).clip(0, 255) for shift in others)]
    table = np.stack(tables, axis=1).astype(np.uint8)[None]
    rows = clip.reshape(-1, *clip.shape[2:])
    cv2.cvtColor(cv2.LUT(cv2.cvtColor(rows, cv2.COLOR_RGB2HSV), table), cv2.COLOR_HSV2RGB, rows)
