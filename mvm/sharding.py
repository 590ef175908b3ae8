"""Where arrays live: the one file that names devices.

The mesh has two axes. The batch is split over both; parameters, their moments and their average
are split over "fsdp" alone, and each layer is gathered just before it is used (ZeRO-3).
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mvm.optim import path_of
from mvm.types import UserError

_SMALL = 2**12
"""Leaves with fewer elements are kept whole on every device."""


def make_mesh(fsdp: int = 1) -> Mesh:
    """A mesh `("data", "fsdp")` over all devices.

    Args:
        fsdp: how many devices share one copy of the parameters; -1 means all of them.

    Raises:
        UserError: if `fsdp` does not divide the number of devices; shows both.
    """
    devices = jax.device_count()
    fsdp = devices if fsdp == -1 else fsdp
    if fsdp < 1 or devices % fsdp:
        raise UserError(
            f"train.fsdp={fsdp} does not divide the {devices} devices; choose a divisor or -1"
        )
    return jax.make_mesh(
        (devices // fsdp, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto)
    )


def spec(path: str, shape: tuple[int, ...], fsdp: int) -> P:
    """Splits a leaf's largest divisible axis over "fsdp"; never the layer axis of a stack."""
    if fsdp == 1 or np.prod(shape) < _SMALL:
        return P()
    first = 1 if "blocks/" in path else 0
    for axis in sorted(range(first, len(shape)), key=lambda i: -shape[i]):
        if shape[axis] % fsdp == 0:
            return P(*[None] * axis, "fsdp")
    return P()


def of_state(mesh: Mesh, state: Any) -> Any:
    """Shardings for a whole state (arrays or shapes), moments and averages like their parameter."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec(path_of(path), leaf.shape, mesh.shape["fsdp"])),
        state,
    )


def of_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis of a batch over all devices."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def whole(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, P())


def gather(layer: Any) -> Any:
    """Asks for whole weights of one layer, inside a jitted step under a mesh."""
    return jax.tree.map(lambda w: jax.lax.with_sharding_constraint(w, P(*[None] * w.ndim)), layer)


def collect(tree: Any, mesh: Mesh) -> Any:
    """Whole arrays in the memory of every process; all of them must ask."""
    return jax.device_get(jax.jit(lambda x: x, out_shardings=whole(mesh))(tree))


def put(batch: Any, mesh: Mesh) -> Any:
    """This process's part of a batch, as NumPy, to global arrays on the devices."""
    return jax.make_array_from_process_local_data(of_batch(mesh), batch)


def check_batch(batch_size: int, accumulate: int = 1, name: str = "train.batch_size") -> None:
    """Checks that a batch can be split.

    Raises:
        UserError: if `batch_size` is not a multiple of devices times `accumulate`; shows all.
    """
    unit = jax.device_count() * accumulate
    if batch_size < 1 or batch_size % unit:
        by = f"{jax.device_count()} devices" + (
            f" x train.accumulate={accumulate}" * (accumulate > 1)
        )
        nearest = max(1, round(batch_size / unit)) * unit
        raise UserError(f"{name}={batch_size} is not a multiple of {by}; the nearest is {nearest}")
