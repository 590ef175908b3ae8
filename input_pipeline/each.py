"""One function over many records in worker processes: a crash or a hang in C costs one record."""

import collections
import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import tqdm

from input_pipeline.sources.records import Record

_SPAWN = multiprocessing.get_context("spawn")
_AHEAD = 8  # Records per worker that may be done before the one that is waited for.


class Lost(NamedTuple):
    """Stands for the result of a record at which a worker crashed or hung."""

    reason: str
    late: bool = False


def each(
    function: Callable[[Record], Any],
    records: Sequence[Record],
    workers: int = 0,
    timeout: float = 3600.0,
    first: int = 0,
) -> Generator[Any, None, None]:
    """`function(record)` for the records from `first` on, in order, with a progress bar on stderr.

    Args:
        function: picklable, never returns None.
        records: read in this process, one after another.
        workers: processes; 0 for one per core.
        timeout: seconds for one record. One that takes longer is `Lost`; so is one at which a
            worker dies twice, as memory may have run out the first time.
        first: position of the first record.

    Raises:
        Exception: what `function` or reading a record raised.
    """
    count = len(records)
    todo, done, suspects = collections.deque(range(first, count)), dict[int, Any](), set[int]()
    size = min(workers or os.cpu_count() or 1, len(todo))
    pool = [_Worker(function, timeout) for _ in range(size)]
    every = 0.2 if sys.stderr.isatty() else 10.0
    show = tqdm.tqdm(total=count, initial=first, unit=" videos", mininterval=every)
    try:
        for position in range(first, count):
            while position not in done:
                for worker in pool:
                    if worker.at < 0 and todo and todo[0] < position + _AHEAD * size:
                        worker.give(todo[0], records[todo.popleft()])
                busy = [worker for worker in pool if worker.at >= 0]
                left = min(worker.due for worker in busy) - time.monotonic()
                ready = wait([worker.pipe for worker in busy], max(left, 0))
                for worker in busy:
                    at, answer = worker.at, worker.answer(worker.pipe in ready)
                    if isinstance(answer, Exception):
                        raise answer
                    if isinstance(answer, Lost) and not answer.late and at not in suspects:
                        suspects.add(at)
                        todo.appendleft(at)
                    elif answer is not None:
                        done[at] = answer
            yield done.pop(position)
            show.update()
    finally:
        show.close()
        for worker in pool:
            worker.process.kill()


class _Worker:
    """A process, and the position of the record it is at or -1; another takes its place."""

    def __init__(self, function: Callable[[Record], Any], timeout: float) -> None:
        self._function, self._timeout = function, timeout
        self._start()

    def _start(self) -> None:
        self.at, self.due, self._starting = -1, 0.0, True
        self.pipe, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(self._function, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, position: int, record: Record) -> None:
        with contextlib.suppress(EOFError, OSError):  # It died while idle: `answer` will tell.
            if self._starting:
                self._starting = self.pipe.recv()
            self.pipe.send(record)
        self.at, self.due = position, time.monotonic() + self._timeout

    def answer(self, ready: bool) -> Any:
        """The result; `Lost` if it died or took too long; None if it is at work."""
        if not ready and time.monotonic() < self.due:
            return None
        if ready:
            with contextlib.suppress(EOFError, OSError):
                result = self.pipe.recv()
                self.at = -1
                return result
            self.process.join(5)
        how = f"crashed (exit code {self.process.exitcode})"
        how = how if ready else f"did not answer in {self._timeout:g} s"
        self.process.kill()
        self.pipe.close()
        self._start()
        return Lost(f"the decoder {how}", late=not ready)


def _serve(function: Callable[[Record], Any], pipe: Connection) -> None:
    """What a worker does: says that it has started, then answers until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this.
    with contextlib.suppress(EOFError, OSError):
        pipe.send(False)
        while True:
            record = pipe.recv()
            try:
                answer: Any = function(record)
            except Exception as error:
                answer = error
            pipe.send(answer)
