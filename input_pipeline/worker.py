"""A worker of `isolate.Children`: loads a task, then answers calls until its parent ends.

It imports the standard library, NumPy and what the task needs, nothing else.
"""

import fcntl
import os
import pickle
import select
import signal
import sys
import traceback
from collections.abc import Callable
from typing import IO, Any

from input_pipeline.block import LENGTH, Block, encode, load

_own: Block | None = None  # In a child, the block it shares with its parent.


def note(position: int) -> None:
    """Says which record this process is about to touch, for its parent to read should it die.

    Its time limit begins anew. Outside a child of `isolate.Children` nothing happens.
    """
    if _own is not None:
        _own.note(position)


def main() -> None:
    """`python -m input_pipeline.worker TASK BLOCK LIFE`: three inherited file descriptors.

    TASK holds the stored task and BLOCK is the shared one; nothing is ever written to the pipe
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
        task = load(task_file)
    except Exception as error:
        _send(answers, encode(False, _portable(error), _own))
        return
    _send(answers, encode(True, None, _own))
    while request := _receive(requests):
        _send(answers, _answer(task, request, _own))


def _answer(task: Callable[..., Any], request: bytes, block: Block) -> bytes:
    try:
        args, room = pickle.loads(request)
        result = task(*args, out=block.room(*room)) if room else task(*args)
        return encode(True, result, block)
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
