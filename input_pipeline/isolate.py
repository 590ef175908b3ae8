"""Work in supervised workers (processes), so that C code which crashes or hangs costs one record.

Threads cannot be killed; a child can, and a fresh one takes its place.
"""

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from input_pipeline import block
from input_pipeline.child import Child, Crashed, PoolError, request

_IN_A_ROW = 20  # Children lost without one answer (or 3 per process): then it is not the files.


class Children:
    """A pool of processes that run one task; call it like the task, from any number of threads.

    Use it in `with`, or `close` it. The children end with this process however it ends, and leave
    nothing behind. Each has this process's `sys.path` and environment but imports only what the
    pickled task needs, so its functions must not lie in the main script.

    Args:
        task: picklable; loaded once in each child, which all share its large arrays, read only. It
            may leave a `worker.note`.
        size: processes; more threads than that wait for one another.
        timeout: seconds one call may take, or what it does from one note to the next.

    Raises:
        ValueError: `size` or `timeout` is not positive.
        RuntimeError: a child cannot start; the reason is shown.
    """

    def __init__(self, task: Callable[..., Any], size: int, timeout: float) -> None:
        if size < 1 or timeout <= 0:
            raise ValueError(f"{size} processes and {timeout:g} s; both must be above 0")
        self._timeout = timeout
        self._limit = max(_IN_A_ROW, 3 * size)  # A disk that stalls takes all of them at once.
        self._task_file = block.nameless_file()
        block.store(task, self._task_file)
        self._lock = threading.Lock()
        self._alive: set[Child] = set()
        self._lost = 0  # Since the last answer.
        self._closed = False
        self._free: queue.LifoQueue[Child | None] = queue.LifoQueue()  # None: to be started.
        self._finalizer = weakref.finalize(self, _close_all, self._alive)
        self._finalizer.atexit = False  # At the end of this process they end by themselves.
        try:
            children = [self._start() for _ in range(size)]
            for child in children:
                child.wait_until_ready()
                self._free.put(child)
        except BaseException:
            _close_all(self._alive)
            raise

    def __call__(self, *args: Any, out: np.ndarray | None = None) -> Any:
        """`task(*args)` in a child, or `task(*args, out=...)`; large arrays are copied once.

        Args:
            *args: what the task is called with.
            out: the task gets an array like it to fill, which holds whatever was there; copied to
                `out` when it returns.

        Raises:
            Crashed: the child died or did not answer in `timeout` seconds. The next call starts a
                fresh one.
            RuntimeError: many children in a row were lost, a fresh one cannot start, or `close`
                was called.
            Exception: whatever the task raised, with the child's traceback as a note.
        """
        message = request(args, out)
        child, answer = self._free.get(), None
        try:
            if self._closed:
                raise PoolError("the decoding processes are closed")
            if child is None:
                child = self._start()
                child.wait_until_ready()
            answer = child.call(message, self._timeout, out)
        except Crashed as crash:
            self._count(crash)
            raise
        finally:
            with self._lock:
                keep = answer is not None and not self._closed
                self._free.put(child if keep else None)
            if child is not None and not keep:
                self._drop(child)
        self._lost = 0
        fine, value = answer
        if not fine:
            raise value
        return value

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all children at once; calls in progress raise `RuntimeError`. May be repeated."""
        with self._lock:
            self._closed = True
            for child in self._alive:
                child.kill()
            idle = []
            with contextlib.suppress(queue.Empty):
                while True:
                    idle.append(self._free.get_nowait())
            for _ in idle:
                self._free.put(None)  # Who waits for a child finds this closed.
        for unused in idle:  # Those in use are closed by the thread that sees them end.
            if unused is not None:
                self._drop(unused)
        self._task_file.close()

    def _start(self) -> Child:
        with self._lock:
            if self._closed:
                raise PoolError("the decoding processes are closed")
            child = Child(self._task_file.fileno())
            self._alive.add(child)
        return child

    def _drop(self, child: Child) -> None:
        with self._lock:
            self._alive.discard(child)
        child.close()

    def _count(self, crash: Crashed) -> None:
        if self._closed:
            raise PoolError("the decoding processes are closed") from None
        with self._lock:
            self._lost += 1
        if self._lost >= self._limit:
            raise PoolError(
                f"{self._limit} decoding processes were lost in a row, at last: {crash.reason}"
            ) from crash


def _close_all(children: set[Child]) -> None:
    while children:
        children.pop().close()
