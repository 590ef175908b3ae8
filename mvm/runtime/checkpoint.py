"""Checkpoints: Orbax, asynchronous and atomic, with digests that are verified on restore.

`checkpoints/<step>/` holds the state, the progress, the configuration and, per leaf, shape
and digest; one more digest covers the other three. Orbax itself restores a flipped byte silently.
A step that does not restore to the same bits is moved to `damaged/`.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath
from flax import traverse_util
from jaxtyping import Array
from orbax.checkpoint import checkpoint_managers as policies

from mvm.optim import path_of
from mvm.runtime import multihost
from mvm.runtime.steps import Best, Progress, is_step, steps_in
from mvm.types import Params, State, UserError, first_line

log = logging.getLogger(__name__)
T = TypeVar("T")


def _absolute(path: epath.PathLike) -> epath.Path:
    """Orbax takes no relative path."""
    return epath.Path(path if "://" in os.fspath(path) else os.path.abspath(path))


def leaves(tree: Any) -> dict[str, Any]:
    """Leaves by their path, such as "params/encoder/embed/kernel"."""
    return {path_of(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@jax.jit
def _digests(tree: Any) -> Any:
    def digest(leaf: Array) -> Array:
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{leaf.dtype.itemsize * 8}"))
        # Weighted by position, so that swapped values are noticed; flattening a sharded leaf would
        # all-gather it.
        place = jnp.zeros(bits.shape, jnp.uint32)
        for axis, length in enumerate(bits.shape):
            along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
            place = place * jnp.uint32(length) + along
        return jnp.sum(bits.astype(jnp.uint32) * (place * 2 + 1), dtype=jnp.uint32)

    return jax.tree.map(digest, tree)


def digests(tree: Any) -> dict[str, int]:
    """A checksum over the bits of every leaf, computed where the leaf lives."""
    every, cpu = leaves(tree), jax.default_backend() == "cpu"
    read = lambda x: isinstance(x, np.ndarray) or (cpu and x.is_fully_replicated)  # noqa: E731
    here = {name: _digest(np.asarray(leaf)) for name, leaf in every.items() if read(leaf)}
    there = {name: leaf for name, leaf in every.items() if name not in here}
    found = jax.device_get(_digests(there)) if there else {}
    return {name: int(value) for name, value in found.items()} | here


def _digest(leaf: np.ndarray) -> int:
    """As `_digests`, without compiling."""
    bits = np.ascontiguousarray(leaf).reshape(-1).view(f"u{leaf.dtype.itemsize}")
    weights = np.arange(1, 2 * bits.size, 2, dtype=np.uint32)
    return int(bits.astype(np.uint32, copy=False) @ weights)


def _differing(tree: Any, saved: Mapping[str, Any]) -> str:
    """One line on the leaves whose bits are not those that were saved; "" if there are none."""
    bad = [name for name, value in digests(tree).items() if saved[name]["digest"] != value]
    return f"the bits of {', '.join(bad)} are not those that were saved" if bad else ""


def _digest_of(*parts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


_PASSING = re.compile(
    r"OS error(?! 2:)|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|CANCELLED|"
    r"PERMISSION_DENIED|UNAUTHENTICATED"
)
"""TensorStore's words for a disk or network that did not answer."""


def _attempt(read: Callable[[epath.Path, Any], T], folder: epath.Path, like: Any) -> T | str:
    """What `read` finds in a step, or one line on its damage.

    That disk or network do not answer is none; it raises RestartError.
    """
    try:
        return read(folder, like)
    except UserError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OSError) as error:
        failed = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        if failed or _PASSING.search(str(error)):
            raise multihost.RestartError(
                f"{folder} cannot be read now ({first_line(error)}); the same command tries again. "
                f"If that lasts, move {folder} away to resume from an older step"
            ) from error
        return first_line(error)


def _described(folder: epath.Path) -> tuple[Progress, dict[str, Any]]:
    """Progress, and shape and digest of every leaf, of a step."""
    progress, saved, config = (
        json.loads((folder / n / "metadata").read_text()) for n in ("data", "leaves", "config")
    )
    digest = progress.pop("digest", None)  # Older checkpoints have none.
    if (digest and digest != _digest_of(progress, saved, config)) or progress["step"] != int(
        folder.name
    ):
        raise ValueError("progress, leaves and configuration are not those that were saved")
    best = progress.pop("best", None)
    return Progress(**progress, best=best and Best(*best)), saved


