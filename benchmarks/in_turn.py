"""Programs that are compared: each in a process of its own, taking steps in turn.

So neither has the other's memory or threads, and both meet the same other load of the machine.
"""

import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

WARMUP = 2
"""Steps left out: the first runs touch new memory."""
PAUSE_S = 0.25
"""Between turns: OpenMP's threads go on waiting for work for a while."""


class SideError(RuntimeError):
    """Sides that cannot be compared: one line that says why."""


def _peak_gb() -> float:
    """Most memory that this process has had, GB (1e9 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def use_cores(number: int = 0) -> int:
    """Binds this process to as many of its cores (0 = all); returns how many it has."""
    if not sys.platform.startswith("linux"):
        return number or os.cpu_count() or 1
    cores = sorted(os.sched_getaffinity(0))
    if number:
        os.sched_setaffinity(0, cores[:number])
    return len(os.sched_getaffinity(0))


def _serve(pipe: Any, cores: int, kind: Any, arguments: tuple[Any, ...]) -> None:
    """Builds one side and does what the pipe asks for: (method, argument) -> result."""
    use_cores(cores)
    malloc = kind.prepare()
    side = kind(*arguments)
    pipe.send({**side.about, "malloc": malloc})
    while (asked := pipe.recv()) is not None:
        method, argument = asked
        began, began_cpu = time.perf_counter(), time.process_time()
        result = getattr(side, method)(argument)
        if method == "step":
            seconds = time.perf_counter() - began
            cpu_seconds = time.process_time() - began_cpu
            result |= {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gb": _peak_gb()}
        pipe.send(result)


class Process:
    """One side in a process of its own.

    Args:
        name: for messages.
        cores: how many it may use; 0 = all.
        kind: a class with `prepare`, `about` and the methods that are asked for; `step` is timed.
        arguments: of its constructor.
    """

    def __init__(self, name: str, cores: int, kind: Any, *arguments: Any):
        self.name = name
        # Not forked: threads of the libraries would not survive it.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, cores, kind, arguments), daemon=True
        )
        self._process.start()
        theirs.close()
        self.about = self._answer()

    def ask(self, method: str, argument: Any = None) -> Any:
        """Has the side do something and waits for it."""
        self._pipe.send((method, argument))
        return self._answer()

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            raise SideError(f"{self.name} has ended; its own message is above") from None

    def close(self) -> None:
        """Ends the process, its work done."""
        if self._process.is_alive():
            self._pipe.send(None)
        self._process.join(20)
        self._process.kill()


def in_turn(
    sides: Mapping[str, Process], steps: int, argument: Any
) -> dict[str, list[dict[str, float]]]:
    """Numbers of `steps` steps of each side, one after another, after those of the warm-up."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(WARMUP + steps):
        for name, side in sides.items():
            taken[name].append(side.ask("step", argument))
            time.sleep(PAUSE_S)
    return {name: found[WARMUP:] for name, found in taken.items()}
