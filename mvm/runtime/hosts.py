"""Many processes, one run: they meet, agree on what they do and stop at the same step."""

import contextlib
import hashlib
import importlib.util
import itertools
import os
import pathlib
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from mvm import config as keys
from mvm import data
from mvm.runtime import peers
from mvm.types import UserError

_MEETING = 300
"""Seconds that the processes of a job may take to meet."""

_STALE = 90
"""Seconds; network file systems remember for a minute that a file was not there."""

_HOW = "--coordinator=HOST:PORT, --num_processes=N and --process_id=I"
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")

_GKE_TPU = ("TPU_PROCESS_ADDRESSES_PATH", "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")

_calls = itertools.count(1)  # One count for all stages: JAX compares it between processes.


def arguments(
    environment: Mapping[str, str],
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    insist: bool = False,
) -> dict[str, Any] | None:
    """What to start `jax.distributed` with: what is given, else what the cluster says.

    `insist`: a single process is a mistake where no cluster is found.

    Returns:
        Arguments of `jax.distributed.initialize`, which finds the others, or None for one process.

    Raises:
        UserError: if something is missing or cannot be; names the flag.
    """
    given: dict[str, Any] = {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    found = {name: value for name, value in given.items() if value is not None}
    if coordinator is not None and not re.fullmatch(r"\S+:\d+", coordinator):
        raise UserError(f"--coordinator={coordinator} is not HOST:PORT, such as node0:8476")
    ranked = int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    if ranked and "OMPI_MCA_orte_hnp_uri" not in environment:  # Open MPI 5 is silent about it.
        if coordinator is None:
            raise UserError(
                "Open MPI does not say where its first process is; add --coordinator=HOST:PORT"
            )
        found = {
            "num_processes": int(environment["OMPI_COMM_WORLD_SIZE"]),
            "process_id": int(environment["OMPI_COMM_WORLD_RANK"]),
            "local_device_ids": [int(environment["OMPI_COMM_WORLD_LOCAL_RANK"])],
            **found,
        }
    cluster = ranked or _in_cluster(environment)
    if (found or insist) and not cluster and len(found) < len(given):
        if not found:
            raise UserError(
                f"--distributed, but this is no Cloud TPU, GKE, SLURM or Open MPI job; add {_HOW}"
            )
        lacking = next(name for name in given if name not in found).removesuffix("_address")
        raise UserError(f"--{lacking} is missing; where no cluster is found, give {_HOW}")
    count, index = found.get("num_processes", 1), found.get("process_id", 0)
    if count < 1:
        raise UserError(f"--num_processes={count}; it must be 1 or more")
    if "num_processes" in found and "process_id" in found and not 0 <= index < count:
        raise UserError(f"--process_id={index} is none of 0 ... {count - 1} (--num_processes)")
    return found if found or insist or cluster else None


def _in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether JAX can find the other processes of a job by itself, and there are any."""
    if all(name in environment for name in _SLURM):
        return int(environment["SLURM_NTASKS"]) > 1
    tpu = importlib.util.find_spec("libtpu") is not None
    tpu &= not environment.get("JAX_PLATFORMS", "").startswith("cpu")
    if tpu and any(name in environment for name in _GKE_TPU):
        return True
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return importlib.util.find_spec("kubernetes") is not None
    # JAX sets it where the machine has no TPU; users, to keep it from asking; GKE, always.
    return tpu and "TPU_SKIP_MDS_QUERY" not in environment


def start(
    coordinator: str | None, num_processes: int | None, process_id: int | None, insist: bool
) -> None:
    """Joins the processes of a run, see `arguments`; nothing may have asked for devices before.

    Raises:
        UserError: as `arguments`, or if the processes do not meet.
    """
    found = arguments(os.environ, coordinator, num_processes, process_id, insist)
    if found is None:
        return
    try:
        jax.distributed.initialize(
            **found,
            initialization_timeout=_MEETING,
            heartbeat_timeout_seconds=peers.HEARTBEAT,
        )
    except jax.errors.JaxRuntimeError as error:  # Some came too late: they may meet next time.
        peers.fail(
            f"the processes did not meet ({peers.first_line(error)}); check that all are started, "
            f"and that the coordinator's port can be reached",
            peers.RESTART,
        )
    except (ValueError, TypeError, KeyError, OSError, RuntimeError) as error:
        raise UserError(
            f"the processes did not meet ({peers.first_line(error)}); check that all are started "
            f"with the same coordinator and number, and that its port can be reached"
        ) from error
    peers.watch()


def check_enough(lengths: Mapping[str, int], processes: int) -> None:
    """Checks that every process has a video of every split; raises UserError if not."""
    for split, length in lengths.items():
        if length < processes:
            raise UserError(
                f"data.{split} has {length} videos for {processes} processes; start fewer"
            )


# What a process may have of its own: where its videos are and how it reads them.
_OWN = ("data.root", "data.threads", "data.workers", "data.timeout", "data.cache_gb")


def check_same(
    config: Any, records: Mapping[str, Sequence[Any]], saved: Sequence[int] = ()
) -> None:
    """Checks that all processes run the same code on the same lists with the same configuration.

    `records` are those of each split in use, `saved` the steps that this process sees.

    Raises:
        UserError: on every process, if two differ, or there are fewer records than processes.
    """
    count = jax.process_count()
    check_enough({split: len(found) for split, found in records.items()}, count)
    if count == 1:
        return
    flat = {k: v for k, v in keys.flat(config).items() if k not in _OWN}
    paths = {f"data.{split}" for split in records}
    facts = {
        "another number of devices": str(jax.local_device_count()),
        "other code": _code(),
        "other checkpoints (the workdir must be shared)": str(saved),
        **{
            f"another list for data.{split}": data.digest(found) for split, found in records.items()
        },
        **{f"another {k}": str(v) for k, v in sorted(flat.items()) if k not in paths},
    }
    names, kinds = list(facts), hashlib.sha256("\n".join(facts).encode()).digest()
    digests = [kinds, *(hashlib.sha256(fact.encode()).digest() for fact in facts.values())]
    mine = np.frombuffer(b"".join(digest[:8] for digest in digests), np.uint32).reshape(-1, 2)
    # Two gathers, for the second cannot be had where the numbers of facts differ.
    lengths = multihost_utils.process_allgather(np.array([len(mine)]))
    if len(set(lengths.ravel().tolist())) > 1:
        raise UserError("the processes have configurations with other keys; start all from one")
    every = multihost_utils.process_allgather(mine)
    for other, theirs in enumerate(every):
        if (differing := np.flatnonzero((theirs != every[0]).any(axis=-1))).size:
            what = [names[i - 1] for i in differing if i] or ["other keys"]
            raise UserError(
                f"process {other} has {what[0]} than process 0"
                + f" (and {len(what) - 1} more)" * (len(what) > 1)
                + "; start all with the same command, code and data"
            )


def _code() -> str:
    """A digest of our own source, and of what it runs on."""
    root = pathlib.Path(__file__).resolve().parent.parent
    total = hashlib.sha256(f"{jax.__version__} {np.__version__}".encode())
    for folder in (root, root.parent / "input_pipeline"):
        for path in sorted(folder.rglob("*.py")):
            total.update(path.relative_to(root.parent).as_posix().encode() + path.read_bytes())
    return total.hexdigest()


def check_shared(path: epath.PathLike) -> None:
    """Checks that all see a file that process 0 has just written: parts of checkpoints go there."""
    if jax.process_count() == 1:
        return
    multihost_utils.sync_global_devices("written")
    until = time.monotonic() + _STALE
    while not epath.Path(path).exists():
        if time.monotonic() > until:
            raise UserError(
                f"{path} was written by process 0 and is not here; --workdir must be a folder that "
                f"all processes share, such as gs://BUCKET/RUN"
            )
        time.sleep(1.0)


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Tells, once a step, whether to save and end: after SIGTERM or SIGINT, here or elsewhere.

    Among many processes all are told at the same step, a few steps after the signal came to any
    of them. Signals beyond the first change nothing.
    """
    caught: list[int] = []
    if jax.distributed.is_initialized():
        # JAX's runtime listens to SIGTERM itself; what we installed would take its place.
        before = {
            signal.SIGINT: signal.signal(
                signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM)
            )
        }
        ask = lambda: multihost_utils.reached_preemption_sync_point(next(_calls))  # noqa: E731
    else:
        before = {
            number: signal.signal(number, lambda n, _: caught.append(n))
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        ask = lambda: bool(caught)  # noqa: E731
    try:
        yield ask
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
