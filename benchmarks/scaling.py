"""How cost, memory and time of a training step grow with clip, batch, model and devices.

python -m benchmarks.scaling --config configs/everest_k400.py:B --json scaling.json

Each of --frames, --resolution, --batch, --size and --devices is a list of values, of which all but
one are left as the recipe has them; an empty list leaves the axis out. On more devices the batch
grows with them, so that each device has the same work.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import app, flags
from ml_collections import config_flags

from benchmarks import results, step
from mvm.types import UserError

AXES = {
    "frames": "data.num_frames",
    "resolution": "data.image_size",
    "batch": "train.batch_size",
    "size": "model.size",
}
"""The key of each axis but "devices"."""


def at(config: Any, axis: str, value: str) -> Any:
    """The recipe with one thing changed.

    Raises:
        UserError: if the value is no number where one is needed.
    """
    was, config = config.data.num_frames, config.copy_and_resolve_references()
    if axis != "size" and not value.isdigit():
        raise UserError(f"--{axis}={value} is not a whole number")
    if axis == "devices":
        config.train.batch_size *= int(value)
    else:
        kind = str if axis == "size" else int
        config.update_from_flattened_dict({AXES[axis]: kind(value)})
    if axis == "frames":  # As many candidates for each frame that is kept.
        config.data.num_candidates = int(value) * config.data.num_candidates // was
    return config


def measure(config: Any, axes: Mapping[str, Sequence[str]], steps: int) -> list[results.Row]:
    """`step.measure` at every value of every axis; what cannot run says why under "error"."""
    rows = []
    for axis, values in axes.items():
        for value in values:
            row: results.Row = {"axis": axis, "value": value}
            try:
                changed = at(config, axis, value)
                # All devices, unless their number is what changes: then the others stand still.
                devices = int(value) if axis == "devices" else 1 if axes.get("devices") else 0
                found = step.measure(changed, steps, devices=devices)
                row |= step.without_peaks(found)
            except UserError as error:
                row["error"] = str(error)
            except jax.errors.JaxRuntimeError as error:
                if not step.out_of_memory(error):
                    raise
                row["error"] = "does not fit into memory"
            rows.append(row)
    return rows


def table(rows: Sequence[results.Row]) -> str:
    """One row for each value; what did not run is told below."""
    lines, errors = [], []
    for n in rows:
        if "error" in n:
            errors.append(f"{n['axis']} {n['value']}: {n['error']}")
        tflop = n.get("train_tflop_per_clip")
        lines.append(
            {
                "axis": n["axis"],
                "value": n["value"],
                "tokens": f"{n['visible']} + {n['target']}" if "visible" in n else "-",
                "GFLOP a clip": results.shown(None if tflop is None else 1e3 * tflop, ".4g"),
                "planned": results.shown(n.get("memory_planned_gb"), ".3g", " GB"),
                "compile": results.shown(n.get("compile_s"), ".1f", " s"),
                "step": results.shown(n.get("step_median_s"), ".4g", " s"),
                "clips/s": results.shown(n.get("clips_per_s"), ".4g"),
                "TFLOP/s a device": results.shown(n.get("model_tflop_per_s_per_device"), ".3g"),
                "MFU": results.shown(n.get("mfu"), ".1%"),
            }
        )
    return "\n".join([results.markdown(lines), *errors])


def draw(path: pathlib.Path, rows: Sequence[results.Row]) -> None:
    """One panel for each axis: training FLOPs, memory and time as multiples of the first value."""
    things = {
        "FLOPs a clip": lambda n: n.get("train_tflop_per_clip"),
        "time a clip": lambda n: n["step_median_s"] / n["clips"] if "clips" in n else None,
        "memory planned a device": lambda n: n.get("memory_planned_gb"),
    }
    panels: dict[str, dict[str, list[tuple[str, float | None]]]] = {}
    for n in rows:
        panel = panels.setdefault(n["axis"], {name: [] for name in things})
        for name, of in things.items():
            panel[name].append((n["value"], of(n)))
    ran = next((n for n in rows if "config" in n), None)
    if ran is not None:
        said = f"{ran['config']}, {ran['dtype']}, {ran['remat']} recomputed, {ran['device']}"
        results.grown(path, panels, f"{said}. Multiples of the first value that ran.")


def main(argv: list[str]) -> None:
    """Command line."""
    if len(argv) > 1 or _CONFIG.value is None:
        raise SystemExit("error: usage: python -m benchmarks.scaling --config configs/<recipe>.py")
    config = _CONFIG.value
    axes = {axis: flag.value for axis, flag in _AXES.items() if flag.value}
    if axes.get("devices"):  # As many on CPU, which elsewhere changes nothing.
        config.train.cpu_devices = max(int(n) for n in axes["devices"] if n.isdigit())
    results.prepare(config)
    if _BATCH_SIZE.value:
        config.train.batch_size = _BATCH_SIZE.value
    try:
        rows = measure(config, axes, _STEPS.value)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    text = table(rows)
    print(text)
    if _JSON.value:
        numbers = {"rows": rows, **results.where()}
        results.write(_JSON.value, numbers, text, lambda path: draw(path, rows))


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "A recipe.", lock_config=True)
    _AXES = {
        "frames": flags.DEFINE_list("frames", ["8", "16", "32"], "data.num_frames"),
        "resolution": flags.DEFINE_list("resolution", ["112", "160", "224"], "data.image_size"),
        "batch": flags.DEFINE_list("batch", ["1", "2", "4"], "train.batch_size"),
        "size": flags.DEFINE_list("size", ["Ti", "S", "B"], "model.size"),
        "devices": flags.DEFINE_list("devices", [], "devices, batch_size videos each"),
    }
    _BATCH_SIZE = flags.DEFINE_integer("batch_size", 0, "On the other axes; 0: the recipe's.")
    _STEPS = flags.DEFINE_integer("steps", 5, "Timed steps, after two others.", lower_bound=1)
    _JSON = flags.DEFINE_string("json", "", "File for the numbers; .md and .png go beside it.")
    app.run(main)
