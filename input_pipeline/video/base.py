"""What every readable video has, however it is stored; when its frames are shown."""

import abc
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import cv2
import numpy as np

_MOST = 1 << 20  # Samples; times of a damaged file may claim years.
LARGE = 64 << 20  # Bytes; larger local files are not kept in memory, nor are packets of theirs.


MapFrame = Callable[[np.ndarray], np.ndarray] | None  # What is done to each frame read.


class VideoError(ValueError):
    """A source that gives no usable frames; the message is one short reason."""


class Header(NamedTuple):
    """Exact frame count, coded size in pixels (not rotated), codec name."""

    num_frames: int
    height: int
    width: int
    codec: str


class Clock(NamedTuple):
    """When the frames of a video are shown."""

    times: np.ndarray  # Seconds from the first frame, float64 `[n]`, ascending; empty if unknown.
    fps: float  # Mean frames per second; 0 if unknown. The last frame lasts 1 / fps.
    tick: float = 0.0  # Seconds by which times may be rounded.

    def at_rate(self, fps: float) -> np.ndarray:
        """Numbers of the frames shown at times 0, 1 / fps, 2 / fps ...; int64, ascending."""
        if not len(self.times) or self.fps <= 0:
            raise VideoError("the file tells neither times nor a frame rate; set data.fps=0")
        seconds = float(self.times[-1]) + 1 / self.fps
        # Less a tick, so that 2 s at 24 frames per second are 48 samples and not a 49th.
        count = (seconds - self.tick) * fps - 1e-3
        if not count < _MOST:
            raise VideoError(f"its frames have times of {seconds:.0f} s in all; set data.fps=0")
        wanted = np.arange(max(math.ceil(count), 1)) / fps
        # A tick is half forgiven: 1 / 15 s is 67 ms in a file that counts milliseconds.
        return np.searchsorted(self.times, wanted + self.tick / 2 + 1e-9, side="right") - 1


class Readable(abc.ABC):
    """An open video; use it inside `with open_video(...)` and in one thread.

    `damage` counts packets refused, frames filled in and frames marked corrupt by reads so far; 0
    means that every frame read is exactly that of a full decode.
    """

    header: Header
    clock = Clock(np.empty(0), 0.0)
    damage = 0

    @property
    def fps(self) -> float:
        return self.clock.fps

    def at_rate(self, fps: float) -> np.ndarray:
        """See `Clock.at_rate`."""
        return self.clock.at_rate(fps)

    def read(self, indices: Iterable[int], map_frame: MapFrame = None) -> list[np.ndarray]:
        """Frames in the order asked, uint8 `[H, W, 3]` RGB, turned as the file says, of one size.

        Repeated indices give the same array, made once by `map_frame`: do not write into it. A
        frame that cannot be decoded is the nearest wanted one that can; VideoError if there is
        none.
        """
        order, count = [int(i) for i in indices], self.header.num_frames
        wanted = set(order)
        if not wanted or min(wanted) < 0 or max(wanted) >= count:
            raise IndexError(f"frames {sorted(wanted)} of a video of {count}")
        found = self._find(wanted, map_frame)
        have = np.array(sorted(found))
        for index in wanted - found.keys():
            found[index] = found[int(have[np.argmin(np.abs(have - index))])]
            self.damage += 1
        height, width = found[order[0]].shape[:2]
        for index, frame in found.items():
            if frame.shape[:2] != (height, width):
                found[index] = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
        return [found[index] for index in order]

    @abc.abstractmethod
    def _find(self, wanted: set[int], map_frame: MapFrame) -> dict[int, np.ndarray]:
        """Those wanted frames that can be decoded; VideoError if there is none."""

    @abc.abstractmethod
    def stream(self, indices: Iterable[int], map_frame: MapFrame) -> Iterator[np.ndarray]:
        """Frames of ascending numbers, which may repeat, decoded once and not kept.

        A frame that cannot be decoded is one near it; VideoError if there is none.
        """
