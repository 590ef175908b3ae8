"""The files of one saved step: what they hold, and whether it is what was saved."""

import hashlib
import json
import os
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tensorstore as ts
from etils import epath
from jaxtyping import Array

from mvm.optim import path_of
from mvm.types import UserError


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another model."""


class Place(NamedTuple):
    """How far a run is."""

    step: int
    next_index: int
    """Position of the data iterator: training records consumed by all hosts together."""
    skipped: int
    """Records that could not be read so far."""
    records: str = ""
    """Number and digest of the training list; "" in checkpoints older than it."""


def is_step(path: epath.PathLike) -> bool:
    """Whether a folder is one step of a run, written to its end."""
    path = epath.Path(path)
    return (
        re.fullmatch("0|[1-9][0-9]*", path.name) is not None
        and (path / "_CHECKPOINT_METADATA").exists()
    )


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


def digest_of(*parts: dict[str, Any]) -> str:
    """Of place, leaves and configuration."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def described(folder: epath.Path) -> tuple[Place, dict[str, Any]]:
    """Place, and shape and digest of every leaf, of the step in `folder`.

    Raises:
        ValueError, TypeError: if they are not as they were saved.
    """
    place, saved, config = (
        json.loads((folder / n / "metadata").read_text()) for n in ("data", "leaves", "config")
    )
    digest = place.pop("digest", None)  # Older checkpoints have none.
    if (digest and digest != digest_of(place, saved, config)) or place["step"] != int(folder.name):
        raise ValueError("place, leaves and configuration are not those that were saved")
    return Place(**place), saved


def check_shapes(
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
            cure = "use the configuration it was made with or another --workdir"
            if "/positions/" in name:
                cure = "set --config.model.position_grid to the grid of its training"
            raise CheckpointError(
                f"{where} is of another model: {name} {found}, this configuration wants "
                f"{list(leaf.shape)}; {cure}"
            )


def read_arrays(folder: epath.Path, like: Any, saved: dict[str, Any]) -> Any:
    """Arrays of a saved state, each where `like` places it, or in NumPy's memory.

    With TensorStore: what Orbax's own restore has begun when a read fails, it leaves to a closed
    event loop, which prints tracebacks later.

    Raises:
        ValueError: for bits that are not those that were saved.
    """
    state = os.fspath(folder / "state")
    base = f"{state}/" if "://" in state else f"file://{state}/"

    def one(path: Any, leaf: jax.ShapeDtypeStruct) -> Any:
        kvstore = {"driver": "ocdbt", "base": base, "path": path_of(path).replace("/", ".") + "/"}
        stored = ts.open({"driver": "zarr", "kvstore": kvstore}, open=True, read=True).result()
        if (stored.shape, stored.dtype.numpy_dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(f"{path_of(path)} is {stored.dtype.name}{list(stored.shape)}")
        if leaf.sharding is None:
            return stored.read().result()
        part = lambda index: stored[index].read().result()  # noqa: E731
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)

    tree = jax.tree_util.tree_map_with_path(one, like)
    for name, value in digests(tree).items():
        if saved[name]["digest"] != value:
            raise ValueError(f"the bits of {name} are not those that were saved")
    return tree
