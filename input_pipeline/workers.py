"""Decoding in worker processes, so that C code which crashes or hangs costs one record.

grain's threads call these workers: its own ones end all together when one of them dies
(docs/data.md).
"""

import contextlib
import functools
import logging
import mmap
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from input_pipeline.sources.records import DataError
from input_pipeline.video.base import VideoError

_LOG = logging.getLogger(__name__)
_IN_A_ROW = 20  # Workers lost without one answer (or 3 per worker): then it is not the files.
_START = 60.0  # Seconds that a worker may take to start.
# For glibc. Memory mapped fresh for every clip would be cleared by the kernel each time, a third of
# the CPU time of a short video.
_KEEP_FREED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}
_PATH = str(pathlib.Path(__file__).resolve().parent.parent)


class Pool:
    """Workers that run `task(record, *args)`, one for each thread that calls.

    A record at which a worker dies or hangs is tried once more, as memory may have run out or a
    disk been slow, and is then banned. The workers end with this process, however it ends.

    Args:
        task: picklable, of importable modules, of which a worker imports no others.
        timeout: seconds that a call may take.
        shape: of a uint8 array that the task fills, `task(record, *args, out=array)`.
    """

    def __init__(
        self, task: Callable[..., Any], timeout: float, shape: tuple[int, ...] = ()
    ) -> None:
        self.banned: dict[int, str] = {}
        self._start = functools.partial(_Worker, pickle.dumps(task), shape, timeout)
        self._workers: dict[int, _Worker | None] = {}  # By thread; None: one to start.
        self._lost, self._closed = 0, False

    def __call__(self, record: int, *args: Any, out: np.ndarray | None = None) -> Any:
        """What the task returns, and its array in `out`, or what it raises.

        VideoError for a banned record, DataError if many workers in a row were lost or the pool is
        closed.
        """
        thread, tried = threading.get_ident(), False
        while record not in self.banned:
            worker = self._workers[thread] = self._workers.get(thread) or self._start()
            if self._closed:
                worker.end()
                raise DataError("the decoding processes are closed")
            kind, value = worker.call((record, *args), out)
            if kind in ("answer", "error"):
                self._lost = 0
            if kind == "answer":
                return value
            if kind == "error":
                try:
                    raise value
                finally:
                    del value  # Or its traceback would hold this frame, and that `out`.
            if self._closed:
                continue
            worker.end()
            self._workers[thread] = None
            self._lost += 1
            if self._lost >= max(_IN_A_ROW, 3 * len(self._workers)):
                raise DataError(
                    f"{self._lost} decoding processes were lost in a row, at last: {value}; see "
                    "what they printed above, or set data.workers=0"
                )
            if kind == "lost" and tried:
                self.banned[record] = value
            elif kind == "lost":
                tried = True
                _LOG.warning("record %d is tried again: %s", record, value)
        raise VideoError(self.banned[record])

    def close(self) -> None:
        """Ends all workers at once; calls in progress raise `DataError`. May be repeated."""
        self._closed = True
        for worker in filter(None, list(self._workers.values())):
            worker.end()


class _Worker:
    """One process, of one thread; any may `end` it."""

    def __init__(self, task: bytes, shape: tuple[int, ...], timeout: float) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._timeout, self._started = timeout, False
        linux = sys.platform == "linux"  # Containers often have little of /dev/shm.
        with (  # The file goes with the last process that has it.
            open(os.memfd_create("videos"), "w+b") if linux else tempfile.TemporaryFile() as file,
            theirs,
        ):
            os.ftruncate(file.fileno(), int(np.prod(shape)))
            self._array = _mapped(file.fileno(), shape)
            descriptors = theirs.fileno(), file.fileno()
            path = os.pathsep.join([*map(os.path.abspath, sys.path), _PATH])
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "input_pipeline.workers", *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors,
                env=_KEEP_FREED | os.environ | {"PYTHONPATH": path},
                process_group=0,  # Ctrl-C in a terminal is for the parent alone.
            )
        with contextlib.suppress(OSError):  # The first call finds out why.
            self._pipe.send((task, shape, timeout))

    def call(self, request: Any, out: np.ndarray | None) -> tuple[str, Any]:
        """An "answer", or the "error" that the task raised; or why the worker is "lost" at it.

        It is "idle" if it was lost before.
        """
        kind, value = "idle", None
        try:
            if not self._started:
                if not self._pipe.poll(_START):
                    return kind, f"no decoder started in {_START:g} s"
                self._started = self._pipe.recv()
            self._pipe.send(request)
            kind = "lost"
            if not self._pipe.poll(self._timeout):
                return kind, f"no answer from the decoder in {self._timeout:g} s"
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            cause = f"crashed ({signal.Signals(-code).name})" if code < 0 else f"exited ({code})"
            cause += ", as when memory runs out" * (code == -signal.SIGKILL)
            return kind, f"the decoder {cause}"
        if out is not None and kind == "answer":
            out[:] = self._array
        return kind, value

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def _mapped(descriptor: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.ndarray(shape, np.uint8, mmap.mmap(descriptor, 0))


def serve(pipe: Connection, descriptor: int) -> None:
    """A worker's life: first a task, then requests, until the parent has gone."""
    os.dup2(2, 1)  # What C libraries print is not the command's answer.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # They are for the parent to handle.
    stored, shape, timeout = pipe.recv()
    task = pickle.loads(stored)
    kwargs = {"out": _mapped(descriptor, shape)} if shape else {}
    with contextlib.suppress(EOFError, OSError):
        pipe.send(True)  # Started.
        while True:
            args = pipe.recv()
            signal.alarm(int(timeout) + 60)  # Ends C code that hangs when the parent has gone.
            try:
                answer: tuple[str, Any] = "answer", task(*args, **kwargs)
            except Exception as error:
                error.add_note(f"In the worker:\n{traceback.format_exc()}")
                answer = "error", error
            signal.alarm(0)
            pipe.send(answer)


def each(
    function: Callable[[Any, str], Any],
    records: Sequence[Any],
    workers: int = 0,
    timeout: float = 3600.0,
    first: int = 0,
) -> Generator[Any, None, None]:
    """`function(record, "")` of the records from `first` on, in order, with a progress bar.

    For a record at which two workers died or hung it is `function(record, why)`, in this process;
    `workers=0` are as many as there are cores, and one record may take `timeout` seconds.
    """
    import grain
    import tqdm  # Workers have no use for them.

    size = workers if workers > 0 else os.cpu_count() or 1
    pool = Pool(functools.partial(_each, function), timeout)

    def call(position: int) -> Any:
        try:
            return pool(position, records[position])
        except VideoError as error:
            if position not in pool.banned:
                raise
            return function(records[position], str(error))

    made = (
        grain.MapDataset.source(range(first, len(records)))
        .map(call)
        .to_iter_dataset(grain.ReadOptions(size, 4 * size))
    )
    every = 0.2 if sys.stderr.isatty() else 10.0
    show = functools.partial(tqdm.tqdm, total=len(records), initial=first, mininterval=every)
    with contextlib.closing(iter(made)) as answers, contextlib.closing(pool):
        yield from show(answers, unit=" videos")


def _each(function: Callable[[Any, str], Any], _: int, record: Any) -> Any:
    return function(record, "")


if __name__ == "__main__":
    from input_pipeline import workers  # The module that the task imports, not this one again.

    workers.serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
