"""The child process of `isolate.Children`: loads a task, then answers calls until its parent ends.

It imports the standard library, NumPy and what the task needs, nothing else.
"""

import fcntl
import mmap
import os
import pickle
import select
import signal
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from typing import IO, Any

import numpy as np

LENGTH = struct.Struct("<Q")  # Stands before every message.
_NOTE = struct.Struct("<q")
_HEAD = mmap.PAGESIZE  # Of the block: the note, and room so that arrays start at a page.
_LARGE = 1 << 16  # Bytes; a smaller array costs less in the message itself.
_ALIGN = 64


class Block:
    """Memory that both processes see: a note, and the large arrays of one answer.

    It has no name, so that nothing is left behind however the processes end.

    Args:
        descriptor: of a file made by `nameless_file`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        if os.fstat(descriptor).st_size < _HEAD:
            os.ftruncate(descriptor, _HEAD)
        self._map = mmap.mmap(descriptor, 0)

    @property
    def note(self) -> int:
        """What the child last said with `note`, -1 for nothing."""
        return _NOTE.unpack_from(self._map)[0]

    @note.setter
    def note(self, value: int) -> None:
        _NOTE.pack_into(self._map, 0, value)

    def put(self, buffers: Sequence[pickle.PickleBuffer]) -> list[tuple[int, int]]:
        """Copies buffers in, over the last ones; `(offset, bytes)` of each."""
        spans, end = [], _HEAD
        for buffer in buffers:
            size = buffer.raw().nbytes
            spans.append((end, size))
            end = -(-(end + size) // _ALIGN) * _ALIGN
        if end > len(self._map):
            os.ftruncate(self._descriptor, end)
            self._map = mmap.mmap(self._descriptor, 0)
        whole = np.frombuffer(self._map, np.uint8)
        for buffer, (start, size) in zip(buffers, spans):
            whole[start : start + size] = np.frombuffer(buffer.raw(), np.uint8)
        return spans

    def take(self, spans: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Copies of what `put` in the other process left; uint8 arrays."""
        if spans and sum(spans[-1]) > len(self._map):
            self._map = mmap.mmap(self._descriptor, 0)
        return [np.frombuffer(self._map, np.uint8, size, start).copy() for start, size in spans]


_own: Block | None = None  # In a child, the block it shares with its parent.


def note(position: int) -> None:
    """Says which record this process is about to touch, for its parent to read should it die.

    Outside a child of `isolate.Children` it does nothing.
    """
    if _own is not None:
        _own.note = position


def nameless_file() -> IO[bytes]:
    """A file in memory, on disk where the system has none; it goes with its last descriptor."""
    if sys.platform == "linux":
        return open(os.memfd_create("input_pipeline"), "w+b")
    return tempfile.TemporaryFile()


def encode(fine: bool, value: Any, block: Block) -> bytes:
    """The message of an answer (`fine`) or exception; its large arrays go to the block."""
    large: list[pickle.PickleBuffer] = []

    def in_message(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < _LARGE:
            return True
        large.append(buffer)
        return False

    body = pickle.dumps(value, 5, buffer_callback=in_message)
    message = pickle.dumps((fine, body, block.put(large)), 5)
    return LENGTH.pack(len(message)) + message


def decode(message: bytes | bytearray, block: Block) -> tuple[bool, Any]:
    """`(fine, value)` of a message of `encode`, its length taken off; shares no memory with it."""
    fine, body, spans = pickle.loads(message)
    return fine, pickle.loads(body, buffers=block.take(spans))


def main() -> None:
    """`python -m input_pipeline.worker TASK BLOCK LIFE`: three inherited file descriptors.

    TASK holds the pickled task and BLOCK is the shared one; nothing is ever written to the pipe
    LIFE, which closes when the parent ends. Calls come on stdin, answers go to stdout.
    """
    global _own
    task_file, block_file, life = map(int, sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # They are for the parent to handle.
    _die_with(life)
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What a library prints must not get between the answers.
    _own = Block(block_file)
    try:
        with mmap.mmap(task_file, 0, access=mmap.ACCESS_READ) as stored:
            task = pickle.loads(stored)
    except Exception as error:
        _send(answers, encode(False, _portable(error), _own))
        return
    _send(answers, encode(True, None, _own))
    while request := _receive(requests):
        _send(answers, _answer(task, request, _own))


def _answer(task: Callable[..., Any], request: bytes, block: Block) -> bytes:
    try:
        return encode(True, task(*pickle.loads(request)), block)
    except Exception as error:
        return encode(False, _portable(error), block)


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note; another one if the parent could not load it."""
    text = "".join(traceback.format_exception(error))
    try:
        error.add_note(f"In the child process:\n{text}")
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(text.strip())


def _receive(pipe: IO[bytes]) -> bytes:
    """One message; empty if the parent has closed the pipe."""
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return b""
    (size,) = LENGTH.unpack(head)
    message = pipe.read(size)
    return message if len(message) == size else b""


def _send(pipe: IO[bytes], message: bytes) -> None:
    try:
        pipe.write(message)
        pipe.flush()
    except BrokenPipeError:
        os._exit(0)  # The parent has gone; a normal exit would try to flush again.


def _die_with(life: int) -> None:
    """Has the kernel end this process when the pipe closes, even while C code holds it.

    A thread could not run then, and Linux's parent-death signal would come when the thread that
    started this process ends.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    closed = select.poll()
    closed.register(life, 0)
    if closed.poll(0):  # It closed before the kernel was told.
        os._exit(0)


if __name__ == "__main__":
    from input_pipeline import worker  # The module that the task imports, not this one again.

    worker.main()
