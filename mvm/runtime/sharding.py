"""Shardings of state and batch over a mesh `("data", "fsdp")`.

The batch is split over both axes; parameters, moments and moving average over "fsdp" alone, and
each layer is all-gathered just before it is used (ZeRO-3).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mvm.optim import path_of
from mvm.types import UserError

_SMALL = 2**12
"""Matrices with fewer elements, in each layer, are replicated; so are vectors."""

_EXACT = ("head/kernel", "sampler/head/kernel")
"""Kernels that multiply in float32 whatever the compute dtype."""


def make_mesh(fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh in which `fsdp` of the devices (None: all there are) share a copy of the parameters.

    It has to divide their number; -1 means all.
    """
    count = jax.device_count() if devices is None else len(devices)
    fsdp = count if fsdp == -1 else fsdp
    if fsdp < 1 or count % fsdp:
        raise UserError(
            f"train.fsdp={fsdp} does not divide the {count} devices; choose a divisor or -1"
        )
    return jax.make_mesh(
        (count // fsdp, fsdp),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices,
    )


def on_devices(
    function: Callable[[Any, Any], Any], params: Any, batch_size: int
) -> Callable[[np.ndarray], Any]:
    """The jitted function of an array, whose rows this process's devices share."""
    mesh = make_mesh(devices=jax.local_devices())
    check_batch(batch_size, name="eval.batch_size", devices=mesh.size)
    jitted, copies = jax.jit(function), jax.device_put(params, whole(mesh))

    def call(array: np.ndarray) -> Any:
        with jax.set_mesh(mesh):
            return jitted(copies, put(array, mesh))

    return call


def spec(path: str, shape: tuple[int, ...], fsdp: int) -> P:
    """Splits a matrix's largest divisible axis over "fsdp"; never the layer axis of a stack."""
    first = 1 if "blocks/" in path else 0
    if fsdp == 1 or len(shape) < first + 2 or np.prod(shape[first:]) < _SMALL:
        return P()
    for axis in sorted(range(first, len(shape)), key=lambda i: -shape[i]):
        if shape[axis] % fsdp == 0:
            return P(*[None] * axis, "fsdp")
    return P()


def of_state(mesh: Mesh, state: Any) -> Any:
    """Shardings of a state (arrays or shapes): moments and average like their parameter."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec(path_of(path), leaf.shape, mesh.shape["fsdp"])),
        state,
    )


def of_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis of a batch over all devices."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def at(leaf: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
    """A leaf's shape, dtype and the sharding it is to have."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def whole(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, P())


def gather(layer: Any) -> Any:
    """All-gathers the weights of one layer, without layer axis, inside a jitted step under a mesh.

    Gradients are constrained to the split of their weight, so that XLA may reduce-scatter them.
    """
    fsdp = jax.sharding.get_abstract_mesh().shape["fsdp"]
    return jax.tree.map(lambda w: _whole(w, spec("", w.shape, fsdp)), layer)


def gather_rest(params: Any, dtype: Any) -> Any:
    """All-gathers all parameters but stacked layers, after a cast to the compute `dtype`."""
    fsdp = jax.sharding.get_abstract_mesh().shape["fsdp"]

    def one(path: Any, leaf: Any) -> Any:
        name = path_of(path)
        where = spec(name, leaf.shape, fsdp)
        if "blocks/" in name or where == P():
            return leaf
        cast = name.endswith("kernel") and name not in _EXACT
        return _whole(leaf.astype(dtype) if cast else leaf, where)

    return jax.tree_util.tree_map_with_path(one, params)


def shard_grads(grads: Any) -> Any:
    """Constrains each gradient to the sharding of its parameter."""
    fsdp = jax.sharding.get_abstract_mesh().shape["fsdp"]
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.lax.with_sharding_constraint(
            leaf, spec(path_of(path), leaf.shape, fsdp)
        ),
        grads,
    )


def _whole(leaf: Any, where: P) -> Any:
    """The replicated leaf. Both constraints hold for its gradient, too, in reverse order."""
    if where == P():
        return leaf
    constrain = jax.lax.with_sharding_constraint
    return constrain(constrain(leaf, where), P())


def platform() -> str:
    """Platform of the mesh in use, whose devices need not exist, else of this process."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def jit_once(function: Callable[..., Any], **kwargs: Any) -> Any:
    """`jax.jit` of what runs once: on CPU such a program takes longer to compile than to run."""
    quick = {"xla_backend_optimization_level": 1} if platform() == "cpu" else None
    return jax.jit(function, compiler_options=quick, **kwargs)


def collect(tree: Any, mesh: Mesh) -> Any:
    """Whole arrays in the memory of process 0, None elsewhere; all processes must call it."""
    gathered = jax.jit(lambda x: x, out_shardings=whole(mesh))(tree)
    return jax.device_get(gathered) if jax.process_index() == 0 else None


def put(batch: Any, mesh: Mesh) -> Any:
    """Global arrays on the devices from this process's rows of a batch, as NumPy arrays."""
    with jax.transfer_guard("allow"):  # Explicit; among several processes JAX does not see it.
        return jax.make_array_from_process_local_data(of_batch(mesh), batch)


def check_batch(
    videos: int,
    accumulate: int = 1,
    name: str = "train.batch_size",
    repeats: int = 1,
    devices: int = 0,
) -> None:
    """Checks that `videos`, of `repeats` clips each, split over devices and micro-batches."""
    devices = devices or jax.device_count()
    parts = devices * accumulate
    if videos * repeats % parts:
        raise UserError(
            f"{name}={videos} ({videos * repeats} clips) does not split over {devices} devices x "
            f"{accumulate} micro-batches; choose a multiple of {parts // math.gcd(parts, repeats)}"
        )
