"""What every readable video has, however it is stored."""

import math
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import cv2
import numpy as np

LARGE = 64 << 20  # Bytes; larger local files are not kept in memory, nor are packets of theirs.
_MOST = 1 << 20  # Samples; times of a damaged file may claim years.


class VideoError(ValueError):
    """A source that gives no usable frames; the message is one short reason."""


class Header(NamedTuple):
    """What one demux tells: exact frame count, coded size in pixels (not rotated), codec name."""

    num_frames: int
    height: int
    width: int
    codec: str


class Readable(Protocol):
    """An open video; see `decode.Video` for what each part promises.

    Attributes:
        header: frame count, size, codec.
        damage: frames given so far that are not those of an intact file.
        fps: mean frames per second; 0 if unknown.
    """

    header: Header
    damage: int
    fps: float

    def read(
        self,
        indices: Iterable[int],
        map_frame: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> list[np.ndarray]: ...

    def at_rate(self, fps: float) -> np.ndarray:
        """Numbers of the frames shown at times 0, 1 / fps, 2 / fps ...; int64, ascending.

        Raises:
            VideoError: the frames have no times.
        """


def in_order(
    indices: Iterable[int], count: int, find: Callable[[set[int]], dict[int, np.ndarray]]
) -> tuple[list[np.ndarray], int]:
    """What every `Readable.read` does around finding the frames themselves.

    Args:
        indices: frame numbers asked for, in any order; repeats are allowed.
        count: frames of the video.
        find: the wanted frames by number; those it cannot give are left out, but not all.

    Returns:
        The frames in the order asked, all of the first one's size, and how many were not found:
        each is the nearest one that was.

    Raises:
        IndexError: no index, or one outside `[0, count)`.
    """
    order = [int(i) for i in indices]
    wanted = set(order)
    if not wanted or min(wanted) < 0 or max(wanted) >= count:
        raise IndexError(f"frames {sorted(wanted)} of a video of {count}")
    found = find(wanted)
    missing = wanted - found.keys()
    have = np.array(sorted(found))
    for index in missing:
        found[index] = found[int(have[np.argmin(np.abs(have - index))])]
    height, width = found[order[0]].shape[:2]
    for index, frame in found.items():
        if frame.shape[:2] != (height, width):
            found[index] = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
    return [found[index] for index in order], len(missing)


class Clock(NamedTuple):
    """When the frames of a video are shown.

    Attributes:
        times: seconds from the first frame, float64 `[n]`, ascending; empty if nothing is known.
        fps: mean frames per second; 0 if unknown. The last frame lasts 1 / fps.
        tick: seconds by which times may be rounded.
    """

    times: np.ndarray
    fps: float
    tick: float = 0.0

    def at_rate(self, fps: float) -> np.ndarray:
        """Numbers of the frames shown at times 0, 1 / fps, 2 / fps ... from the first one's.

        Args:
            fps: frames per second wanted; frames are repeated or left out to get it.

        Returns:
            int64 `[m]`, ascending, of all that fit into the video.

        Raises:
            VideoError: no times are known, or they span more than 2 ** 20 samples.
        """
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


class Deadline(NamedTuple):
    """A limit on the processor time of one thread, which neither a stopped process nor a busy
    machine uses up; `seconds` is what the message shows."""

    seconds: float
    end: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(seconds, time.thread_time() + seconds)

    def check(self) -> None:
        """Raises VideoError once the time is over."""
        if time.thread_time() > self.end:
            raise VideoError(f"took longer than {self.seconds:g} s")
