"""Clips, views and windows of single videos, for figures, features and `mvm.load`."""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from input_pipeline import elements, loader, windows
from input_pipeline.elements import UNREADABLE as UNREADABLE
from input_pipeline.sources.frames import is_video
from input_pipeline.video import decode
from mvm import data
from mvm.types import UserError
from mvm.weights import hub

windows_of, together = windows.cut, windows.together
_reading = threading.Lock()  # Of a file that stands twice in a list.


def views_of(spec: data.ClipSpec, video: Any, num_segments: int, num_crops: int) -> np.ndarray:
    """Views of one video as evaluation makes them, uint8 `[S * C, T, image_size, image_size, 3]`.

    `video` is as of `decode.open_video`; view is segment * C + crop, with frame selection of all
    candidate frames.
    """
    spec = spec._replace(num_segments=num_segments, num_crops=num_crops, boxes=None)
    size = spec.image_size
    views = np.empty((num_segments * num_crops, spec.num_frames, size, size, 3), np.uint8)
    elements.write_views(views, data.Record("", "", -1, video), spec)
    return views


def source_of(video: Any) -> str | bytes | np.ndarray:
    """The path or content of a video file, or its frames; UserError for what is none of these."""
    if isinstance(video, str | os.PathLike):
        return hub.not_an_address(os.fspath(video))
    if hasattr(video, "read"):
        with _reading:
            if video.seekable():
                video.seek(0)
            video = video.read()
    if isinstance(video, bytes | bytearray | memoryview):
        return bytes(video)
    frames = np.asarray(video)
    if frames.ndim != 4 or 0 in frames.shape or (*frames.shape[3:], frames.dtype) != (3, "u1"):
        given = f"{frames.dtype}{list(frames.shape)}" if frames.ndim else type(video).__name__
        raise UserError(
            f"a video is a file (path, bytes, open in mode 'rb') or uint8 [T, H, W, 3], RGB as "
            f"decoded; this one is {given}"
        )
    return frames


def without_ending(name: str) -> str:
    """The name of a video without the ending of its format."""
    return name.rpartition(".")[0] if is_video(name) else name


@contextlib.contextmanager
def named(video: str | bytes | np.ndarray) -> Iterator[None]:
    """Turns the VideoError of a video into a UserError that names it."""
    try:
        yield
    except decode.VideoError as error:
        name = video if isinstance(video, str) else f"a video of {len(video)} bytes"
        name = f"a video of {len(video)} frames" if isinstance(video, np.ndarray) else name
        raise UserError(f"{name}: {error}") from error


def take(
    found: Sequence[data.Record], spec: data.ClipSpec, count: int, seed: int
) -> tuple[np.ndarray, list[int]]:
    """Clips uint8 `[count, T, H, W, 3]` of records spread over the list, and their places in it."""
    spread = np.linspace(0, len(found) - 1, num=min(4 * count, len(found))).astype(int)
    clips_: dict[int, np.ndarray] = {}
    for position in np.concatenate([spread[first::4] for first in range(4)]).tolist():
        if len(clips_) < count:
            element = loader.clip(found, spec, position, seed)
            if not element["skipped"]:
                clips_[position] = element["video"]
    if not clips_:
        raise UserError("none of the sampled videos can be read")
    return np.stack([clips_[position] for position in sorted(clips_)]), sorted(clips_)
