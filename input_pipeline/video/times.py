"""When frames are shown, and how long reading may take."""

import math
import time
from typing import NamedTuple

import numpy as np

from input_pipeline.video.base import VideoError

_MOST = 1 << 20  # Samples; times of a damaged file may claim years.


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
        """See `Readable.at_rate`; frames are repeated or left out, as many as fit the video.

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
    """A limit on the processor time of one thread; a stopped process or busy machine uses none."""

    seconds: float
    end: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(seconds, time.thread_time() + seconds)

    def check(self) -> None:
        """Raises VideoError once the time is over."""
        if time.thread_time() > self.end:
            raise VideoError(f"took longer than {self.seconds:g} s")
