"""Speed and memory of one whole training step, built as a run builds it, on random clips.

python -m benchmarks.step --config configs/everest_ucf101.py --batch_size 2 --json step.json

Any key may be changed as in a run (`--config.mask.name=tube`). No data is read or needed. Time
spent on reading and decoding videos is measured by `benchmarks.input`.
"""

import resource
import statistics
import sys
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags
from jax.sharding import AxisType
from ml_collections import config_flags

from benchmarks import results
from mvm import tasks, train
from mvm.runtime import chip, sharding
from mvm.runtime import flops as cost
from mvm.step import count
from mvm.types import UserError

WARMUP = 2
"""Steps left out: the first runs touch new memory."""


def batch_shapes(config: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Every entry that the recipe's real batches have."""
    d = config.data
    b = config.train.batch_size * d.repeats
    video = (b, d.num_candidates or d.num_frames, d.image_size, d.image_size, 3)
    shapes: dict[str, Any] = {
        "video": (video, np.uint8),
        "label": ((b,), np.int32),
        "skipped": ((b,), np.int32),
    }
    if d.erasing:
        shapes["erase"] = (b, 4), np.int32
    if tasks.spec(config.task).mixes and (d.mixup or d.cutmix):
        shapes["lam"], shapes["box"] = ((b,), np.float32), ((b, 4), np.int32)
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def random_batch(config: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Noise in every entry that the recipe's real batches have."""
    batch = {name: np.zeros(x.shape, x.dtype) for name, x in batch_shapes(config).items()}
    batch["video"] = rng.integers(0, 256, batch["video"].shape, np.uint8)
    batch["label"] = rng.integers(
        0, max(config.data.num_classes, 1), batch["label"].shape, np.int32
    )
    if "erase" in batch:
        batch["erase"] += config.data.image_size // 4
    if "lam" in batch:
        batch["lam"] += np.float32(0.7)  # Of an empty box: mixup.
    return batch


def mesh_of(fsdp: int, devices: int = 0) -> Any:
    """The mesh of a run, or one over the first `devices` devices.

    Raises:
        UserError: if there are not so many devices, or `fsdp` does not divide them.
    """
    if not devices or devices == jax.device_count():
        return sharding.make_mesh(fsdp)
    fsdp = devices if fsdp == -1 else fsdp
    if devices > jax.device_count() or devices % fsdp:
        raise UserError(
            f"{devices} devices: there are {jax.device_count()}, and train.fsdp={fsdp} must "
            f"divide them; on CPU, --config.train.cpu_devices={devices} makes as many"
        )
    shape, axes = (devices // fsdp, fsdp), (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh(shape, ("data", "fsdp"), axis_types=axes, devices=jax.devices()[:devices])


def measure(config: Any, steps: int, *, devices: int = 0) -> dict[str, Any]:
    """Compiles and times the training step of a configuration.

    Args:
        config: a whole configuration with `task` pretrain or finetune; starts from random weights.
        steps: how many are timed, each until its results are ready.
        devices: how many of them; 0 = all.

    Returns:
        Numbers by name, each with its unit in the name. On a CPU that others use too, trust
        "step_host_cpu_s" over the wall-clock times.

    Raises:
        UserError: for a configuration that cannot be trained.
    """
    if config.evaluate:
        raise UserError("an evaluation has no training step; choose another variant")
    mesh = mesh_of(config.train.fsdp, devices)
    if config.train.batch_size % (mesh.size * config.train.accumulate):
        raise UserError(
            f"train.batch_size={config.train.batch_size} is not a multiple of {mesh.size} devices "
            f"x train.accumulate={config.train.accumulate}; change it with --batch_size"
        )
    config.init_from = config.init_head_rows = ""
    clips = config.train.batch_size * config.data.repeats
    with jax.set_mesh(mesh):
        plan = train.planned(config, num_records=100 * config.train.batch_size)
        placed = train.place(config, plan.schedule, mesh)
        state, batch = (
            placed.create(),
            sharding.put(random_batch(config, np.random.default_rng(0)), mesh),
        )
        began = time.perf_counter()
        step = placed.step.lower(state, batch).compile()
        compile_seconds = time.perf_counter() - began
        times, loss, _ = _time(step, state, batch, WARMUP + steps)
        device = mesh.devices.flat[0]
        numbers = _memory(step, device)
    median = statistics.median(times.wall[WARMUP:])
    task, macs = placed.task, placed.task.macs()
    executed, train_flops = task.macs(executed=True), cost.train_flops(macs, task.untrained)
    tflops = train_flops * clips / median / mesh.size / 1e12
    dtype = np.dtype(task.run.dtype).name
    peak = chip.peak_tflops(device.device_kind, dtype)
    return {
        "config": config.name,
        "task": config.task,
        "mask": config.mask.name or "none",
        "device": f"{mesh.size} x {device.device_kind}",
        "devices": mesh.size,
        "dtype": dtype,
        "remat": config.model.remat,
        "unroll": config.model.unroll,
        "size": config.model.size,
        "batch_size": config.train.batch_size,
        "clips": clips,
        "visible": task.num_visible,
        "target": task.num_target,
        "parameters": count(task.abstract),
        "compile_s": compile_seconds,
        "step_median_s": median,
        "step_min_s": min(times.wall[WARMUP:]),
        "steps_s": times.wall,
        "step_host_cpu_s": statistics.median(times.cpu[WARMUP:]),
        "dispatch_ms": 1e3 * statistics.median(times.dispatch[WARMUP:]),
        "dispatch_cpu_ms": 1e3 * statistics.median(times.dispatch_cpu[WARMUP:]),
        "clips_per_s": clips / median,
        "model_gmac_per_clip": sum(macs.values()) / 1e9,
        "executed_gmac_per_clip": sum(executed.values()) / 1e9,
        "train_tflop_per_clip": train_flops / 1e12,
        "model_tflop_per_s": tflops * mesh.size,
        "model_tflop_per_s_per_device": tflops,
        "mfu": tflops / peak if peak else None,
        **numbers,
        "loss": loss,
        **results.where(),
    }


class _Times(NamedTuple):
    """Seconds of each step."""

    wall: list[float]
    cpu: list[float]
    """Of all threads of the process."""
    dispatch: list[float]
    """Until the call returned, all of whose arguments were ready; the step itself goes on."""
    dispatch_cpu: list[float]
    """Of the calling thread in that time: what is left of it on a CPU that others use too."""


def _time(step: Any, current: Any, batch: Any, count: int) -> tuple[_Times, float, Any]:
    """Takes steps one by one; their times, the last loss, the last state."""
    times, metrics = _Times([], [], [], []), {}
    for _ in range(count):
        began, began_cpu = time.perf_counter(), time.process_time()
        began_thread = time.thread_time()
        current, metrics = step(current, batch)
        times.dispatch_cpu.append(time.thread_time() - began_thread)
        times.dispatch.append(time.perf_counter() - began)
        jax.block_until_ready((current, metrics))
        times.wall.append(time.perf_counter() - began)
        times.cpu.append(time.process_time() - began_cpu)
    return times, float(metrics["loss"]), current


def _memory(step: Any, device: Any) -> dict[str, Any]:
    """GB (1e9 bytes) per device: by the compiler's plan, and as the device or process saw it."""
    plan, peak = chip.planned(step), chip.peak_bytes(device)
    unit = 1 if sys.platform == "darwin" else 1024
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "memory_planned_gb": plan.total / 1e9,
        "memory_arguments_gb": plan.arguments / 1e9,
        "memory_temporary_gb": plan.temporary / 1e9,
        "memory_device_peak_gb": None if peak is None else peak / 1e9,
        "memory_process_peak_gb": rss / 1e9,
    }


def without_peaks(numbers: dict[str, Any]) -> dict[str, Any]:
    """The numbers but peaks of memory, which belong to the whole process and all it did before."""
    return {k: v for k, v in numbers.items() if not k.endswith("_peak_gb")}


def out_of_memory(error: Exception) -> bool:
    """Whether that is what an error of XLA says."""
    return "RESOURCE_EXHAUSTED" in str(error)


def table(n: dict[str, Any]) -> str:
    """What a person wants to see of the numbers."""
    per_device = n["model_tflop_per_s_per_device"]
    rows = {
        "config": f"{n['config']}, mask {n['mask']}",
        "device": f"{n['device']}, {n['dtype']}, remat {n['remat']}, unroll {n['unroll']}",
        "batch": f"{n['clips']} clips, {n['visible']} visible and {n['target']} target tokens",
        "parameters": f"{n['parameters'] / 1e6:.1f} M",
        "cost": f"{n['model_gmac_per_clip']:.2f} GMAC a clip forward as published, "
        f"{n['executed_gmac_per_clip']:.2f} done here",
        "compile": f"{n['compile_s']:.1f} s",
        "step": f"{n['step_median_s']:.4g} s median, {n['step_min_s']:.4g} s min, "
        f"{n['step_host_cpu_s']:.4g} CPU s of the host",
        "dispatch": f"{n['dispatch_ms']:.2f} ms until the call returns, "
        f"{n['dispatch_cpu_ms']:.2f} CPU ms of its thread",
        "rate": f"{n['clips_per_s']:.4g} clips/s, {per_device:.4g} model TFLOP/s a device",
        "memory": f"{n['memory_planned_gb']:.2f} GB planned a device, "
        f"{n['memory_process_peak_gb']:.2f} GB peak of the process",
    }
    if n["memory_device_peak_gb"] is not None:
        rows["memory"] += f", {n['memory_device_peak_gb']:.2f} GB peak of the device"
    if n["mfu"] is not None:
        rows["MFU"] = f"{n['mfu']:.1%}"
    return results.markdown([{"": name, "measured": text} for name, text in rows.items()])


def main(argv: list[str]) -> None:
    """Command line."""
    if len(argv) > 1 or _CONFIG.value is None:
        raise SystemExit("error: usage: python -m benchmarks.step --config configs/<recipe>.py")
    config = _CONFIG.value
    results.prepare(config)
    if _BATCH.value:
        config.train.batch_size = _BATCH.value
    try:
        numbers = measure(config, _STEPS.value)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        raise SystemExit(
            f"error: a batch of {config.train.batch_size} does not fit into memory; lower "
            f"--batch_size or set --config.model.remat=full"
        ) from error
    text = table(numbers)
    print(text)
    if _JSON.value:
        results.write(_JSON.value, numbers, text)


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "A recipe.", lock_config=True)
    _BATCH = flags.DEFINE_integer("batch_size", 0, "Videos of a step, all devices; 0: recipe's.")
    _STEPS = flags.DEFINE_integer("steps", 10, "Timed steps, after two others.", lower_bound=1)
    _JSON = flags.DEFINE_string("json", "", "File for the numbers; .md and .png go beside it.")
    app.run(main)