def _check_shapes(folder: epath.Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Checks that a step has the wanted leaves and no others."""
    for name in sorted(saved.keys() | wanted.keys()):
        there = saved[name]["shape"] if name in saved else "missing"
        ours = [*wanted[name].shape] if name in wanted else "missing"
        if there != ours:
            raise UserError(
                f"{folder} is of another model: {name} is {there} there and {ours} in this "
                f"configuration; use the one it was made with, or another --workdir"
            )


def _read_arrays(folder: epath.Path, like: Any) -> Any:
    """Arrays of a saved state, each where `like` places it, or in NumPy's memory as saved.

    With TensorStore, because Orbax's restore leaves the reads that it began before one failed to a
    closed event loop, which prints tracebacks later.
    """
    state = os.fspath(folder / "state")
    base = f"{state}/" if "://" in state else f"file://{state}/"

    def one(path: Any, leaf: jax.ShapeDtypeStruct) -> Any:
        kvstore = {"driver": "ocdbt", "base": base, "path": path_of(path).replace("/", ".") + "/"}
        stored = ts.open({"driver": "zarr", "kvstore": kvstore}, open=True, read=True).result()
        if stored.shape != leaf.shape:
            raise ValueError(f"{path_of(path)} has shape {list(stored.shape)}")
        if leaf.sharding is None:
            return stored.read().result()
        if stored.dtype.numpy_dtype != leaf.dtype:  # Frozen weights have the dtype of computation.
            raise UserError(
                f"{folder}: {path_of(path)} is {stored.dtype.name}, here it is {leaf.dtype}; "
                f"resume on such a device as saved it, or start from it with --config.init_from"
            )
        part = lambda index: stored[index].read().result()  # noqa: E731
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)

    return jax.tree_util.tree_map_with_path(one, like)


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Never: it would count in steps what `multihost.stop_requests` counts in calls."""
        return False


class Checkpoints:
    """Saves and restores the state of one run."""

    def __init__(self, workdir: epath.PathLike, keep: int):
        self.workdir = _absolute(workdir)
        self.folder = self.workdir / "checkpoints"
        if jax.process_index() == 0 and self.folder.is_dir():
            for path in self.folder.iterdir():  # Orbax would take it for a step.
                if path.name.isdigit() and not is_step(path):
                    log.error("%s is no whole checkpoint; moved to damaged/", path)
                    self._set_aside(path)
        multihost.exchange("")
        items = {name: ocp.JsonCheckpointHandler() for name in ("data", "config", "leaves")}
        # The format of `_read_arrays`, whatever becomes Orbax's default.
        items["state"] = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False)
        self._newest = policies.LatestN(keep)
        self._kept = policies.AnyPreservationPolicy([self._newest])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept, cleanup_tmp_directories=True
        )
        self.manager = _Manager(self.folder, item_handlers=items, options=options)

    def save(self, progress: Progress, state: State, config: dict[str, Any]) -> None:
        """Starts writing a step, whose files appear all at once when they are complete."""
        found, shapes = digests(state), leaves(state)
        described = {n: {"digest": found[n], "shape": [*shapes[n].shape]} for n in found}
        at = progress._asdict()
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            data=ocp.args.JsonSave({**at, "digest": _digest_of(at, described, config)}),
            config=ocp.args.JsonSave(config),
            leaves=ocp.args.JsonSave(described),
        )
        best = [progress.best.step] if progress.best else []
        self._kept.policies = [self._newest, policies.CustomSteps(best)]
        with self._writing():
            self.manager.save(progress.step, args=args, force=True)

    def wait(self) -> None:
        """Waits until everything is on disk; raises RestartError if a write failed."""
        with self._writing():
            self.manager.wait_until_finished()

    def close(self) -> None:
        """Waits for writes under way and lets the manager go."""
        self.wait()
        self.manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            left = ", ".join(map(str, steps_in(self.workdir))) or "none"
            raise multihost.RestartError(
                f"a checkpoint of {self.workdir} could not be written ({first_line(error)}); "
                f"intact: {left}. Free some space and repeat the command"
            ) from error

    def restore(self, like: State, first: int | None = None) -> tuple[Progress, State] | None:
        """The newest step whose every bit is as it was saved, or None in a fresh run.

        `like` has shapes, dtypes and shardings on any number of devices. With a step to try `first`
        some parts of the state will do.
        """
        for step in sorted(steps_in(self.workdir), key=lambda step: step != first):
            folder = self.folder / str(step)
            found = _attempt(partial(_read, whole=first is None), folder, like)
            # A process may be alone in noticing damage, in the part that it reads.
            said = multihost.exchange(found if isinstance(found, str) else "")
            reason = next(filter(None, said), "")
            if not (reason or isinstance(found, str)):
                progress, state, saved = found
                if not (reason := _differing(state, saved)):
                    return progress, state
            log.error(
                "checkpoint %d of %s is damaged (%s); moved to damaged/, trying the one before",
                *(step, self.workdir, reason),
            )
            if jax.process_index() == 0:
                self._set_aside(folder)
            multihost.exchange("")
            self.manager.reload()
        if (self.workdir / "damaged").exists():
            raise UserError(
                f"all checkpoints of {self.workdir} are damaged and were moved to damaged/; start "
                f"again in another --workdir"
            )
        return None

    def _set_aside(self, path: epath.Path) -> None:
        folder = self.workdir / "damaged"
        folder.mkdir(parents=True, exist_ok=True)
        names = (f"{path.name}-{n}" if n > 1 else path.name for n in itertools.count(1))
        path.rename(next(folder / name for name in names if not (folder / name).exists()))


