"""One supervised worker, seen from its parent: start, call with a time limit, end."""

import contextlib
import os
import pathlib
import pickle
import select
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np

from input_pipeline import worker
from input_pipeline.block import LENGTH, Block, decode, nameless_file
from input_pipeline.sources.records import DataError

_START = 120.0  # Seconds for imports from a slow disk.
_END = 5.0  # Seconds; a process stuck in the kernel dies later, by itself.
# For glibc: a child asks for the same large arrays again and again. Mapped fresh each time, the
# kernel would clear their pages on first touch, a third of the CPU time of a short video.
_KEEP_FREED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}


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


class Child:
    """One process; used by one thread at a time, but any may `kill` it.

    Args:
        task_file: descriptor of a file that `block.store` wrote the task to.

    Raises:
        PoolError: it cannot start.
    """

    def __init__(self, task_file: int) -> None:
        self._memory = nameless_file()
        self._block = Block(self._memory.fileno())
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

    def call(self, request: bytes, timeout: float, out: np.ndarray | None) -> tuple[bool, Any]:
        """`(True, result)` or `(False, exception)`.

        Args:
            request: of `request`.
            timeout: seconds it may take, counted anew from every note that it leaves.
            out: filled with the array that the task has filled.

        Raises:
            Crashed: it died or did not answer in time; of no use any more.
        """
        answer = self._receive(timeout, LENGTH.pack(len(request)) + request)
        if out is not None and answer[0]:
            np.copyto(out, self._block.room(out.shape, out.dtype.str))
        return answer

    def _receive(self, timeout: float, request: bytes = b"") -> tuple[bool, Any]:
        self._block.note(-1)
        try:
            self._write(request, timeout)
            (size,) = LENGTH.unpack(self._read(LENGTH.size, timeout))
            return decode(self._read(size, timeout), self._block)
        except TimeoutError:
            reason = f"the decoder did not answer in {timeout:g} s"
            raise Crashed(reason, self._block.noted[1]) from None
        except (EOFError, BrokenPipeError):
            raise Crashed(self._cause(), self._block.noted[1]) from None

    def _write(self, message: bytes, timeout: float) -> None:
        left = memoryview(message)
        while left:
            self._wait(self._requests.fileno(), select.POLLOUT, timeout)
            with contextlib.suppress(BlockingIOError):
                left = left[os.write(self._requests.fileno(), left) :]

    def _read(self, size: int, timeout: float) -> bytearray:
        message = bytearray()
        while len(message) < size:
            self._wait(self._answers.fileno(), select.POLLIN, timeout)
            part = os.read(self._answers.fileno(), size - len(message))
            if not part:
                raise EOFError
            message += part
        return message

    def _wait(self, descriptor: int, event: int, timeout: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        left = self._left(timeout)
        # What is there counts however late it is, as after this process was suspended.
        while not poll.poll(max(left, 0) * 1e3):
            left = self._left(timeout)  # More again, if the child has noted another record.
            if left <= 0:
                raise TimeoutError

    def _left(self, timeout: float) -> float:
        return self._block.noted[0] + timeout - time.monotonic()

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


def request(args: tuple[Any, ...], out: np.ndarray | None) -> bytes:
    """What asks a child to call its task with `args` and with an array like `out`, if any."""
    return pickle.dumps((args, None if out is None else (out.shape, out.dtype.str)), 5)


def _search_path() -> str:
    """This process's `sys.path`, so that a child finds the same modules."""
    here = str(pathlib.Path(__file__).resolve().parent.parent)
    return os.pathsep.join([*(os.path.abspath(path) for path in sys.path), here])
