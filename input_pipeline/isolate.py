"""Work in supervised child processes, so that C code which crashes or hangs costs one record.

Threads cannot be killed; a child can, and a fresh one takes its place.
"""

import contextlib
import logging
import os
import pathlib
import pickle
import queue
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from input_pipeline import worker
from input_pipeline.records import DataError

_LOG = logging.getLogger(__name__)
_START = 120.0  # Seconds for imports from a slow disk.
_IN_A_ROW = 20  # Children lost without one answer (or 3 per process): then it is not the files.
# For glibc: a child asks for the same large arrays again and again. Mapped fresh each time, the
# kernel would clear their pages on first touch, a third of the CPU time of a short video.
_KEEP_FREED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}
_END = 5.0  # Seconds; a process stuck in the kernel dies later, by itself.


class PoolError(DataError, RuntimeError):
    """The processes cannot do their work; the message is one line with the cure."""


class Crashed(RuntimeError):
    """A child ended or was ended during a call.

    Attributes:
        reason: one short line.
        note: what the child last passed to `worker.note` in this call, -1 for nothing.
    """

    def __init__(self, reason: str, note: int) -> None:
        super().__init__(reason, note)
        self.reason = reason
        self.note = note

    def __str__(self) -> str:
        return self.reason


class _Child:
    """One process; used by one thread at a time, but any may `kill` it."""

    def __init__(self, task_file: int) -> None:
        self._memory = worker.nameless_file()
        self._block = worker.Block(self._memory.fileno())
        read_end, self._life = os.pipe()
        inherited = (task_file, self._memory.fileno(), read_end)
        try:
            # Its own group: Ctrl-C in a terminal is for the parent alone.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", worker.__name__, *map(str, inherited)],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=inherited,
                env=_KEEP_FREED | os.environ | {"PYTHONPATH": _search_path()},
                process_group=0,
            )
        except OSError as error:
            os.close(self._life)
            raise PoolError(
                f"a decoding process cannot start ({error.strerror}); set data.workers=0"
            ) from error
        finally:
            os.close(read_end)
        assert self._process.stdin
        assert self._process.stdout
        self._requests, self._answers = self._process.stdin, self._process.stdout
        os.set_blocking(self._requests.fileno(), False)

    def wait_until_ready(self) -> None:
        """Waits for the first message, which says whether the task could be loaded."""
        try:
            fine, error = self._receive(_START)
        except Crashed as crash:
            raise PoolError(
                f"a decoding process cannot start: {crash.reason}; see what it printed above, or "
                "set data.workers=0"
            ) from crash
        if not fine:
            raise PoolError(
                f"a decoding process cannot start: {type(error).__name__}: {error} "
                "(its task must come from modules it can import, not from the main script)"
            ) from error

    def call(self, request: bytes, timeout: float) -> tuple[bool, Any]:
        """`(True, result)` or `(False, exception)`.

        Raises:
            Crashed: it died or did not answer in time; of no use any more.
        """
        self._block.note = -1
        return self._receive(timeout, worker.LENGTH.pack(len(request)) + request)

    def _receive(self, timeout: float, request: bytes = b"") -> tuple[bool, Any]:
        deadline = time.monotonic() + timeout
        try:
            self._write(request, deadline)
            (size,) = worker.LENGTH.unpack(self._read(worker.LENGTH.size, deadline))
            return worker.decode(self._read(size, deadline), self._block)
        except TimeoutError:
            raise Crashed(
                f"the decoder did not answer in {timeout:g} s", self._block.note
            ) from None
        except (EOFError, BrokenPipeError):
            raise Crashed(self._cause(), self._block.note) from None

    def _write(self, message: bytes, deadline: float) -> None:
        left = memoryview(message)
        while left:
            _wait(self._requests.fileno(), select.POLLOUT, deadline)
            with contextlib.suppress(BlockingIOError):
                left = left[os.write(self._requests.fileno(), left) :]

    def _read(self, size: int, deadline: float) -> bytearray:
        message = bytearray()
        while len(message) < size:
            _wait(self._answers.fileno(), select.POLLIN, deadline)
            part = os.read(self._answers.fileno(), size - len(message))
            if not part:
                raise EOFError
            message += part
        return message

    def _cause(self) -> str:
        """How it ended, once its pipe is closed."""
        try:
            code = self._process.wait(_END)
        except subprocess.TimeoutExpired:
            return "the decoder closed its pipe"
        if code >= 0:
            return f"the decoder exited (code {code})"
        name = signal.Signals(-code).name
        hint = ", as when memory runs out" if name == "SIGKILL" else ""
        return f"the decoder crashed ({name}{hint})"

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """Ends it and frees all it holds, once."""
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END)
        if not self._memory.closed:
            os.close(self._life)
        for file in (self._requests, self._answers, self._memory):
            file.close()


