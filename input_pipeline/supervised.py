"""Elements of training made in workers; one that dies costs a record, not the run."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from input_pipeline.isolate import Children, Crashed

_LOG = logging.getLogger(__name__)


class Supervised:
    """A task in workers: `(position, rng) -> element`.

    A record at which a worker dies is tried once more, as memory may have run out or a disk may
    have been slow, and is then banned: the task is called again, from the same random state, and
    has to treat it as unreadable. So elements depend on which records can be read, not on when a
    worker died.

    Args:
        task: `(position, rng, banned) -> element`, and `out=` if calls have it; it calls
            `worker.note(p)` before it touches record p and takes `banned[p]`, where there is one,
            for the reason why it cannot be read.
        size: processes.
        timeout: seconds one record may take.
    """

    def __init__(self, task: Callable[..., Any], size: int, timeout: float) -> None:
        self._children = Children(task, size, timeout)
        self._lock = threading.Lock()
        self._banned: dict[int, str] = {}

    @property
    def banned(self) -> dict[int, str]:
        """Position and reason of each record given up so far."""
        with self._lock:
            return dict(self._banned)

    def __call__(
        self, position: int, rng: np.random.Generator, out: np.ndarray | None = None
    ) -> Any:
        """The element; `rng` is read, not advanced, and `out` filled as by `Children`.

        Raises:
            RuntimeError: as `Children`.
        """
        tried: set[int] = set()
        while True:
            try:
                return self._children(position, rng, self.banned, out=out)
            except Crashed as crash:
                if crash.note in tried:
                    with self._lock:
                        self._banned.setdefault(crash.note, crash.reason)
                elif crash.note >= 0:  # Else it died before any record: `Children` counts.
                    tried.add(crash.note)
                    _LOG.warning("record %d is tried again: %s", crash.note, crash.reason)

    def close(self) -> None:
        """Ends the processes."""
        self._children.close()
