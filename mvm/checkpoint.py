"""Checkpoints: Orbax, asynchronous and atomic, with a digest of every leaf checked on restore.

`checkpoints/<step>/` holds the state, the data iterator's integer, the configuration and, per
leaf, shape and digest. A step that does not restore to the same bits is moved to `damaged/`.
"""

import contextlib
import gc
import itertools
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import Array

from mvm import peers
from mvm.optim import path_of
from mvm.state import State
from mvm.types import Params, UserError

log = logging.getLogger(__name__)
T = TypeVar("T")


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another model."""


class Place(NamedTuple):
    """How far a run is."""

    step: int
    next_index: int
    """Position of the data iterator: training records consumed by all hosts together."""
    skipped: int
    """Records that could not be read so far."""


def leaves(tree: Any) -> dict[str, Any]:
    """Leaves by their path, such as "params/encoder/embed/kernel"."""
    return {path_of(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@jax.jit
def _digests(tree: Any) -> Any:
    def digest(leaf: Array) -> Array:
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{leaf.dtype.itemsize * 8}"))
        # Weighted by position, so that swapped values are noticed as well; not flattened, for
        # which a split leaf would be gathered.
        place = jnp.zeros(bits.shape, jnp.uint32)
        for axis, length in enumerate(bits.shape):
            along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
            place = place * jnp.uint32(length) + along
        return jnp.sum(bits.astype(jnp.uint32) * (place * 2 + 1), dtype=jnp.uint32)

    return jax.tree.map(digest, tree)


def digests(tree: Any) -> dict[str, int]:
    """A checksum over the bits of every leaf, computed where the leaf lives."""
    return {name: int(value) for name, value in leaves(jax.device_get(_digests(tree))).items()}


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Never: it would count in steps what `hosts.stop_requests` counts in calls."""
        return False


def _manager(folder: epath.Path, keep: int | None = None) -> ocp.CheckpointManager:
    items = {
        "state": ocp.StandardCheckpointHandler(),
        "data": ocp.JsonCheckpointHandler(),
        "config": ocp.JsonCheckpointHandler(),
        "leaves": ocp.JsonCheckpointHandler(),
    }
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, cleanup_tmp_directories=keep is not None, create=keep is not None
    )
    return _Manager(folder, item_handlers=items, options=options)


_NOT_DAMAGE = (CheckpointError, MemoryError, PermissionError, jax.errors.JaxRuntimeError)
"""Errors of reading that say nothing about the file's bits."""


def _attempt(read: Callable[[], T]) -> tuple[T | None, str]:
    """What `read` returns, or None and one line on the damage it met.

    When a read fails Orbax closes its event loop with the other reads under way, and Python
    reports each of them on stderr, at any later time, with a traceback that nobody can catch. So
    they are let go of here, in silence.
    """
    tasks, hook = logging.getLogger("asyncio"), sys.unraisablehook
    level = tasks.level
    tasks.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    try:
        try:
            return read(), ""
        except _NOT_DAMAGE:
            raise
        except Exception as error:  # Whatever a damaged file may cause in the libraries.
            reason = _first_line(error)
        gc.collect()
        return None, reason
    finally:
        sys.unraisablehook = hook
        tasks.setLevel(level)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def steps_in(workdir: epath.PathLike) -> list[int]:
    """Steps of a run that were written to their end, newest first."""
    folder = epath.Path(workdir) / "checkpoints"
    if not folder.is_dir():
        return []
    done = (p for p in folder.iterdir() if p.name.isdigit())
    return sorted((int(p.name) for p in done if is_step(p)), reverse=True)


