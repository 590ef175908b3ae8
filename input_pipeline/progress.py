"""Progress of long work on stderr: how many, how fast, how long still."""

import sys

import tqdm


class Progress:
    """A bar; in place on a terminal, else a new state every ten seconds.

    An instance is the `progress(done, total)` that long functions of this package take; a total of
    0 is not known.
    """

    def __init__(self, unit: str = "videos") -> None:
        every = 0.2 if sys.stderr.isatty() else 10.0
        self._bar = tqdm.tqdm(unit=f" {unit}", mininterval=every, maxinterval=every)

    def __call__(self, done: int, total: int) -> None:
        self._bar.total = total or None
        self._bar.update(done - self._bar.n)
        if done >= total > 0:
            self.end()

    def end(self) -> None:
        """Ends the line; for work that stops early or of unknown length."""
        self._bar.close()
