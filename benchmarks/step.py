"""Speed and memory of one whole training step, built as a run builds it, on random clips.

python -m benchmarks.step --config configs/everest_ucf101.py:finetune --batch_size 2 --steps 10

Any key may be changed as in a run (`--config.mask.name=tube`). No data is read or needed. Time
spent on reading and decoding videos is measured by `benchmarks.input`.
"""

import json
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import flax
import jax
import numpy as np
from absl import app, flags
from absl import logging as absl_logging
from etils import epath
from ml_collections import config_flags

from mvm import cost, memory, sharding, start, state, tasks
from mvm.types import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "A recipe.", lock_config=True)
_BATCH = flags.DEFINE_integer("batch_size", 0, "Videos of a step, all devices; 0 = the recipe's.")
_STEPS = flags.DEFINE_integer("steps", 10, "Timed steps, after two that are not.", lower_bound=1)
_JSON = flags.DEFINE_string("json", "", "File to write the numbers to.")

WARMUP = 2
"""Steps left out: the first runs touch new memory."""

PEAK_TFLOPS = {
    "NVIDIA A100": 312.0,
    "NVIDIA H100": 989.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H200": 989.0,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5p": 459.0,
    "TPU v5": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
}
"""Dense bfloat16 TFLOP/s of a device, by the start of its `device_kind`; longest match wins."""


def peak_tflops(device_kind: str) -> float | None:
    """Peak of a device, None if it is not in the table."""
    known = [name for name in PEAK_TFLOPS if device_kind.startswith(name)]
    return PEAK_TFLOPS[max(known, key=len)] if known else None


