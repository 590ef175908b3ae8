"""Will it fit? Compiles a training step for many devices that are not there, and counts memory.

python -m benchmarks.plan --config configs/videomaev2_hybrid.py:g --devices 64

No weights, no data and no accelerator are needed. `--platform cpu` compiles for as many virtual CPU
devices: all arrays are sharded as on any platform, and temporary memory is an upper estimate,
because CPUs compute bfloat16 in float32 and keep the scores of attention. `--platform tpu` compiles
with the TPU's own compiler, for the chips of `--topology` (`pip install libtpu`, no TPU). Any key
may be changed as in a run (`--config.train.batch_size=1024`) but `train.fsdp`, which is `--fsdp`
here, by default all devices. `--devices` are those of the CPU.
"""

import math
import os
from typing import Any

import jax
from absl import app, flags
from jax.experimental import topologies
from ml_collections import config_flags

from benchmarks import step, table
from mvm.runtime import chip, sharding
from mvm.step import count
from mvm.types import UserError, first_line


def local_bytes(tree: Any) -> int:
    """Bytes of a placed tree on one device."""
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(tree)
    )


def measure(config: Any, devices: Any) -> dict[str, Any]:
    """Memory of one training step on each of `devices`, which need not exist."""
    mesh = sharding.make_mesh(config.train.fsdp, devices)
    with jax.set_mesh(mesh):
        placed, where = step.placed(config, mesh), sharding.of_batch(mesh)
        batch = {k: sharding.at(x, where) for k, x in step.batch_shapes(config).items()}
        compiled = placed.step.lower(placed.state, batch).compile()
    current, (temporary, total) = placed.state, chip.planned(compiled)
    parts = {"params": "params", "frozen": "frozen", "moments": "opt", "ema": "ema"}
    sizes = {name: local_bytes(current.get(part, {})) for name, part in parts.items()}
    sizes |= {"batch": local_bytes(batch), "temporary": temporary, "total": total}
    return {
        "config": config.name,
        "device": f"{mesh.size} x {devices[0].device_kind}",
        "fsdp": mesh.shape["fsdp"],
        "clips": config.train.batch_size * config.data.repeats,
        "parameters": count(current["params"]),
        "frozen": count(current.get("frozen", {})),
        **{f"{name}_gb": size / 1e9 for name, size in sizes.items()},
    }


def devices_of(platform: str, count: int, topology: str) -> Any:
    """Devices to compile for; call it before JAX has met any."""
    jax.config.update("jax_platforms", "cpu")
    # The program is never run: no time for its machine code.
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick}"
    if platform == "cpu":
        jax.config.update("jax_num_cpu_devices", count)
        return jax.devices()
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # Whatever the plug-in raises: missing, too old, no such topology.
        raise UserError(
            f"--topology={topology} cannot be described: {first_line(error)}; "
            f"install libtpu and set TPU_SKIP_MDS_QUERY=1"
        ) from error


def main(argv: list[str]) -> None:
    if len(argv) > 1 or _CONFIG.value is None:
        raise SystemExit("error: usage: python -m benchmarks.plan --config configs/<recipe>.py")
    config = _CONFIG.value
    config.train.fsdp = _FSDP.value
    if config.model.dtype == "auto":
        config.model.dtype = "bfloat16"
    if config.model.attention == "auto":
        config.model.attention = "xla"  # Not what suits the CPU that compiles this.
    try:
        numbers = measure(config, devices_of(_PLATFORM.value, _DEVICES.value, _TOPOLOGY.value))
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    rows = [{"": name, "on each device": value} for name, value in numbers.items()]
    table.show(rows, numbers, _JSON.value, "jax")


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "A recipe.", lock_config=True)
    _DEVICES = flags.DEFINE_integer("devices", 64, "How many there are to be.", lower_bound=1)
    _FSDP = flags.DEFINE_integer("fsdp", -1, "Devices that share a copy of the parameters.")
    _PLATFORM = flags.DEFINE_enum("platform", "cpu", ["cpu", "tpu"], "Whose compiler.")
    _TOPOLOGY = flags.DEFINE_string("topology", "v5p:4x4x4", "Chips, for --platform tpu.")
    _JSON = flags.DEFINE_string("json", "", "File to write the numbers to.")
    app.run(main)
