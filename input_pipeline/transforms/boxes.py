"""Clips around a key frame, and boxes that move with their pixels (VideoMAE's detection code).

Boxes are float32 (x1, y1, x2, y2) in pixels; the pixel (x2, y2) still belongs to one.
"""

from typing import NamedTuple

import cv2
import numpy as np

from input_pipeline.sources.boxes import KeyFrame
from input_pipeline.transforms.crops import FILL as FILL
from input_pipeline.transforms.crops import Box, short_side
from input_pipeline.video.base import VideoError
from input_pipeline.video.decode import Readable

_HUE, _OTHER = 10, 26  # Of 180 and of 255.


class BoxSpec(NamedTuple):
    """What else is asked of a clip around a key frame."""

    num_classes: int  # C.
    short: int  # Pixels of the shorter side of an evaluated frame.
    multiple: tuple[int, int]  # Of its height and width that it is padded to.

    def resized(self, frame: KeyFrame) -> tuple[int, int]:
        """Height and width of an evaluated frame before it is padded."""
        return short_side(*frame.size, self.short)

    def padded(self, frame: KeyFrame) -> tuple[int, int]:
        """Height and width of an evaluated frame."""
        h, w = (-(-side // m) * m for side, m in zip(self.resized(frame), self.multiple))
        return h, w


def shown_at(video: Readable, seconds: float) -> int:
    """Number of the frame that is shown at a time; VideoError if none is, or no times are told."""
    # Of one frame in so many seconds the second is shown then.
    shown = video.at_rate(1 / abs(seconds)) if seconds else np.zeros(2)
    if seconds < 0 or len(shown) < 2:
        raise VideoError(f"its key frame at {seconds:g} s is outside it")
    return int(shown[1])


def around(key: int, n: int, num_frames: int, stride: int) -> np.ndarray:
    """Indices int64 `[T]` around frame `key` of n, which lies between the middle two."""
    first = key - num_frames * stride // 2 + (stride - 1) // 2
    return np.clip(first + np.arange(num_frames) * stride, 0, n - 1)


def moved(
    boxes: np.ndarray, frame: tuple[int, int], crop: Box, size: tuple[int, int]
) -> np.ndarray:
    """Boxes `[P, 4]`, fractions of a frame, in its crop resized to `size`, limited to that."""
    (height, width), (y, x, h, w) = frame, crop
    pixels = boxes * np.array([width, height] * 2) - (x, y, x + 1, y + 1)
    inside = np.array([size[1], size[0]] * 2)
    return (pixels * inside / np.array([w, h] * 2)).clip(0, inside).astype(np.float32)


def flipped(boxes: np.ndarray, w: int) -> np.ndarray:
    """Boxes in the mirrored frame of `w` columns."""
    x1, y1, x2, y2 = boxes.T
    return np.stack([w - x2 - 1, y1, w - x1 - 1, y2], axis=1)


def wider(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes 10 % wider and 5 % higher, but inside a frame of `size`."""
    more = (boxes[:, 2:] - boxes[:, :2] + 1) * np.array([0.05, 0.025], np.float32)
    last = np.array([size[1] - 1, size[0] - 1] * 2, np.float32)
    return (boxes + np.hstack([-more, more])).clip(0, last)


def of_clip(
    known: KeyFrame, frame: tuple[int, int], crop: Box, size: int, flip: bool, spec: BoxSpec
) -> dict[str, np.ndarray]:
    """The people of a key frame in a training clip: "boxes", "box_label" and "box_valid"."""
    boxes = moved(known.people[:, :4], frame, crop, (size, size))
    valid = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    same = (known.people[:, None, :4] == known.truth[:, :4]).all(axis=-1)
    label = same @ np.eye(spec.num_classes, dtype=bool)[known.truth[:, 4].astype(int) - 1]
    boxes = flipped(boxes, size) if flip else boxes
    return {
        "boxes": _padded(boxes * valid[:, None], known.most),
        "box_label": _padded(label.astype(np.uint8), known.most),
        "box_valid": _padded(valid, known.most),
    }


def of_view(known: KeyFrame, spec: BoxSpec) -> dict[str, np.ndarray]:
    """The people of a key frame in its evaluated frame: "boxes" and "box_score"."""
    size = spec.resized(known)
    boxes = wider(moved(known.people[:, :4], known.size, (0, 0, *known.size), size), size)
    score = known.people[:, 4].astype(np.float32)
    return {"boxes": _padded(boxes, known.most), "box_score": _padded(score, known.most)}


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    return np.pad(rows, ((0, count - len(rows)), *((0, 0),) * (rows.ndim - 1)))


def jitter_colours(clip: np.ndarray, rng: np.random.Generator) -> None:
    """Shifts hue, saturation and value of a clip uint8 `[T, H, W, 3]`, the same in all frames."""
    levels = np.arange(256)
    hue, *others = (int(rng.integers(-most, most + 1)) for most in (_HUE, _OTHER, _OTHER))
    tables = [(levels + hue) % 180, *((levels + shift).clip(0, 255) for shift in others)]
    table = np.stack(tables, axis=1).astype(np.uint8)[None]
    rows = clip.reshape(-1, *clip.shape[2:])
    cv2.cvtColor(cv2.LUT(cv2.cvtColor(rows, cv2.COLOR_RGB2HSV), table), cv2.COLOR_HSV2RGB, rows)
