"""What a process and its child pass to each other: messages, and memory that both see."""

import mmap
import os
import pickle
import struct
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

LENGTH = struct.Struct("<Q")  # Stands before every message.
_HEAD = mmap.PAGESIZE  # Of the block: the note, and room so that arrays start at a page.
_LARGE = 1 << 16  # Bytes; a smaller array costs less in the message itself.
_ALIGN = 64


class Block:
    """Memory of one child that its parent sees too: a note, and the large arrays of one answer.

    It has no name, so that nothing is left behind however the processes end.

    Args:
        descriptor: of a file made by `nameless_file`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        if os.fstat(descriptor).st_size < _HEAD:
            os.ftruncate(descriptor, _HEAD)
        self._map = mmap.mmap(descriptor, 0)
        self._used = _HEAD

    @property
    def noted(self) -> tuple[float, int]:
        """When the child last called `note`, by `time.monotonic`, and what it said."""
        when, value = np.ndarray(1, "f8", self._map), np.ndarray(1, "i8", self._map, 8)
        return float(when[0]), int(value[0])

    def note(self, value: int) -> None:
        """Leaves a number for the other process; the clock is the same in both."""
        # Each number at once: struct would clear both first, for the other process to see.
        np.ndarray(1, "i8", self._map, 8)[0] = value
        np.ndarray(1, "f8", self._map)[0] = time.monotonic()

    def room(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """An array at the start, with whatever is there; what `put` copies comes after it.

        The other process gets the same memory by the same call.
        """
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._used = _aligned(_HEAD + size)
        self._grow(self._used)
        return np.ndarray(shape, dtype, self._map, _HEAD)

    def _grow(self, end: int) -> None:
        if end > os.fstat(self._descriptor).st_size:
            os.ftruncate(self._descriptor, end)
        if end > len(self._map):
            self._map = mmap.mmap(self._descriptor, 0)  # Arrays of the old one see the same memory.

    def put(self, buffers: Sequence[pickle.PickleBuffer]) -> list[tuple[int, int]]:
        """Copies buffers in, over the last ones; `(offset, bytes)` of each."""
        spans, end = _places(buffers, self._used)
        self._used = _HEAD
        self._grow(end)
        whole = np.frombuffer(self._map, np.uint8)
        for buffer, (start, size) in zip(buffers, spans):
            whole[start : start + size] = np.frombuffer(buffer.raw(), np.uint8)
        return spans

    def take(self, spans: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Copies of what `put` in the other process left; uint8 arrays."""
        if spans:
            self._grow(sum(spans[-1]))
        return [np.frombuffer(self._map, np.uint8, size, start).copy() for start, size in spans]


def nameless_file() -> IO[bytes]:
    """A file in memory, on disk where the system has none; it goes with its last descriptor."""
    if sys.platform == "linux":
        return open(os.memfd_create("input_pipeline"), "w+b")
    return tempfile.TemporaryFile()


def encode(fine: bool, value: Any, block: Block) -> bytes:
    """The message of an answer (`fine`) or exception; its large arrays go to the block."""
    body, large = _dumps(value)
    message = pickle.dumps((fine, body, block.put(large)), 5)
    return LENGTH.pack(len(message)) + message


def decode(message: bytes | bytearray, block: Block) -> tuple[bool, Any]:
    """`(fine, value)` of a message of `encode`, its length taken off; shares no memory with it."""
    fine, body, spans = pickle.loads(message)
    return fine, pickle.loads(body, buffers=block.take(spans))


def store(value: Any, file: IO[bytes]) -> None:
    """Writes a value so that `load` gives it to any number of processes."""
    body, large = _dumps(value)
    spans, _ = _places(large, 0)
    head = pickle.dumps((body, spans), 5)
    begin = _aligned(LENGTH.size + len(head))
    file.write(LENGTH.pack(len(head)) + head)
    for buffer, (start, _) in zip(large, spans):
        file.seek(begin + start)
        file.write(buffer.raw())
    file.flush()


def load(descriptor: int) -> Any:
    """What `store` wrote; its large arrays are read only, and one copy serves all processes."""
    stored = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    (size,) = LENGTH.unpack_from(stored)
    body, spans = pickle.loads(memoryview(stored)[LENGTH.size : LENGTH.size + size])
    begin = _aligned(LENGTH.size + size)
    large = [np.frombuffer(stored, np.uint8, size, begin + start) for start, size in spans]
    return pickle.loads(body, buffers=large)


def _dumps(value: Any) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """The pickle of a value without its large arrays, and these."""
    large: list[pickle.PickleBuffer] = []

    def in_message(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < _LARGE:
            return True
        large.append(buffer)
        return False

    return pickle.dumps(value, 5, buffer_callback=in_message), large


def _places(buffers: Sequence[pickle.PickleBuffer], end: int) -> tuple[list[tuple[int, int]], int]:
    """`(offset, bytes)` of each buffer, one after the other from `end` on; and where they end."""
    spans = []
    for buffer in buffers:
        size = buffer.raw().nbytes
        spans.append((end, size))
        end = _aligned(end + size)
    return spans, end


def _aligned(end: int) -> int:
    return -(-end // _ALIGN) * _ALIGN
