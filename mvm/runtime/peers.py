"""What the processes of a run tell each other: that they live, and why they end."""

import contextlib
import ctypes
import itertools
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

import jax
from jax._src import distributed  # The key-value store of a job has no public name yet.

MISTAKE, RESTART = 2, 75
"""Exit codes: the command must change; the same command goes on (EX_TEMPFAIL of sysexits.h)."""

_PERIOD = 2.0
"""Seconds between two looks at the other processes."""
_PATIENCE = 60.0
"""Seconds without a sign of life after which a process counts as lost."""
HEARTBEAT = 150
"""The same as `_PATIENCE` for JAX's runtime, which knows no clear words and so comes second; it
is what notices that process 0, where all signs of life are kept, hangs."""

_AGAIN = "the same command goes on from the newest checkpoint"

_LOST = re.compile(r"(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")
"""How errors begin that a lost process causes in the others; want of memory has another name."""

_over = threading.Event()


def first_line(error: BaseException) -> str:
    """The first line of its message, cut; its name if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0][:300]


def watch() -> None:
    """From here on a process that ends early (`fail`), is lost or hangs ends all of them.

    The processes must have met; alone there is nothing to watch.
    """
    if distributed.global_state.num_processes > 1:
        _speak_when_aborted()
        threading.Thread(target=_watch, name="peers", daemon=True).start()


_handlers: list[Any] = []  # Kept, because C calls them.


def _speak_when_aborted() -> None:
    """Where the runtime aborts, because process 0 is gone, adds a line and leaves to be restarted.

    Python's own handlers run between two instructions of the main thread, hence never again.
    """

    def aborted(_: int) -> None:
        message = "the runtime gave up, see above: most likely process 0 is lost; " + _AGAIN
        os.write(2, f"error: {message}\n".encode())
        os._exit(RESTART)

    _handlers.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted))
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _handlers[-1])


def _watch() -> None:
    """Shows that this process lives, and looks whether the others do."""
    client: Any = distributed.global_state.client
    index = distributed.global_state.process_id
    count, began = distributed.global_state.num_processes, time.monotonic()
    # Process 0 looks after the others; JAX's runtime, in all of them, after process 0.
    seen = {str(other): ("", began) for other in range(1, 0 if index else count)}
    for beat in itertools.count():
        if _over.wait(_PERIOD):
            return
        try:
            client.key_value_set(f"mvm/alive/{index}", str(beat), allow_overwrite=True)
            last_words = client.key_value_dir_get("mvm/last_words/")
            alive = client.key_value_dir_get("mvm/alive/") if seen else []
        except jax.errors.JaxRuntimeError:
            continue  # Process 0 is gone: the runtime is about to notice.
        for _, words in last_words:
            other, code, message = words.split("\t", 2)
            if int(other) != index:
                _leave(message, int(code))
        now = time.monotonic()
        for key, value in alive:
            other = key.rsplit("/", 1)[1]
            if other in seen and seen[other][0] != value:
                seen[other] = (value, now)
        for other, (_, last) in seen.items():
            if now - last > _PATIENCE:
                silent = f"process {other} has been silent for {now - last:.0f} s"
                fail(f"{silent}, lost or hung; {_AGAIN}", RESTART)


def _leave(message: str, code: int) -> NoReturn:
    """Ends at once: the way out through the interpreter waits for processes that may be gone."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


def fail(message: str, code: int) -> NoReturn:
    """Ends this process with one line, and with it all others of the run with the same code."""
    state: Any = distributed.global_state
    if state.client is None or state.num_processes == 1:
        if threading.current_thread() is not threading.main_thread():
            _leave(message, code)
        print(f"error: {message}", file=sys.stderr, flush=True)
        raise SystemExit(code)
    place = f"process {state.process_id} on {socket.gethostname()}: {message}"

    def tell() -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            words = f"{state.process_id}\t{code}\t{place}"
            state.client.key_value_set(f"mvm/last_words/{state.process_id}", words)

    # A hung process 0 must not keep this one; a sound one waits until all have read it.
    telling = threading.Thread(target=tell, daemon=True)
    telling.start()
    telling.join(5 * _PERIOD)
    if state.process_id == 0:
        time.sleep(3 * _PERIOD)
    _leave(place, code)


def crashed(error: BaseException) -> NoReturn:
    """Ends all processes after an error that is not the user's: a lost process, or a bug here.

    Raises:
        Exception: the error itself, where there is but one process.
    """
    if distributed.global_state.client is None or distributed.global_state.num_processes == 1:
        raise error
    # JAX raises the runtime's errors as one or the other, by where it meets them.
    runtimes = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
    if runtimes and _LOST.match(str(error)):
        time.sleep(3 * _PERIOD)  # If another one left last words, they say more and end us here.
        fail(
            f"lost another process, or a program failed in all ({first_line(error)}); {_AGAIN}",
            RESTART,
        )
    traceback.print_exception(error)
    fail(f"{type(error).__name__}: {first_line(error)}", 1)


def finish() -> None:
    """Waits for the other processes, whose last files may be under way; then all may leave."""
    state = distributed.global_state
    if state.client is not None and state.num_processes > 1:
        state.client.wait_at_barrier("mvm/finish", 3_600_000)
        _over.set()