def random_batch(config: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Noise with every entry that the recipe's real batches have."""
    d = config.data
    b = config.train.batch_size * d.repeats
    shape = (b, d.num_candidates or d.num_frames, d.image_size, d.image_size, 3)
    batch: dict[str, np.ndarray] = {
        "video": rng.integers(0, 256, shape, np.uint8),
        "label": rng.integers(0, max(d.num_classes, 1), b, np.int32),
        "skipped": np.zeros(b, np.int32),
    }
    side = d.image_size // 4
    if d.erasing:
        batch["erase"] = np.tile(np.array([side, side, side, side], np.int32), (b, 1))
    if config.task != "pretrain" and (d.mixup or d.cutmix):
        batch["lam"] = np.full(b, 0.7, np.float32)
        batch["box"] = np.zeros((b, 4), np.int32)  # Empty: mixup.
    return batch


def measure(config: Any, steps: int) -> dict[str, Any]:
    """Compiles and times the training step of a configuration.

    Args:
        config: a whole configuration with `task` pretrain or finetune; starts from random weights.
        steps: how many are timed, each until its results are ready.

    Returns:
        Numbers by name, each with its unit in the name. On a CPU that others use too, trust
        "step_host_cpu_s" over the wall-clock times.

    Raises:
        UserError: for a configuration that cannot be trained.
    """
    if config.task not in ("pretrain", "finetune"):
        raise UserError(f"task={config.task!r} has no training step; choose pretrain or finetune")
    sharding.check_batch(config.train.batch_size, config.train.accumulate)
    config.init_from = config.init_head_rows = ""
    clips = config.train.batch_size * config.data.repeats
    classes = config.data.num_classes if config.task == "finetune" else 0
    mesh = sharding.make_mesh(config.train.fsdp)
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
        plan = tasks.plan(config, num_records=100 * config.train.batch_size)
        run = start.run(config, epath.Path(folder), plan, mesh)
        batch = sharding.put(random_batch(config, np.random.default_rng(0)), mesh)
        began = time.perf_counter()
        step = run.step.lower(run.state, batch).compile()  # type: ignore[attr-defined]
        compile_seconds = time.perf_counter() - began
        seconds, cpu_seconds, loss = _time(step, run.state, batch, WARMUP + steps)
        run.checkpoints.close()
    median = statistics.median(seconds[WARMUP:])
    macs = cost.forward_macs(run.task, classes)
    executed = cost.executed_macs(run.task, classes)
    flops = cost.train_flops(macs) * clips / median
    strategy, device = run.task.strategy, jax.devices()[0]
    dtype = np.dtype(tasks.dtype_of(config.model.dtype)).name
    peak = peak_tflops(device.device_kind) if dtype == "bfloat16" else None
    return {
        "config": config.name,
        "mask": config.mask.name or "none",
        "device": f"{jax.device_count()} x {device.device_kind}",
        "dtype": dtype,
        "remat": config.model.remat,
        "unroll": config.model.unroll,
        "batch_size": config.train.batch_size,
        "clips": clips,
        "visible": strategy.num_visible if strategy else run.task.grid.n,
        "target": strategy.num_target if strategy else 0,
        "parameters": state.count(run.task.abstract),
        "compile_s": compile_seconds,
        "step_median_s": median,
        "step_min_s": min(seconds[WARMUP:]),
        "steps_s": seconds,
        "step_host_cpu_s": statistics.median(cpu_seconds[WARMUP:]),
        "clips_per_s": clips / median,
        "model_gmac_per_clip": sum(macs.values()) / 1e9,
        "executed_gmac_per_clip": sum(executed.values()) / 1e9,
        "model_tflop_per_s": flops / 1e12,
        "mfu": flops / 1e12 / (peak * jax.device_count()) if peak else None,
        **_memory(step, device),
        "loss": loss,
        "versions": {"jax": jax.__version__, "flax": flax.__version__},
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _time(
    step: Any, current: Any, batch: Any, count: int
) -> tuple[list[float], list[float], float]:
    """Wall-clock and process CPU seconds of each step, and the last loss."""
    wall, cpu, metrics = [], [], {}
    for _ in range(count):
        began, began_cpu = time.perf_counter(), time.process_time()
        current, metrics = step(current, batch)
        jax.block_until_ready((current, metrics))
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    return wall, cpu, float(metrics["loss"])


def _memory(step: Any, device: Any) -> dict[str, float | None]:
    """GB (1e9 bytes) per device: by the compiler's plan, and as the device or process saw it."""
    plan = step.memory_analysis()
    # The donated state is both argument and output, in the same place.
    planned = plan.argument_size_in_bytes + plan.temp_size_in_bytes
    planned += plan.output_size_in_bytes - plan.alias_size_in_bytes
    stats = device.memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "memory_planned_gb": planned / 1e9,
        "memory_arguments_gb": plan.argument_size_in_bytes / 1e9,
        "memory_temporary_gb": plan.temp_size_in_bytes / 1e9,
        "memory_device_peak_gb": stats["peak_bytes_in_use"] / 1e9 if stats else None,
        "memory_process_peak_gb": rss / 1e9,
    }


def _commit() -> str | None:
    """Commit of the code, "-dirty" appended if files differ from it; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    root = pathlib.Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def table(n: dict[str, Any]) -> str:
    """What a person wants to see of the numbers."""
    shown = {
        "config": f"{n['config']}, mask {n['mask']}",
        "device": f"{n['device']}, {n['dtype']}, remat {n['remat']}, unroll {n['unroll']}",
        "batch": f"{n['clips']} clips, {n['visible']} visible and {n['target']} target tokens",
        "parameters": f"{n['parameters'] / 1e6:.1f} M",
        "cost": f"{n['model_gmac_per_clip']:.2f} GMAC a clip forward as published, "
        f"{n['executed_gmac_per_clip']:.2f} done here",
        "compile": f"{n['compile_s']:.1f} s",
        "step": f"{n['step_median_s']:.4g} s median, {n['step_min_s']:.4g} s min, "
        f"{n['step_host_cpu_s']:.4g} CPU s of the host",
        "rate": f"{n['clips_per_s']:.4g} clips/s, {n['model_tflop_per_s']:.4g} model TFLOP/s",
        "memory": f"{n['memory_planned_gb']:.2f} GB planned a device, "
        f"{n['memory_process_peak_gb']:.2f} GB peak of the process",
    }
    if n["memory_device_peak_gb"] is not None:
        shown["memory"] += f", {n['memory_device_peak_gb']:.2f} GB peak of the device"
    if n["mfu"] is not None:
        shown["MFU"] = f"{n['mfu']:.1%}"
    return "\n".join(f"{name:<11}{value}" for name, value in shown.items())


def main(argv: list[str]) -> None:
    """Command line."""
    if len(argv) > 1 or _CONFIG.value is None:
        raise SystemExit("error: usage: python -m benchmarks.step --config configs/<recipe>.py")
    absl_logging.set_verbosity(absl_logging.WARNING)
    memory.keep_freed()
    config = _CONFIG.value
    if config.train.cpu_devices > 1:
        jax.config.update("jax_num_cpu_devices", config.train.cpu_devices)
    if _BATCH.value:
        config.train.batch_size = _BATCH.value
    try:
        numbers = measure(config, _STEPS.value)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    print(table(numbers))
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
