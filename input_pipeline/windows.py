"""Windows over whole videos: each frame is decoded once, and kept while a window needs it."""

import collections
import concurrent.futures
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np

from input_pipeline.elements import ClipSpec
from input_pipeline.sources.frames import Pictures
from input_pipeline.transforms import crops
from input_pipeline.video import decode
from input_pipeline.video.base import VideoError

_AT_ONCE = 4  # Items that a thread makes before it lets go of its iterator.


def starts(frames: int, span: int, stride: int) -> np.ndarray:
    """First frames of all windows that fit: 0, s, 2s, ...; int64 `[windows]`, may be empty."""
    return np.arange(0, max(frames - span + 1, 0), stride)


def squashed(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 `[H, W, 3]` to float32 `[height, width, 3]` in [0, 1], bilinear without antialias."""
    unit = frame.astype(np.float32) / 255
    return cv2.resize(unit, (width, height), interpolation=cv2.INTER_LINEAR)


def centred(frame: np.ndarray, size: int, crop: str = "center") -> np.ndarray:
    """uint8 `[H, W, 3]` to `[size, size, 3]`: the shorter side scaled, the centre cut out."""
    small = crops.shrink(frame, size, crop)
    ((y, x),) = crops.crop_offsets(small.shape[0], small.shape[1], size, 1)
    return small[y : y + size, x : x + size]


def cut(
    source: str | bytes | Pictures | np.ndarray,
    spec: ClipSpec,
    stride: int,
    pixels: str = "normalised",
) -> Iterator[Any]:
    """What is known of a video, then its windows in order; memory holds one window's frames.

    Windows start `stride` frames apart, `spec` says the rest. `pixels="normalised"` are uint8
    `[T, size, size, 3]` for later, as in evaluation; "videomaev2" float32 in [0, 1], as its
    extractor makes them (see `squashed`). VideoError also for a video shorter than a window.

    Yields:
        A dictionary: "fps" (None if unknown), "frames", "windows" and, with a rate, the seconds of
        the windows: the middle of number i is at "first" + i "step". Then the windows.
    """
    offsets, size = np.arange(spec.num_frames) * spec.frame_stride, spec.image_size
    span = int(offsets[-1]) + 1

    def scaled(frame: np.ndarray) -> np.ndarray:
        if pixels == "normalised":
            return centred(frame, size, spec.crop)
        return squashed(frame, size, size)

    with decode.open_video(source, 1) as video:
        shown = video.at_rate(spec.fps) if spec.fps else np.arange(video.header.num_frames)
        fps = video.fps and (spec.fps or video.fps)
        first = starts(len(shown), span, stride)
        if not len(first):
            raise VideoError(f"{len(shown)} frames, fewer than the {span} of a window")
        facts = {"fps": fps or None, "frames": len(shown), "windows": len(first)}
        yield facts | ({"first": span / 2 / fps, "step": stride / fps} if fps else {})
        waiting = iter((first[:, None] + offsets).tolist())
        needed = np.unique(first[:, None] + offsets)
        held: dict[int, np.ndarray] = {}
        window = next(waiting)
        for number, frame in zip(needed.tolist(), video.stream(shown[needed], scaled)):
            held[number] = frame
            if number == window[-1]:
                yield np.stack([held[n] for n in window])
                window = next(waiting, window)
                held = {n: kept for n, kept in held.items() if n >= window[0]}


def together(iterators: Iterable[Iterator[Any]], threads: int) -> Iterator[Any]:
    """Items of several iterators, made ahead by threads: a few of one, a few of the next.

    Those of one are in order. A thread has one iterator and makes few items of it, so memory grows
    neither with their number nor with their length.
    """
    waiting = iter(iterators)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:

        def asked(one: Iterator[Any]) -> tuple[Iterator[Any], Any]:
            return one, pool.submit(lambda: list(itertools.islice(one, _AT_ONCE)))

        active = collections.deque(map(asked, itertools.islice(waiting, threads)))
        while active:
            one, future = active.popleft()
            items = future.result()
            following = [one] if len(items) == _AT_ONCE else itertools.islice(waiting, 1)
            active.extend(map(asked, following))
            yield from items
