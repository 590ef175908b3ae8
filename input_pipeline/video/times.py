"""When frames are shown, and how long reading may take."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from input_pipeline.video.base import VideoError

_MOST = 1 << 20  # Samples; times of a damaged file may claim years.


class Clock(NamedTuple):
    """When the frames of a video are shown."""

    times: np.ndarray
    """Seconds from the first frame, float64 `[n]`, ascending; empty if nothing is known."""
    fps: float
    """Mean frames per second; 0 if unknown. The last frame lasts 1 / fps."""
    tick: float = 0.0
    """Seconds by which times may be rounded."""

    def at_rate(self, fps: float) -> np.ndarray:
        """See `Readable.at_rate`; frames are repeated or left out, as many as fit the video."""
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


def deadline(seconds: float) -> Callable[[], None]:
    """What raises VideoError once this thread has used so much processor time.

    A stopped process or a busy machine uses none.
    """
    end = time.thread_time() + seconds

    def check() -> None:
        if time.thread_time() > end:
            raise VideoError(f"took longer than {seconds:g} s")

    return check
