"""Checkpoints: Orbax, asynchronous and atomic, with digests that are checked on restore.

`checkpoints/<step>/` holds the state, the place in the run, the configuration and, per leaf, shape
and digest; one more digest covers the other three. A step that does not restore to the same bits
is moved to `damaged/`.
"""

import contextlib
import itertools
import logging
import os
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from mvm.runtime import peers, step_files
from mvm.runtime.step_files import CheckpointError, Place, digests, is_step, leaves
from mvm.types import Params, State, UserError

log = logging.getLogger(__name__)
T = TypeVar("T")


class UnreadableError(CheckpointError):
    """Disk or network did not answer, which says nothing about what was saved."""


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Never: it would count in steps what `hosts.stop_requests` counts in calls."""
        return False


_PASSING = re.compile(
    r"OS error(?! 2:)|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|CANCELLED|"
    r"PERMISSION_DENIED|UNAUTHENTICATED"
)
"""In TensorStore's messages, what another attempt may cure."""


def _attempt(read: Callable[[], T], folder: epath.Path) -> tuple[T | None, str]:
    """What `read` returns, or None and one line on the damage it met; reads twice if need be.

    Raises:
        UnreadableError: for an error of disk or network, after the second attempt.
        UserError: of `read`.
    """
    for last in (False, True):
        try:
            return read(), ""
        except (UserError, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # Whatever a damaged file may cause in the libraries.
            reason, lost = peers.first_line(error), isinstance(error, FileNotFoundError)
            passing = isinstance(error, OSError) or bool(_PASSING.search(str(error)))
        if not passing or (last and lost and is_step(folder)):
            return None, reason
        if not last:
            time.sleep(1.0)
    raise UnreadableError(f"{folder} cannot be read now ({reason}); it stays as it is")


def _reads(folder: epath.Path) -> bool:
    """Whether all files of a step can be read now."""

    def read(path: epath.Path) -> bool:
        if path.is_dir():
            return all([read(inside) for inside in path.iterdir()])
        with path.open("rb") as file:
            while file.read(2**24):
                pass
        return True

    try:
        return bool(_attempt(partial(read, folder), folder)[0])
    except UnreadableError:
        return False


def steps_in(workdir: epath.PathLike) -> list[int]:
    """Steps of a run that were written to their end, newest first."""
    folder = epath.Path(workdir) / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted((int(p.name) for p in folder.iterdir() if is_step(p)), reverse=True)


def is_run(path: epath.PathLike) -> bool:
    """Whether a folder is a run directory or one of its steps."""
    return is_step(path) or (epath.Path(path) / "checkpoints").exists()


def _absolute(path: epath.PathLike) -> epath.Path:
    """Orbax takes no relative path."""
    return epath.Path(path if "://" in os.fspath(path) else os.path.abspath(path))


class Checkpoints:
    """Saves and restores the state of one run."""

    def __init__(self, workdir: epath.PathLike, keep: int):
        self.workdir = _absolute(workdir)
        self.folder = self.workdir / "checkpoints"
        self._sweep()
        items = {name: ocp.JsonCheckpointHandler() for name in ("data", "config", "leaves")}
        self.manager = _Manager(
            self.folder,
            # The format that `step_files.read_arrays` reads, whatever becomes Orbax's default.
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False),
                **items,
            },
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
        )

    def _sweep(self) -> None:
        """Moves away what Orbax would take for a step: it would count, or be in the way."""
        if jax.process_index() == 0 and self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name.isdigit() and not is_step(path):
                    log.error("%s is no whole checkpoint; moved to damaged/", path)
                    self._set_aside(path)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints")

    def save(self, place: Place, state: State, config: dict[str, Any]) -> None:
        """Starts writing a step, whose files appear all at once when they are complete.

        Raises:
            CheckpointError: if this or the write before it failed, such as on a full disk.
        """
        described = {
            name: {"digest": value, "shape": list(leaf.shape)}
            for (name, value), leaf in zip(digests(state).items(), leaves(state).values())
        }
        at = place._asdict()
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            data=ocp.args.JsonSave({**at, "digest": step_files.digest_of(at, described, config)}),
            config=ocp.args.JsonSave(config),
            leaves=ocp.args.JsonSave(described),
        )
        try:
            self.manager.save(place.step, args=args, force=True)
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Waits until everything is on disk; raises CheckpointError if a write failed."""
        try:
            self.manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Waits for writes under way and lets the manager go."""
        self.wait()
        self.manager.close()

    def restore(
        self, like: State, accept: Callable[[Place], None] = lambda place: None
    ) -> tuple[Place, State] | None:
        """The newest step whose every bit is as it was saved, or None in a fresh run.

        Args:
            like: shapes, dtypes and shardings of the state; any number of devices will do.
            accept: is shown the place before the state is read; what it raises is passed on.

        Raises:
            CheckpointError: if the run is of another model, or no step is left undamaged.
        """
        for step in steps_in(self.workdir):
            folder = self.folder / str(step)
            try:
                found, reason = _attempt(partial(self._restore, folder, like, accept), folder)
            except UnreadableError as error:
                older = next((s for s in steps_in(self.workdir) if s < step), None)
                if older is None or _reads(folder) or not _reads(self.folder / str(older)):
                    peers.fail(f"{error}; the same command tries again", peers.RESTART)
                peers.fail(
                    f"{error}, but {older} can; if that lasts, move {step} out of {self.folder} "
                    f"and repeat the command, to go on from {older}",
                    peers.MISTAKE,
                )
            if found is not None:
                return found
            said = f"checkpoint {step} of {self.workdir} is damaged ({reason}); moved to damaged/"
            self._set_aside(folder)
            if jax.process_count() > 1:  # The others may wait for this one's part.
                peers.fail(f"{said}; the same command goes on from the one before", peers.RESTART)
            log.error("%s, trying the one before", said)
            self.manager.reload()
        if (self.workdir / "damaged").exists():
            raise CheckpointError(
                f"all checkpoints of {self.workdir} are damaged and were moved to damaged/; start "
                f"again in another --workdir"
            )
        return None

    def _restore(
        self, folder: epath.Path, like: State, accept: Callable[[Place], None]
    ) -> tuple[Place, State]:
        place, saved = step_files.described(folder)
        accept(place)
        step_files.check_shapes(folder, saved, leaves(like), complete=True)
        return place, step_files.read_arrays(folder, like, saved)

    def _set_aside(self, path: epath.Path) -> None:
        folder = self.workdir / "damaged"
        folder.mkdir(parents=True, exist_ok=True)
        names = (f"{path.name}-{n}" if n > 1 else path.name for n in itertools.count(1))
        with contextlib.suppress(FileNotFoundError):  # Another process may have been quicker.
            path.rename(next(folder / name for name in names if not (folder / name).exists()))

    def _failed(self, error: Exception) -> CheckpointError:
        left = ", ".join(map(str, steps_in(self.workdir))) or "none"
        return CheckpointError(
            f"a checkpoint of {self.workdir} could not be written ({peers.first_line(error)}); "
            f"intact: {left}. Free some space and repeat the command"
        )