def is_step(path: epath.PathLike) -> bool:
    """Whether a folder is one step of a run."""
    return (epath.Path(path) / "_CHECKPOINT_METADATA").exists()


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
        self.keep = keep
        self.manager = _manager(self.folder, keep)

    def save(self, place: Place, state: State, config: dict[str, Any]) -> None:
        """Starts writing a step; the files appear all at once when they are complete.

        Args:
            place: how far the run is; its step names the checkpoint.
            state: on the devices, sharded or not.
            config: kept beside it.

        Raises:
            CheckpointError: if this or the write before it failed, such as on a full disk.
        """
        described = {
            name: {"digest": value, "shape": list(leaf.shape)}
            for (name, value), leaf in zip(digests(state).items(), leaves(state).values())
        }
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(place._asdict()),
            config=ocp.args.JsonSave(config),
            leaves=ocp.args.JsonSave(described),
        )
        try:
            self.manager.save(place.step, args=args, force=True)
        except (OSError, ValueError) as error:
            raise self._failed(place.step, error) from error

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
            CheckpointError: if a write failed.
        """
        try:
            self.manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._failed(None, error) from error

    def close(self) -> None:
        """Waits for writes under way and lets the manager go."""
        self.wait()
        self.manager.close()

    def restore(self, like: State) -> tuple[Place, State] | None:
        """The newest step whose every bit is as it was saved, or None in a fresh run.

        Args:
            like: shapes, dtypes and shardings of the state; any number of devices will do.

        Raises:
            CheckpointError: if the run is of another model, or no step is left undamaged.
        """
        steps = steps_in(self.workdir)
        for step in steps:
            found, reason = _attempt(partial(self._restore, step, like))
            if found is not None:
                return found
            log.error(
                "checkpoint %d of %s is damaged (%s); moved to damaged/, trying the one before",
                step,
                self.workdir,
                reason,
            )
            self._set_aside(step)
            if jax.process_count() > 1:  # The others may wait for this one inside of Orbax.
                peers.fail(
                    f"checkpoint {step} of {self.workdir} is damaged ({reason}) and was moved to "
                    f"damaged/; the same command goes on from the one before",
                    peers.RESTART,
                )
        if (self.workdir / "damaged").exists():
            raise CheckpointError(
                f"all checkpoints of {self.workdir} are damaged and were moved to damaged/; start "
                f"again in another --workdir"
            )
        return None

    def _restore(self, step: int, like: State) -> tuple[Place, State]:
        info = self.manager.restore(
            step,
            args=ocp.args.Composite(leaves=ocp.args.JsonRestore(), data=ocp.args.JsonRestore()),
        )
        _check_shapes(self.folder / str(step), info["leaves"], leaves(like), complete=True)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        state = self.manager.restore(step, args=args)["state"]
        _check_digests(state, info["leaves"])
        return Place(**info["data"]), state

    def _set_aside(self, step: int) -> None:
        folder = self.workdir / "damaged"
        folder.mkdir(parents=True, exist_ok=True)
        names = (f"{step}-{again}" if again > 1 else str(step) for again in itertools.count(1))
        target = next(folder / name for name in names if not (folder / name).exists())
        with contextlib.suppress(FileNotFoundError):  # Another process may have been quicker.
            (self.folder / str(step)).rename(target)
        self.manager.reload()

    def _failed(self, step: int | None, error: Exception) -> CheckpointError:
        what = "the last checkpoint" if step is None else f"checkpoint {step}"
        left = ", ".join(map(str, steps_in(self.workdir))) or "none"
        return CheckpointError(
            f"{what} of {self.workdir} could not be written ({_first_line(error)}); "
            f"intact: {left}. Free some space and repeat the command"
        )


def _check_shapes(
    where: epath.Path, saved: dict[str, Any], wanted: dict[str, Any], complete: bool = False
) -> None:
    if complete and (extra := sorted(set(saved) - set(wanted))):
        raise CheckpointError(
            f"{where} is of another model: it has {extra[0]} and {len(extra) - 1} other leaves "
            f"that this configuration lacks; use the configuration it was made with"
        )
    for name, leaf in wanted.items():
        shape = saved.get(name, {}).get("shape")
        if shape != list(leaf.shape):
            found = "is missing" if shape is None else f"has shape {shape}"
            if "/positions/" in name and shape is not None:
                raise CheckpointError(
                    f"{where} learned its positions on another grid: {name} {found}, this "
                    f"configuration wants {list(leaf.shape)}; set --config.model.position_grid to "
                    f"the grid of training, from which they are interpolated"
                )
            raise CheckpointError(
                f"{where} is of another model: {name} {found}, this configuration wants "
                f"{list(leaf.shape)}; use the configuration it was made with or another --workdir"
            )


def _check_digests(tree: Any, saved: dict[str, Any]) -> None:
    for name, value in digests(tree).items():
        if saved[name]["digest"] != value:
            raise OSError(f"the bits of {name} are not those that were saved")


def load_params(path: epath.PathLike, like: Params) -> tuple[Params, str]:
    """Parameters from a run directory (its newest good step) or from one of its step directories.

    Their moving average is taken where the run kept one.

    Args:
        path: such as `runs/demo` or `runs/demo/checkpoints/400`.
        like: shapes of the parameters wanted. Leaves of "head" that differ in shape and leaves
            the file lacks are left out.

    Returns:
        A nested subset of `like` as NumPy arrays, and one line saying what matched.

    Raises:
        CheckpointError: if there is no checkpoint, all are damaged, or the model is another one.
    """
    path = _absolute(path)
    alone = path.name.isdigit() and is_step(path)
    folder = path.parent if alone else path / "checkpoints"
    steps = [int(path.name)] if alone else steps_in(path)
    if not steps:
        raise CheckpointError(f"{path} holds no checkpoint; name a run or step directory")
    manager = _manager(folder)
    for step in steps:
        where, wanted = folder / str(step), leaves({"params": like})
        found, reason = _attempt(partial(_load_params, manager, where, step, wanted))
        if found is not None:
            return found
        log.error("checkpoint %s is damaged (%s)", where, reason)
    raise CheckpointError(f"{path}: every checkpoint there is damaged; name another one")


def _load_params(
    manager: ocp.CheckpointManager, folder: epath.Path, step: int, wanted: dict[str, Any]
) -> tuple[Params, str]:
    args = ocp.args.Composite(leaves=ocp.args.JsonRestore())
    saved = manager.restore(step, args=args)["leaves"]
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
    _check_shapes(folder, saved, fits)
    tree: dict[str, Any] = {}
    for name, leaf in fits.items():
        node = tree
        *parents, last = name.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    args = ocp.args.PyTreeRestore(item=tree, restore_args=restore_args, partial_restore=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        restored = reader.restore(folder / "state", args=args)
    for name, leaf in leaves(restored).items():
        if not isinstance(leaf, np.ndarray):
            raise OSError(f"{name} is not in the file")
    _check_digests(restored, saved)
    missing = sorted(set(wanted) - set(fits))
    report = f"{folder}: {len(fits)} leaves of {source} loaded"
    if missing:
        report += f", new: {', '.join(n.removeprefix(source + '/') for n in missing)}"
    return restored[source], report