class Children:
    """A pool of processes that run one task; call it like the task, from any number of threads.

    Use it in `with`, or `close` it. The children end with this process however it ends, and leave
    nothing behind. Each has this process's `sys.path` and environment but imports only what the
    pickled task needs, so its functions must not lie in the main script.

    Args:
        task: picklable; loaded once in each child. It may leave a `worker.note`.
        size: processes; more threads than that wait for one another.
        timeout: seconds one call may take.

    Raises:
        ValueError: `size` or `timeout` is not positive.
        RuntimeError: a child cannot start; the reason is shown.
    """

    def __init__(self, task: Callable[..., Any], size: int, timeout: float) -> None:
        if size < 1 or timeout <= 0:
            raise ValueError(f"{size} processes and {timeout:g} s; both must be above 0")
        self._timeout = timeout
        self._limit = max(_IN_A_ROW, 3 * size)  # A disk that stalls takes all of them at once.
        self._task_file = worker.nameless_file()
        pickle.dump(task, self._task_file, 5)
        self._task_file.flush()
        self._lock = threading.Lock()
        self._alive: set[_Child] = set()
        self._lost = 0  # Since the last answer.
        self._closed = False
        self._free: queue.LifoQueue[_Child | None] = queue.LifoQueue()  # None: to be started.
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

    def __call__(self, *args: Any) -> Any:
        """`task(*args)` in a child; large arrays of the result are copied once.

        Raises:
            Crashed: the child died or did not answer in `timeout` seconds. The next call starts a
                fresh one.
            RuntimeError: many children in a row were lost, a fresh one cannot start, or `close`
                was called.
            Exception: whatever the task raised, with the child's traceback as a note.
        """
        request = pickle.dumps(args, 5)
        child, answer = self._free.get(), None
        try:
            if self._closed:
                raise PoolError("the decoding processes are closed")
            if child is None:
                child = self._start()
                child.wait_until_ready()
            answer = child.call(request, self._timeout)
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

    def _start(self) -> _Child:
        with self._lock:
            if self._closed:
                raise PoolError("the decoding processes are closed")
            child = _Child(self._task_file.fileno())
            self._alive.add(child)
        return child

    def _drop(self, child: _Child) -> None:
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


class Supervised:
    """A task for `grain`'s `random_map` in child processes: `(position, rng) -> element`.

    A record at which a child dies is tried once more, because memory may have run out or a disk may
    have been slow, and is then banned: the task is called again, from the same random state, and
    has to treat it as unreadable. So elements depend on which records can be read, not on when a
    child died.

    Args:
        task: `(position, rng, banned) -> element`; calls `worker.note(p)` before it touches record
            p and takes `banned[p]`, where there is one, for the reason why it cannot be read.
        size: processes.
        timeout: seconds one element may take.
    """

    def __init__(
        self,
        task: Callable[[int, np.random.Generator, Mapping[int, str]], Any],
        size: int,
        timeout: float,
    ) -> None:
        self._children = Children(task, size, timeout)
        self._lock = threading.Lock()
        self._banned: dict[int, str] = {}

    @property
    def banned(self) -> dict[int, str]:
        """Position and reason of each record given up so far."""
        with self._lock:
            return dict(self._banned)

    def __call__(self, position: int, rng: np.random.Generator) -> Any:
        """The element; `rng` is read, not advanced.

        Raises:
            RuntimeError: as `Children`.
        """
        tried: set[int] = set()
        while True:
            try:
                return self._children(position, rng, self.banned)
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


def _wait(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    # What is there counts however late it is, as after this process was suspended.
    if not poll.poll(max(deadline - time.monotonic(), 0) * 1e3):
        raise TimeoutError


def _search_path() -> str:
    """This process's `sys.path`, so that a child finds the same modules."""
    here = str(pathlib.Path(__file__).resolve().parent.parent)
    return os.pathsep.join([*(os.path.abspath(path) for path in sys.path), here])


def _close_all(children: set[_Child]) -> None:
    while children:
        children.pop().close()