def load_params(path: epath.PathLike, like: Params) -> tuple[Params, str]:
    """Parameters from a run directory (its newest good step) or from one of its step directories.

    Their moving average is taken where the run kept one. Leaves of "head" that differ in shape,
    and those that the run lacks, are left out.

    Returns:
        A nested subset of `like` as NumPy arrays, and one line saying what matched.

    Raises:
        CheckpointError: if there is no checkpoint, all are damaged, or the model is another one.
    """
    path = _absolute(path)
    folders = [path] if is_step(path) else [path / "checkpoints" / str(s) for s in steps_in(path)]
    if not folders:
        raise CheckpointError(f"{path} holds no checkpoint; name a run or step directory")
    for folder in folders:
        found, reason = _attempt(partial(_load_params, folder, leaves({"params": like})), folder)
        if found is not None:
            return found
        log.error("checkpoint %s is damaged (%s)", folder, reason)
    raise CheckpointError(f"{path}: every checkpoint there is damaged; name another one")


def _load_params(folder: epath.Path, wanted: dict[str, Any]) -> tuple[Params, str]:
    _, saved = step_files.described(folder)
    if any(name.startswith("ema/") for name in saved):
        source = "ema"
        wanted = {"ema/" + name.removeprefix("params/"): leaf for name, leaf in wanted.items()}
    else:
        source = "params"
    fits = {
        name: leaf
        for name, leaf in wanted.items()
        if name in saved
        and not (name.startswith(f"{source}/head/") and saved[name]["shape"] != list(leaf.shape))
    }
    if f"{source}/encoder/embed/kernel" not in fits:
        raise CheckpointError(f"{folder} holds no encoder; it is not a run of this project")
    step_files.check_shapes(folder, saved, fits)
    tree: dict[str, Any] = {}
    for name, leaf in fits.items():
        node = tree
        *parents, last = name.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    restored = step_files.read_arrays(folder, tree, saved)
    missing = sorted(set(wanted) - set(fits))
    report = f"{folder}: {len(fits)} leaves of {source} loaded"
    if missing:
        report += f", new: {', '.join(n.removeprefix(source + '/') for n in missing)}"
    return restored[source], report
