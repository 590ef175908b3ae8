"""Ends a run in which nothing moves any more, and says where it stood."""

import contextlib
import faulthandler
import threading
import time
from collections.abc import Iterator

from mvm.runtime import peers


class Watchdog:
    """After `minutes` without a step of the loop the process ends, to be restarted; 0 = never.

    The time before the first one, in which the step is compiled, does not count.
    """

    def __init__(self, minutes: float):
        self._seconds = minutes * 60
        self._last: tuple[int, float] | None = None
        self._over = threading.Event()

    def done(self, step: int) -> None:
        """Notes that a step has been done; costs next to nothing."""
        self._last = (step, time.monotonic())

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around work that takes as long as it takes."""
        last, self._last = self._last, None
        try:
            yield
        finally:
            self._last = last and (last[0], time.monotonic())

    def __enter__(self) -> "Watchdog":
        if self._seconds > 0:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        # Looks are counted: a process that is stopped and goes on later has made none meanwhile.
        period, before, looks = min(self._seconds / 4, 30.0), None, 0
        while not self._over.wait(period):
            last = self._last
            looks = looks + 1 if last is not None and last is before else 0
            before = last
            if last and looks * period > self._seconds:
                faulthandler.dump_traceback()
                spent = (time.monotonic() - last[1]) / 60
                peers.fail(
                    f"step {last[0] + 1} has not ended after {spent:.3g} minutes "
                    f"(raise train.timeout_minutes if a step takes that long); where every "
                    f"thread stood is above. "
                    f"The same command goes on from the newest checkpoint",
                    peers.RESTART,
                )
