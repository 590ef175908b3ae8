"""What every readable video has, however it is stored; when its frames are shown."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import cv2
import numpy as np

_MOST = 1 << 20  # Samples; times of a damaged file may claim years.
LARGE = 64 << 20  # Bytes; larger local files are not kept in memory, nor are packets of theirs.


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


def in_order(
    indices: Iterable[int], count: int, find: Callable[[set[int]], dict[int, np.ndarray]]
) -> tuple[list[np.ndarray], int]:
    """The frames of `decode.Video.read`, of those that `find` gives, and how many it lacks."""
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
