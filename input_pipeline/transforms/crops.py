"""Which pixels a clip takes and how they become `size x size`: integer boxes, then one resize.

A box is `(y, x, height, width)` in pixels of the full frame.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

Box = tuple[int, int, int, int]

cv2.setNumThreads(1)  # Clips are processed in parallel; threads inside one resize only cost.

FILL = (124, 116, 104)  # Grey: nearly zero once ImageNet's mean is taken out.
_AREA = (0.08, 1.0)
_ASPECT = (0.75, 1.3333)
_SCALES = (1.0, 0.875, 0.75, 0.66)
# Quarters of the free space (rows, columns): corners, centre, edge middles, inner corners.
_PLACES = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4), (4, 2), (0, 2)]
_PLACES += [(1, 1), (1, 3), (3, 1), (3, 3)]


def multi_scale_boxes(h: int, w: int, size: int) -> list[Box]:
    """All boxes of the multi-scale crop (TSN, 1608.00859; VideoMAE pre-training): 10 x 13.

    Neighbours in the list of sides may be paired, and a side within 2 pixels of `size` becomes
    `size`. The released code may snap to one larger than the frame and pads with black; here the
    frame limits it.
    """
    base = min(h, w)
    sides = [max(int(base * scale), 1) for scale in _SCALES]
    sides = [min(size, base) if abs(side - size) < 3 else side for side in sides]
    pairs = [(ch, cw) for i, ch in enumerate(sides) for j, cw in enumerate(sides) if abs(i - j) < 2]
    return [
        (row * ((h - ch) // 4), column * ((w - cw) // 4), ch, cw)
        for ch, cw in pairs
        for row, column in _PLACES
    ]


def multi_scale_crop(rng: np.random.Generator, h: int, w: int, size: int) -> Box:
    boxes = multi_scale_boxes(h, w, size)
    return boxes[int(rng.integers(len(boxes)))]


def random_resized_crop(rng: np.random.Generator, h: int, w: int, size: int = 0) -> Box:
    """Inception-style crop of VideoMAE fine-tuning: uniform area share, log-uniform width / height.

    Ten tries; then the largest centred box whose aspect is in range.
    """
    for _ in range(10):
        pixels = rng.uniform(*_AREA) * h * w
        ratio = float(np.exp(rng.uniform(np.log(_ASPECT[0]), np.log(_ASPECT[1]))))
        ch, cw = round((pixels / ratio) ** 0.5), round((pixels * ratio) ** 0.5)
        if 0 < ch <= h and 0 < cw <= w:
            return int(rng.integers(h - ch + 1)), int(rng.integers(w - cw + 1)), ch, cw
    ch = min(h, max(round(w / _ASPECT[0]), 1))
    cw = min(w, max(round(h * _ASPECT[1]), 1))
    return (h - ch) // 2, (w - cw) // 2, ch, cw


def center_crop(rng: np.random.Generator, h: int, w: int, size: int) -> Box:
    side = min(h, w)
    return (h - side) // 2, (w - side) // 2, side, side


def whole(rng: np.random.Generator, h: int, w: int, size: int) -> Box:
    """All of the frame; `fitted` says where it goes."""
    return 0, 0, h, w


def window(rng: np.random.Generator, h: int, w: int, size: int) -> Box:
    """A square anywhere, as VideoMAE's detection code takes 224 px of a shorter side of 256."""
    side = round(min(h, w) * 224 / 256)
    return int(rng.integers(h - side + 1)), int(rng.integers(w - side + 1)), side, side


# Rules for training by name: `(rng, h, w, size) -> Box`.
CROPS: dict[str, Callable[[np.random.Generator, int, int, int], Box]] = {
    "multi_scale": multi_scale_crop,
    "random_resized": random_resized_crop,
    "center": center_crop,
    "fit": whole,
    "window": window,
}


def short_side(h: int, w: int, size: int) -> tuple[int, int]:
    """Height and width after scaling the shorter side to `size`; the longer one is cut, as cv2."""
    if h <= w:
        return size, int(size * w / h)
    return int(size * h / w), size


def crop_offsets(h: int, w: int, size: int, num_crops: int) -> list[tuple[int, int]]:
    """Corners `(y, x)` of square test crops along the longer axis, from end to end.

    One crop is the centre, rounded half to even as in the released validation.
    """
    slack = max(h, w) - size
    if num_crops == 1:
        steps = [round(slack / 2)]
    else:
        steps = [int(crop * (slack / (num_crops - 1))) for crop in range(num_crops)]
    return [(0, step) if h <= w else (step, 0) for step in steps]


def resize(image: np.ndarray, h: int, w: int, out: np.ndarray | None = None) -> np.ndarray:
    """uint8 `[H, W, 3]` to `[h, w, 3]`, into `out` if given.

    Bilinear, as the released code, but by area where a side shrinks more than twofold: cv2's
    bilinear does not average there and large sources would alias.
    """
    shrinks = image.shape[0] > 2 * h or image.shape[1] > 2 * w
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (w, h), dst=out, interpolation=how)


def fitted(out: np.ndarray, h: int, w: int) -> np.ndarray:
    """The part of `out`, `[..., size, size, 3]`, that a whole frame of h x w goes to; FILL around.

    Centred, with its longer side scaled to `size`.
    """
    size = out.shape[-2]
    rows, columns = (max(round(size * side / max(h, w)), 1) for side in (h, w))
    y, x = (size - rows) // 2, (size - columns) // 2
    out[:] = FILL
    return out[..., y : y + rows, x : x + columns, :]


def shrink(frame: np.ndarray, size: int, crop: str = "center") -> np.ndarray:
    """uint8 `[H, W, 3]` with the shorter side scaled to `size`; with "fit" whole, a square."""
    h, w = frame.shape[:2]
    if crop != "fit":
        return resize(frame, *short_side(h, w, size))
    square = np.empty((size, size, 3), np.uint8)
    part = fitted(square, h, w)
    part[:] = resize(frame, *part.shape[:2])
    return square


def views_from_frames(
    frames: Sequence[np.ndarray],
    size: int,
    num_segments: int,
    num_crops: int,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """All test views of one video (VideoMAE, EVEREST): C crops of each frame.

    `frames` are S * T arrays uint8 `[H, W, 3]` of one size, the shorter side `size`, segment after
    segment. Returns uint8 `[S * C, T, size, size, 3]`, `out` if given; view = segment * C + crop.
    """
    num_frames = len(frames) // num_segments
    h, w = frames[0].shape[:2]
    corners = crop_offsets(h, w, size, num_crops)
    shape = (num_segments * num_crops, num_frames, size, size, 3)
    views = np.empty(shape, np.uint8) if out is None else out
    for i, frame in enumerate(frames):
        segment, t = divmod(i, num_frames)
        for crop, (y, x) in enumerate(corners):
            views[segment * num_crops + crop, t] = frame[y : y + size, x : x + size]
    return views
