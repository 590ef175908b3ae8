"""Decoding in worker processes, so that C code which crashes or hangs costs one record.

grain's threads call these workers: its own ones end all together when one of them dies
(docs/data.md).
"""

import contextlib
import logging
import mmap
import os
import pathlib
import pickle
import queue
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from input_pipeline.sources.records import DataError

_LOG = logging.getLogger(__name__)
_IN_A_ROW = 20  # Workers lost without one answer (or 3 per worker): then it is not the files.
_START = 60.0  # Seconds more for a worker that may be starting, until its first note.
_HEAD = mmap.PAGESIZE  # Of the memory that a worker shares: its note. The array is behind it.
# For glibc. Memory mapped fresh for every clip would be cleared by the kernel each time, a third of
# the CPU time of a short video.
_KEEP_FREED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}
_PATH = str(pathlib.Path(__file__).resolve().parent.parent)


class Pool:
    """Workers that run `task(*args, banned=...)`; called with `*args` from any number of threads.

    A record at which a worker dies or hangs is tried once more, as memory may have run out or a
    disk been slow, and is then banned: answers depend on which records can be read, not on when a
    worker died. The workers end with this process, however it ends.

    Args:
        task: picklable, of importable modules, of which a worker imports no others. It calls
            `note(p)` before it touches record p, and takes `banned[p]`, where there is one, for the
            reason why it cannot be read.
        size: workers; each starts when it is first needed.
        timeout: seconds one may take from one note to the next.
        shape: of a uint8 array that the task fills, `task(*args, banned=..., out=array)`; () for
            none.
    """

    def __init__(
        self, task: Callable[..., Any], size: int, timeout: float, shape: tuple[int, ...] = ()
    ) -> None:
        self.banned: dict[int, str] = {}
        self._task, self._shape = pickle.dumps(task), shape
        self._timeout, self._limit = timeout, max(_IN_A_ROW, 3 * size)
        self._lost, self._closed = 0, False
        self._alive: set[_Worker] = set()
        self._free: queue.LifoQueue[_Worker | None] = queue.LifoQueue()  # None: one to start.
        for _ in range(size):
            self._free.put(None)

    def __call__(self, *args: Any, out: np.ndarray | None = None) -> Any:
        """What the task returns, and its array in `out`, or what it raises.

        Raises:
            DataError: many workers in a row were lost, or the pool is closed.
        """
        tried: set[int] = set()
        while True:
            worker, answer = self._free.get(), None
            try:
                if worker is None and not self._closed:
                    worker = _Worker(self._task, self._shape)
                    self._alive.add(worker)
                if worker is None or self._closed:
                    raise DataError("the decoding processes are closed")
                answer = worker.call((args, dict(self.banned)), self._timeout, out)
            except _CrashError as crash:
                self._count(crash)
                if crash.position in tried:
                    self.banned[crash.position] = crash.reason
                elif crash.position >= 0:
                    tried.add(crash.position)
                    _LOG.warning("record %d is tried again: %s", crash.position, crash.reason)
                continue
            finally:
                if worker and (self._closed or not answer):
                    self._alive.discard(worker)
                    worker.end()
                self._free.put(None if self._closed or not answer else worker)
            self._lost = 0
            if not answer[0]:
                raise answer[1]
            return answer[1]

    def close(self) -> None:
        """Ends all workers at once; calls in progress raise `DataError`. May be repeated."""
        self._closed = True
        for worker in list(self._alive):
            worker.kill()
        with contextlib.suppress(queue.Empty):  # Who waits for one in use ends it.
            while True:
                if idle := self._free.get_nowait():
                    self._alive.discard(idle)
                    idle.end()
        self._free.put(None)

    def _count(self, crash: "_CrashError") -> None:
        self._lost += 1
        if self._closed:
            raise DataError("the decoding processes are closed") from crash
        if self._lost >= self._limit:
            raise DataError(
                f"{self._limit} decoding processes were lost in a row, at last: {crash.reason}; "
                "see what they printed above, or set data.workers=0"
            ) from crash


