"""What a run directory holds and whose it is: one process at a time, and one configuration."""

import contextlib
import csv
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from mvm import config as keys
from mvm.runtime import checkpoint, peers
from mvm.types import UserError

log = logging.getLogger(__name__)

GO_ON = (
    f"go on with the old ones, or from where it is with the new ones by --config.{keys.ASK}=true"
)


@contextlib.contextmanager
def only_writer(workdir: epath.PathLike) -> Iterator[None]:
    """Makes a run directory and keeps other runs out of it, until the end or the kill of this one.

    The kernel lets go of process 0's lock when it ends. On cloud storage there are no locks.

    Raises:
        UserError: if another process holds it, or nothing can be written there.
    """
    workdir = epath.Path(workdir)
    if jax.process_index() or "://" in os.fspath(workdir):
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written ({error.strerror})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is at work in {workdir}; use another --workdir, or wait"
            ) from error
        except OSError:
            log.warning(
                "no locks in %s: see to it that one command at a time writes there", workdir
            )
        yield


def json_of(file: epath.Path, cure: str = "copy it again") -> dict[str, Any]:
    """The JSON object in a file; raises UserError if none can be read."""
    try:
        found = json.loads(file.read_text())
        if not isinstance(found, dict):
            raise TypeError("no JSON object")
        return found
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({peers.first_line(error)}); {cure}") from error


def step_of(where: epath.Path) -> epath.Path:
    """The step itself, or the newest of a run directory."""
    if checkpoint.is_step(where):
        return where
    if steps := checkpoint.steps_in(where):
        return where / "checkpoints" / str(steps[0])
    raise UserError(f"{where} holds no finished checkpoint yet; load it once it has saved one")


def of_run(where: epath.Path) -> tuple[dict[str, Any], list[str], str]:
    """Of a run directory or of a step: configuration as written, class names, who gives them."""
    step = step_of(where)
    run = where.parent.parent if step == where else where
    own = run / "config.json"
    config = json_of(own if own.exists() else step / "config" / "metadata")
    names: list[str] = []
    if (file := run / "classes.txt").exists():
        names = [line.strip() for line in file.read_text().splitlines()]
    elif (file := run / "per_class.csv").exists():
        names = [row["class"] for row in csv.DictReader(file.read_text().splitlines())]
    return config, names, str(file)


def _begun(workdir: epath.Path) -> dict[str, Any]:
    """The configuration that the run in `workdir` was written with; empty without a run."""
    if (own := workdir / "config.json").exists():
        return json_of(own, "delete it")
    if not (steps := checkpoint.steps_in(workdir)):
        return {}
    folder = workdir / "checkpoints" / str(steps[0])
    return json_of(folder / "config" / "metadata", f"delete {folder}")


def as_begun(config: Any, workdir: epath.PathLike) -> Any:
    """The configuration with what its zeros became when the run in `workdir` began, if one did."""
    known = keys.flat(_begun(epath.Path(workdir)))
    filled = ("data.num_classes", "model.position_grid")
    was = keys.completed(keys.nested({k: known[k] for k in filled if k in known}))
    config = config.copy_and_resolve_references()
    if config.task != "pretrain":
        config.data.num_classes = config.data.num_classes or was.data.num_classes
        if not any(config.model.position_grid):
            config.model.position_grid = was.model.position_grid
    return config


def check_config(config: Any, workdir: epath.Path) -> dict[str, str]:
    """Holds the configuration against that of the run in `workdir`, if there is one.

    Returns:
        What changed, such as {"optim.base_lr": "0.1 -> 0.01"}.

    Raises:
        UserError: if a value differs that makes it another run, or differs without being asked for;
            names the values. Also if that of the run cannot be read.
    """
    if not (was := _begun(workdir)):
        return {}
    found = keys.changes(was, config)
    said = {kind: [f"{k} {change}" for k, change in found[kind].items()] for kind in found}
    if said["never"]:
        steps = checkpoint.steps_in(workdir)
        holds = (
            f"{workdir} holds a run with another configuration ({', '.join(said['never'])}); use "
            f"another --workdir"
        )
        raise UserError(
            f"{holds}, with --config.init_from={workdir} if it is to start from there"
            if steps
            else f"{holds}, or delete {workdir / 'config.json'}"
        )
    if said["asked"] and not config[keys.ASK]:
        raise UserError(
            f"{workdir} was begun with other values ({', '.join(said['asked'])}); {GO_ON}"
        )
    found["always"].pop(keys.ASK, None)
    return found["asked"] | found["always"]
