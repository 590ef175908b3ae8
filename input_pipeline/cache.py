"""Decoded videos kept in memory, so that small data sets are decoded once."""

import contextlib
import threading
from collections.abc import Callable, Iterable

import numpy as np

from input_pipeline.sources.frames import Pictures
from input_pipeline.video.base import Clock, Header, VideoError
from input_pipeline.video.decode import TIMEOUT, Video, open_video


class Kept:
    """A wholly decoded video; reads as `decode.Video` does, without decoding."""

    def __init__(self, header: Header, frames: list[np.ndarray], clock: Clock) -> None:
        self.header, self.damage, self.fps = header, 0, clock.fps
        self.frames = frames
        self._clock = clock

    def read(
        self,
        indices: Iterable[int],
        map_frame: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """Frames in the order asked; repeated indices give the same array."""
        order = [int(i) for i in indices]
        if map_frame is None:
            return [self.frames[i] for i in order]
        mapped = {i: map_frame(self.frames[i]) for i in set(order)}
        return [mapped[i] for i in order]

    def at_rate(self, fps: float) -> np.ndarray:
        """See `Readable.at_rate`."""
        return self._clock.at_rate(fps)


class FrameCache:
    """Whole decoded videos by name, first come first kept, up to `size` bytes; thread safe.

    Only videos that decode without damage are kept: their frames do not depend on where decoding
    started, so a kept video gives the bytes that a fresh read gives.
    """

    def __init__(self, size: int) -> None:
        self._size, self._left = size, size
        self._kept: dict[str, Kept] = {}
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return FrameCache, (self._size,)  # A worker process starts with an empty one.

    def video(
        self, name: str, source: str | bytes | Pictures, min_frames: int, timeout: float = TIMEOUT
    ) -> Kept | None:
        """A video that is kept or can be from now on; None: open and read it yourself.

        Args:
            name: of the video, different for each.
            source: as for `decode.open_video`.
            min_frames: fewer frames than this are refused.
            timeout: as for `decode.open_video`.
        """
        with self._lock:
            if name in self._seen:
                return self._kept.get(name)
            self._seen.add(name)
        # An error is met, and reported, again by the caller's own read.
        with contextlib.suppress(VideoError), open_video(source, min_frames, timeout) as video:
            n, height, width, _ = video.header
            size = n * height * width * 3
            with self._lock:
                if size > self._left:
                    return None
                self._left -= size
            kept = None
            with contextlib.suppress(VideoError):
                frames = video.read(range(n), np.copy)  # Exactly their pixels: planes have padding.
                if not video.damage:
                    clock = video.clock if isinstance(video, Video) else Clock(np.empty(0), 0.0)
                    kept = Kept(video.header, frames, clock)
            with self._lock:
                if kept is None:
                    self._left += size
                else:
                    self._kept[name] = kept
            return kept
        return None
