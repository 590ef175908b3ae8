"""Whose a run directory is: one process writes to it at a time, and one configuration."""

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from mvm import checkpoint, peers
from mvm import config as keys
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


def check_config(config: Any, workdir: epath.Path) -> list[str]:
    """Holds the configuration against that of the run in `workdir`, if there is one.

    Returns:
        What changed, such as "optim.base_lr 0.1 -> 0.01".

    Raises:
        UserError: if a value differs that makes it another run, or differs without being asked for;
            names the values. Also if `config.json` cannot be read.
    """
    path = workdir / "config.json"
    if not path.exists():
        return []
    steps = checkpoint.steps_in(workdir)
    try:
        found = keys.changes(json.loads(path.read_text()), config)
    except (ValueError, TypeError, AttributeError) as error:
        copy = f"replace it by checkpoints/{steps[0]}/config/metadata" if steps else "delete it"
        raise UserError(f"{path} is broken ({peers.first_line(error)}); {copy}") from error
    said = {kind: [f"{k} {change}" for k, change in found[kind].items()] for kind in found}
    if said["never"]:
        raise UserError(
            f"{workdir} holds a run with another configuration ({', '.join(said['never'])}); use "
            f"another --workdir, with --config.init_from={workdir} if it is to start from there"
            + ("" if steps else f", or delete {path}: nothing is saved yet")
        )
    if said["asked"] and not config[keys.ASK]:
        raise UserError(
            f"{workdir} was begun with other values ({', '.join(said['asked'])}); {GO_ON}"
        )
    return said["asked"] + [change for change in said["always"] if not change.startswith(keys.ASK)]