class _CrashError(RuntimeError):
    """A worker died or hung; the record that it had noted, -1 for none."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason)
        self.reason, self.position = reason, position


class _Worker:
    """One process; used by one thread at a time, but any may `kill` it."""

    def __init__(self, task: bytes, shape: tuple[int, ...]) -> None:
        size = _HEAD + int(np.prod(shape)) * bool(shape)
        with _nameless_file() as file:  # It goes with the last process that has it.
            os.ftruncate(file.fileno(), size)
            self._note, self._array = _mapped(file.fileno(), shape)
            path = os.pathsep.join([*map(os.path.abspath, sys.path), _PATH])
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "input_pipeline.workers", str(file.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[file.fileno()],
                env=_KEEP_FREED | os.environ | {"PYTHONPATH": path},
                process_group=0,  # Ctrl-C in a terminal is for the parent alone.
            )
        assert self._process.stdin
        assert self._process.stdout
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._poll = select.poll()
        self._poll.register(self._answers, select.POLLIN)
        with contextlib.suppress(BrokenPipeError):  # The first call finds out why.
            pickle.dump((task, shape), self._requests)

    def call(self, request: Any, timeout: float, out: np.ndarray | None) -> tuple[bool, Any]:
        """`(True, answer)` or `(False, exception)`; raises `_CrashError`."""
        self._note[:] = -1, time.monotonic(), timeout
        try:
            pickle.dump(request, self._requests)
            self._requests.flush()
            while not self._poll.poll(500):
                if time.monotonic() > self._note[1] + timeout + _START * (self._note[0] < 0):
                    reason = f"the decoder did not answer in {timeout:g} s"
                    raise _CrashError(reason, int(self._note[0]))
            fine, value = pickle.load(self._answers)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            raise _CrashError(self._cause(), int(self._note[0])) from None
        if out is not None and fine:
            out[:] = self._array
        return fine, value

    def _cause(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"the decoder exited (code {code})"
        name = signal.Signals(-code).name
        return f"the decoder crashed ({name}{', as when memory runs out' * (name == 'SIGKILL')})"

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        self.kill()
        self._process.wait()
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _nameless_file() -> Any:
    if sys.platform == "linux":  # Containers often have little of /dev/shm.
        return os.fdopen(os.memfd_create("input_pipeline"), "w+b")
    return tempfile.TemporaryFile()


def _mapped(descriptor: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray | None]:
    """The note: record at work, since when, time limit (seconds); and the array of a worker."""
    memory = mmap.mmap(descriptor, 0)
    array = np.ndarray(shape, np.uint8, memory, _HEAD) if shape else None
    return np.ndarray(3, np.float64, memory), array


_note: np.ndarray | None = None  # In a worker, its own.


def note(position: int) -> None:
    """Says which record this process is about to touch; a worker's time limit begins anew."""
    if _note is not None:
        _note[:2] = position, time.monotonic()
        signal.alarm(int(_note[2]) + 60)  # Ends C code that hangs when the parent has gone.


def serve(descriptor: int) -> None:
    """A worker's life: requests come on stdin, from a task on; answers go to stdout."""
    global _note
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # They are for the parent to handle.
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What a library prints must not get between the answers.
    stored, shape = pickle.load(requests)
    _note, out = _mapped(descriptor, shape)
    task = pickle.loads(stored)
    with contextlib.suppress(EOFError, BrokenPipeError):  # The parent has gone.
        while True:
            args, banned = pickle.load(requests)
            try:
                kwargs = {} if out is None else {"out": out}
                answer = pickle.dumps((True, task(*args, banned=banned, **kwargs)))
            except Exception as error:
                error.add_note(f"In the worker:\n{traceback.format_exc()}")
                answer = pickle.dumps((False, error))
            signal.alarm(0)
            answers.write(answer)
            answers.flush()


if __name__ == "__main__":
    from input_pipeline import workers  # The module that the task imports, not this one again.

    workers.serve(int(sys.argv[1]))
