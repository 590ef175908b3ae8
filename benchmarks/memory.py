"""The largest batch that fits into memory, by what the backward pass computes again.

python -m benchmarks.memory --config configs/videomae_k400.py:L --json memory.json

On an accelerator the limit is what the device grants; the compiler's plan finds the batch, by
doubling and bisection, and real steps confirm it. On CPU the limit is --limit_gb, and the plan is
held against it.
"""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags
from etils import epath
from ml_collections import config_flags

from benchmarks import results, step
from mvm import start, tasks
from mvm.runtime import chip, sharding
from mvm.types import UserError


def largest(fits: Callable[[int], bool], unit: int, most: int) -> int:
    """The largest multiple of `unit` that fits, to within a sixteenth; 0 if none does.

    Args:
        fits: whether a number does; once one does not, no larger one does.
        unit: all numbers tried are multiples of it.
        most: none above it is tried.
    """
    low, high = 0, unit
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most // unit * unit + unit)
    while high - low > max(unit, low // 16):
        middle = (low + high) // 2 // unit * unit
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def search(config: Any, limit: int, most: int) -> tuple[int, dict[int, int]]:
    """The largest batch whose plan is within `limit` bytes a device, and all plans in bytes."""
    planned: dict[int, int] = {}
    mesh = sharding.make_mesh(config.train.fsdp)
    config.init_from = config.init_head_rows = ""
    unit = mesh.size * config.train.accumulate
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
        config.train.batch_size = unit
        plan = tasks.plan(config, num_records=100 * unit)
        run = start.run(config, epath.Path(folder), plan, mesh)
        run.checkpoints.close()

        def fits(batch_size: int) -> bool:
            config.train.batch_size = batch_size
            shapes = {
                name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.of_batch(mesh))
                for name, x in step.batch_shapes(config).items()
            }
            lowered = run.step.lower(run.state, shapes)  # type: ignore[attr-defined]
            try:
                planned[batch_size] = chip.planned(lowered.compile()).total
            except jax.errors.JaxRuntimeError as error:
                if not step.out_of_memory(error):
                    raise
                return False
            return planned[batch_size] <= limit

        return largest(fits, unit, most), planned


def confirmed(config: Any, batch_size: int, steps: int) -> dict[str, Any] | None:
    """`step.measure` at the largest batch up to `batch_size` that really runs, None if none does.

    A plan leaves out what the runtime and its libraries need, so the batch may have to shrink by
    a sixteenth at a time.
    """
    unit = jax.device_count() * config.train.accumulate
    while batch_size >= unit:
        config.train.batch_size = batch_size
        try:
            return step.without_peaks(step.measure(config, steps))
        except jax.errors.JaxRuntimeError as error:
            if not step.out_of_memory(error):
                raise
        batch_size -= max(unit, batch_size // 16 // unit * unit)
    return None


def measure(config: Any, policy: str, limit: int, most: int, steps: int) -> dict[str, Any]:
    """The largest batch of one remat policy, what it takes and how fast it is."""
    config = config.copy_and_resolve_references()
    config.model.remat = policy
    found, planned = search(config, limit, most)
    numbers = confirmed(config, found, steps) if found else None
    return {
        "remat": policy,
        "planned_batch_size": found,
        "batch_size": numbers["batch_size"] if numbers else 0,
        "planned_gb": {str(batch): size / 1e9 for batch, size in sorted(planned.items())},
        "step": numbers,
    }


def table(rows: list[results.Row]) -> str:
    """One row for each policy."""
    lines = []
    for row in rows:
        n = row["step"] or {}
        lines.append(
            {
                "remat": row["remat"],
                "largest batch": str(row["batch_size"]),
                "planned": results.shown(n.get("memory_planned_gb"), ".2f", " GB"),
                "of it temporary": results.shown(n.get("memory_temporary_gb"), ".2f", " GB"),
                "step": results.shown(n.get("step_median_s"), ".4g", " s"),
                "clips/s": results.shown(n.get("clips_per_s"), ".4g"),
                "MFU": results.shown(n.get("mfu"), ".1%"),
            }
        )
    return results.markdown(lines)


def draw(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """One bar for each policy, as long as its batch."""
    rows = numbers["rows"]
    bars = {row["remat"]: {"batch": float(row["batch_size"])} for row in rows}
    labels = []
    for row in rows:
        n = row["step"]
        labels.append(
            f"{row['batch_size']}: {n['memory_planned_gb']:.3g} GB, {n['clips_per_s']:.3g} clips/s"
            if n
            else "does not fit"
        )
    said = f"{numbers['config']} on {numbers['device']}, {numbers['limit_gb']:.3g} GB a device."
    results.stacked(path, bars, labels, "largest batch, videos", said)


def main(argv: list[str]) -> None:
    """Command line."""
    if len(argv) > 1 or _CONFIG.value is None:
        raise SystemExit("error: usage: python -m benchmarks.memory --config configs/<recipe>.py")
    config = _CONFIG.value
    results.prepare(config)
    device = jax.local_devices()[0]
    granted = chip.limit_bytes(device)
    limit = int(_LIMIT.value * 1e9) or granted
    if limit is None:
        raise SystemExit("error: this device names no limit of its memory; set --limit_gb")
    numbers: dict[str, Any] = {
        "config": config.name,
        "device": f"{jax.device_count()} x {device.device_kind}",
        "limit_gb": limit / 1e9,
        "rows": [],
        **results.where(),
    }
    try:
        for policy in _REMAT.value:
            row = measure(config, policy, limit, _MOST.value, _STEPS.value)
            numbers["rows"].append(row)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    text = table(numbers["rows"])
    print(text)
    if _JSON.value:
        results.write(_JSON.value, numbers, text, lambda path: draw(path, numbers))


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "A recipe.", lock_config=True)
    _LIMIT = flags.DEFINE_float("limit_gb", 0.0, "GB (1e9 bytes) a device; 0: what it grants.")
    _REMAT = flags.DEFINE_list("remat", ["none", "dots", "full"], "Values of model.remat.")
    _MOST = flags.DEFINE_integer("most", 4096, "Largest batch tried, videos.", lower_bound=1)
    _STEPS = flags.DEFINE_integer("steps", 3, "Timed steps at that batch.", lower_bound=1)
    _JSON = flags.DEFINE_string("json", "", "File for the numbers; .md and .png go beside it.")
    app.run(main)
