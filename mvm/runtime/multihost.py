"""Many processes, one run: they meet, agree on what they run and stop at the same step.

JAX does the rest: it finds the processes of a cluster, watches their heartbeats and aborts those
that are left when one is lost.
"""

import contextlib
import errno
import faulthandler
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from mvm.types import UserError, first_line

MISTAKE, RESTART = 2, 75
"""Exit codes: the command must change; the same command resumes (EX_TEMPFAIL of sysexits.h)."""

JOB = "MVM_JOB"
"""Environment variable: the number of a process that `share` started."""

HEARTBEAT = 100
"""Seconds without a heartbeat after which JAX counts a process as lost."""

_STALE = 90
"""Seconds; network file systems remember for a minute that a file was not there."""

_LOST = re.compile(r"(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")
"""Starts of the errors that a lost process causes in the others; out of memory has another."""

_DISK = {errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.ESTALE}
_agreed: list[bool] = []
_ERROR = "error: "
_calls = itertools.count(1)  # One count for all stages: JAX compares it between processes.


class RestartError(UserError):
    """Ended for a reason that may have passed when the same command runs again; one line."""


def start(
    coordinator: str | None, num_processes: int | None, process_id: int | None, insist: bool
) -> None:
    """Joins the processes of a run, by flags or as JAX finds them; else stays alone.

    Nothing may have used devices before. To `insist` is to fail where there is no cluster.
    """
    given = {coordinator, num_processes, process_id} - {None}
    if not (given or insist or launched(os.environ)):
        return
    if coordinator is not None and not re.fullmatch(r"\S+:\d+", coordinator):
        raise UserError(f"--coordinator={coordinator} is not HOST:PORT, such as node0:8476")
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=3600,  # While process 0 draws figures.
        )
    except (ValueError, TypeError, KeyError, OSError, RuntimeError) as error:
        raise UserError(
            f"the other processes were not found ({first_line(error)}); give every process "
            f"--coordinator=HOST:PORT, --num_processes=N and --process_id=I"
        ) from error


def launched(environment: Mapping[str, str]) -> bool:
    """Whether a launcher started several processes, or there is a TPU, whose hosts JAX knows."""
    if "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1:
        return True
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return True
    # JAX sets TPU_SKIP_MDS_QUERY where the machine has no TPU; GKE sets it always.
    gke = {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"} & environment.keys()
    tpu = importlib.util.find_spec("libtpu") and environment.get("JAX_PLATFORMS") != "cpu"
    return bool(tpu and (gke or "TPU_SKIP_MDS_QUERY" not in environment))


def fail(error: Exception, mistakes: tuple[type[Exception], ...]) -> NoReturn:
    """Ends after an error: one line and 2 for a mistake, 75 where a restart may help, else 1.

    Before `agree` the other processes get the line, too; later JAX ends them. A process that is
    alone raises a bug as it is.
    """
    alone, message, code = not jax.distributed.is_initialized(), str(error), MISTAKE
    if isinstance(error, RestartError):
        code = RESTART
    elif isinstance(error, OSError) and error.errno in _DISK:
        message, code = f"{first_line(error)}; mend that and repeat the command", RESTART
    elif not isinstance(error, mistakes):
        if alone:
            raise error
        traceback.print_exception(error)
        message, code = f"{type(error).__name__}: {first_line(error)}", 1
        if _LOST.match(str(error)):
            message, code = "lost another process; the same command resumes", RESTART
    if not alone:
        message = f"process {jax.process_index()} on {socket.gethostname()}: {message}"
    print(f"error: {message}", file=sys.stderr, flush=True)
    if alone:
        raise SystemExit(code)
    sys.stdout.flush()
    try:
        if not _agreed:
            exchange(_ERROR + message)
    finally:
        if jax.process_index() == 0:  # Without the coordinator, JAX aborts those still writing.
            time.sleep(5)
        os._exit(code)  # Not by the exit handlers, where JAX waits for the other processes.


def exchange(text: str) -> list[str]:
    """The texts of all processes, in their order; all must call it.

    If one failed meanwhile, all raise its UserError.
    """
    if jax.process_count() == 1:
        return [text]
    mine = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(mine.size))
    every = multihost_utils.process_allgather(np.pad(mine, (0, sizes.max() + 1 - mine.size)))
    texts = [row[:size].tobytes().decode() for row, size in zip(every, sizes)]
    for theirs in texts:
        if theirs.startswith(_ERROR):
            _agreed.append(True)  # All know of it.
            raise UserError(theirs.removeprefix(_ERROR))
    return texts


