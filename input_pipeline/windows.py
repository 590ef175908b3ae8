"""Windows over a whole video: each frame is decoded once, and kept while a window needs it."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np

from input_pipeline.sources.frames import Pictures
from input_pipeline.transforms import crops
from input_pipeline.video import decode
from input_pipeline.video.base import VideoError


class WindowSpec(NamedTuple):
    """How windows are cut out of a video.

    Attributes:
        num_frames: T, frames of a window.
        frame_stride: frames between two of them; 1 takes consecutive frames.
        stride: frames between the starts of two windows.
        image_size: side, pixels.
        released: pixels as VideoMAE V2's extractor makes them: float32 in [0, 1], each side scaled
            to `image_size` whatever the aspect, bilinear without antialiasing. Else uint8: the
            shorter side scaled, the centre cut out, as in evaluation.
        fps: rate that the video is brought to first; 0 takes its own frames.
        timeout: seconds of processor time to open a video.
    """

    num_frames: int = 16
    frame_stride: int = 4
    stride: int = 4
    image_size: int = 224
    released: bool = False
    fps: float = 0.0
    timeout: float = decode.TIMEOUT

    @property
    def span(self) -> int:
        """Frames from the first of a window to its last, both included."""
        return (self.num_frames - 1) * self.frame_stride + 1


class Facts(NamedTuple):
    """What is known of a video before it is decoded."""

    fps: float
    """Frames per second, those of `WindowSpec.fps` if set; 0 if unknown."""
    frames: int
    windows: int


def starts(frames: int, span: int, stride: int) -> np.ndarray:
    """First frames of all windows that fit: 0, s, 2s, ...; int64 `[windows]`, may be empty."""
    return np.arange(0, max(frames - span + 1, 0), stride)


def squashed(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 `[H, W, 3]` to float32 `[height, width, 3]` in [0, 1], bilinear without antialias."""
    unit = frame.astype(np.float32) / 255
    return cv2.resize(unit, (width, height), interpolation=cv2.INTER_LINEAR)


def centred(frame: np.ndarray, size: int) -> np.ndarray:
    """uint8 `[H, W, 3]` to `[size, size, 3]`: the shorter side scaled, the centre cut out."""
    small = crops.shrink(frame, size)
    ((y, x),) = crops.crop_offsets(small.shape[0], small.shape[1], size, 1)
    return small[y : y + size, x : x + size]


@contextlib.contextmanager
def opened(
    spec: WindowSpec, source: str | bytes | Pictures | np.ndarray
) -> Iterator[tuple[Facts, Iterator[np.ndarray]]]:
    """A video and its windows in order, `[T, size, size, 3]`; memory holds one window's frames.

    `source` is as of `decode.open_video`, or all frames, uint8 `[n, H, W, 3]`, of unknown rate.

    Raises:
        VideoError: it cannot be read, is shorter than a window, or has no times for `spec.fps`;
            also while windows are taken.
    """
    with contextlib.ExitStack() as during:
        if isinstance(source, np.ndarray):
            shown, fps = np.arange(len(source)), 0.0
            stream: Any = lambda indices, map_frame: (map_frame(source[i]) for i in indices)  # noqa: E731
        else:
            video = during.enter_context(decode.open_video(source, 1, spec.timeout))
            shown = video.at_rate(spec.fps) if spec.fps else np.arange(video.header.num_frames)
            fps, stream = video.fps, video.stream
        first = starts(len(shown), spec.span, spec.stride)
        if not len(first):
            raise VideoError(f"{len(shown)} frames, fewer than the {spec.span} of a window")
        yield Facts(spec.fps or fps, len(shown), len(first)), _windows(stream, shown, first, spec)


def _windows(
    stream: Any, shown: np.ndarray, first: np.ndarray, spec: WindowSpec
) -> Iterator[np.ndarray]:
    def cut(frame: np.ndarray) -> np.ndarray:
        size = spec.image_size
        return squashed(frame, size, size) if spec.released else centred(frame, size)

    offsets = np.arange(spec.num_frames) * spec.frame_stride
    needed = np.unique(first[:, None] + offsets)
    waiting = iter((first[:, None] + offsets).tolist())
    window, held = next(waiting), {}
    for number, frame in zip(needed.tolist(), stream(shown[needed], cut)):
        held[number] = frame
        if number == window[-1]:
            yield np.stack([held[n] for n in window])
            window = next(waiting, [len(shown)])
            held = {n: kept for n, kept in held.items() if n >= window[0]}
