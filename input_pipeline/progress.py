"""Plain-text progress of long work on stderr: how many, how fast, how long still."""

import sys
import time
from typing import TextIO

_WIDTH = 24  # of the bar, characters
_TERMINAL, _FILE = 0.2, 10.0  # seconds between two lines


def line(done: int, total: int, seconds: float, unit: str = "videos") -> str:
    """One line of progress, such as `[####....]  50/100 videos  5.0/s  0:10 left`.

    Args:
        done: finished so far.
        total: of how many; 0 if nobody knows.
        seconds: since the start.
        unit: what is counted, in the plural.
    """
    rate = done / seconds if seconds > 0 else 0.0
    speed = f"{rate:.0f}/s" if rate >= 100 else f"{rate:.1f}/s"
    if not total:
        return f"{done} {unit}  {speed}  {clock(seconds)}"
    filled = _WIDTH * min(done, total) // total
    if done >= total:
        end = f"in {clock(seconds)}"
    else:
        end = f"{clock((total - done) / rate)} left" if rate else "-:-- left"
    bar = "#" * filled + "." * (_WIDTH - filled)
    return f"[{bar}] {done:>{len(str(total))}}/{total} {unit}  {speed}  {end}"


def clock(seconds: float) -> str:
    """Seconds as `m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Prints `line` again and again: in place on a terminal, else a new line every ten seconds.

    An instance is the `progress(done, total)` that long functions of this package take.
    """

    def __init__(self, unit: str = "videos", stream: TextIO | None = None) -> None:
        self._unit = unit
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._start = self._last = time.monotonic()
        self._width = 0  # of the unfinished line on the terminal

    def __call__(self, done: int, total: int) -> None:
        """Prints if it is time to, and always at the end (`done == total`)."""
        now = time.monotonic()
        ended = done >= total > 0
        if not ended and now - self._last < (_TERMINAL if self._terminal else _FILE):
            return
        self._last = now
        text = line(done, total, now - self._start, self._unit)
        if self._terminal:
            # Spaces wipe what is left of a longer line before.
            text, self._width = f"\r{text:<{self._width}}", len(text)
        self._stream.write(text if self._terminal else f"{text}\n")
        self._stream.flush()
        if ended:
            self.end()

    def end(self) -> None:
        """Ends the line on a terminal; for work that stops early or of unknown length."""
        if self._width:
            self._stream.write("\n")
            self._stream.flush()
        self._width = 0