def agree(facts: Mapping[str, Any]) -> None:
    """Checks that all processes run the same code with the same facts, such as {"seed": 0}."""
    if jax.process_count() == 1:
        return
    mine = {"code": _code(), "local devices": jax.local_device_count(), **facts}
    every = [json.loads(text) for text in exchange(json.dumps(mine, default=str))]
    _agreed.append(True)
    for other, theirs in enumerate(every):
        for name in sorted(theirs.keys() | every[0].keys()):
            if theirs.get(name) != every[0].get(name):
                raise UserError(
                    f"process {other} has {name}={theirs.get(name)}, process 0 has "
                    f"{name}={every[0].get(name)}; start all with the same command, code and data"
                )


def _code() -> str:
    """A digest of our source and the versions it runs on."""
    root = pathlib.Path(__file__).resolve().parents[2]
    total = hashlib.sha256(f"{jax.__version__} {np.__version__}".encode())
    for folder in ("mvm", "input_pipeline"):
        for path in sorted((root / folder).rglob("*.py")):
            total.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return total.hexdigest()[:12]


def check_shared(path: epath.Path) -> None:
    """Checks that all processes see a file that process 0 has just written to the workdir."""
    if jax.process_count() == 1:
        return
    multihost_utils.sync_global_devices("written")
    for _ in range(_STALE):
        if path.exists():
            return
        time.sleep(1.0)
    raise UserError(
        f"{path} was written by process 0 and is not here; --workdir must be a folder that all "
        f"processes share, such as gs://BUCKET/RUN"
    )


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """A function to call once a step: whether to save and end, after SIGTERM or SIGINT.

    If any of several processes gets the signal, all are told at the same step, a few steps later.
    """
    caught: list[int] = []
    if jax.distributed.is_initialized():  # JAX's runtime handles SIGTERM itself.
        forward = lambda *_: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
        before = {signal.SIGINT: signal.signal(signal.SIGINT, forward)}
        ask = lambda: multihost_utils.reached_preemption_sync_point(next(_calls))  # noqa: E731
    else:
        note = lambda number, _: caught.append(number)  # noqa: E731
        before = {n: signal.signal(n, note) for n in (signal.SIGTERM, signal.SIGINT)}
        ask = lambda: bool(caught)  # noqa: E731
    try:
        yield ask
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def watch(minutes: float) -> None:
    """Unless called again within `minutes`, prints every thread's stack and dies of SIGALRM.

    That is exit code 142, which launchers restart. 0 ends the watch.
    """
    if minutes:
        faulthandler.register(signal.SIGALRM, chain=True)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)


def share(jobs: int) -> NoReturn:
    """Starts this command `jobs` times, each with its share of the cores and of the GPUs that
    CUDA_VISIBLE_DEVICES names. Each stage is done when one of them has ended well."""
    cores, running = sorted(os.sched_getaffinity(0)), []
    gpus = list(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))
    jobs = min(jobs, len(cores), len(gpus) or jobs)
    for job in range(jobs):
        seen = {"CUDA_VISIBLE_DEVICES": ",".join(gpus[job::jobs])} if gpus else {}
        own = os.environ | seen | {JOB: str(job)}
        running.append(subprocess.Popen([sys.executable, *sys.argv], env=own))
        os.sched_setaffinity(running[-1].pid, cores[job::jobs])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # A terminal sends it to all.

    def stop(*_: Any) -> None:
        for process in running:
            process.terminate()

    signal.signal(signal.SIGTERM, stop)
    codes = [process.wait() for process in running]
    raise SystemExit(0 if 0 in codes else max(codes))