def _read(folder: epath.Path, like: Any, whole: bool) -> tuple[Progress, Any, dict[str, Any]]:
    progress, saved = _described(folder)
    if not whole:
        saved = {name: one for name, one in saved.items() if name.split("/")[0] in like}
    _check_shapes(folder, saved, leaves(like))
    return progress, _read_arrays(folder, like), saved


def load_params(path: epath.PathLike, like: Params) -> tuple[Params, str, Progress]:
    """Parameters of a run directory (its best step or else its newest) or of a step directory.

    Each leaf comes from the moving average where the run kept one, else from what it trained, else
    from what it kept frozen. Leaves that the run lacks, and a head of other classes, are left out:
    what is returned is a nested subset of `like` as NumPy arrays, one line on it, and its step.
    """
    path, best = _absolute(path), None
    folders = [path] if is_step(path) else [path / "checkpoints" / str(s) for s in steps_in(path)]
    if not folders:
        raise UserError(f"{path} holds no checkpoint; name a run or step directory")
    if not is_step(path):  # The newest knows which is the best.
        about = (_attempt(lambda folder, _: _described(folder)[0], f, None) for f in folders)
        best = next((one.best for one in about if not isinstance(one, str)), None)
    if best:
        folders.sort(key=lambda folder: folder.name != str(best.step))
        if folders[0].name != str(best.step):
            log.warning("step %d of %s, the best, is gone; taking the newest", best.step, path)
    for folder in folders:
        found = _attempt(_load_params, folder, leaves(like))
        if not isinstance(found, str):
            params, report, at = found
            at = at._replace(best=best)
            return params, f"{folder}{f' ({at})' * bool(best)}: {report}", at
        log.error("checkpoint %s is damaged (%s)", folder, found)
    raise UserError(f"{path}: every checkpoint there is damaged; name another one")


def _load_params(folder: epath.Path, wanted: Mapping[str, Any]) -> tuple[Params, str, Progress]:
    progress, saved = _described(folder)
    source: dict[str, str] = {}
    for part, (name, leaf) in itertools.product(("frozen", "params", "ema"), wanted.items()):
        shape = saved.get(f"{part}/{name}", {}).get("shape")
        if shape is not None and (shape == [*leaf.shape] or not name.startswith("head/")):
            source[name] = f"{part}/{name}"
    if not source or "encoder/embed/kernel" in wanted.keys() - source.keys():
        raise UserError(f"{folder} holds no encoder; it is not a run of this project")
    flat = {
        stored: jax.ShapeDtypeStruct(wanted[name].shape, wanted[name].dtype)
        for name, stored in source.items()
    }
    _check_shapes(folder, {stored: saved[stored] for stored in flat}, flat)
    arrays = _read_arrays(folder, flat)
    if reason := _differing(arrays, saved):
        raise ValueError(reason)
    part = source.get("encoder/embed/kernel", [*source.values()][-1]).split("/")[0]
    new = ", ".join(sorted(wanted.keys() - source.keys()))
    report = f"{len(source)} leaves of {part} loaded" + f", new: {new}" * bool(new)
    loaded = {  # What was frozen was saved in the dtype of computation.
        tuple(name.split("/")): arrays[stored].astype(wanted[name].dtype, copy=False)
        for name, stored in source.items()
    }
    return traverse_util.unflatten_dict(loaded), report, progress
