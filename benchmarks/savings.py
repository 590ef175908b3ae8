"""What each exact saving of the training step is worth: one program without it, beside the usual.

python -m benchmarks.savings --config configs/everest_ucf101.py --batch_size 2 --json savings.json

One program is the step of a run; every other has one saving off (see `benchmarks.plain`). All
begin with the same state, key and clips and must agree in loss and norm of the gradient; then
they take steps in turn, each round all of them, and hand one state on.
"""

import math
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from etils import epath
from jax import extend
from ml_collections import config_flags

from benchmarks import plain, results
from benchmarks import step as whole_step
from benchmarks.in_turn import SideError
from mvm import placement, start, tasks
from mvm.runtime import chip, memory, sharding
from mvm.types import UserError

ON = "all on"
"""The name of the step of a run."""
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
"""How far the loss may differ by rounding, as a fraction of it; the gradient's norm ten times."""


def _inside(equation: Any) -> Iterator[Any]:
    """The jaxprs among an equation's parameters."""
    for value in equation.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            if isinstance(inner, extend.core.ClosedJaxpr):
                yield inner.jaxpr
            elif isinstance(inner, extend.core.Jaxpr):
                yield inner


def product_flops(jaxpr: Any) -> int:
    """Floating-point operations of all matrix products that were traced, 2 per MAC.

    What a loop of unknown length does counts once.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            summed = math.prod(left[axis] for axis in contracted)
            total += 2 * summed * math.prod(equation.outvars[0].aval.shape)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(map(product_flops, _inside(equation)))
    return total


def traced(
    config: Any, schedule: Any, mesh: Any, state: Any, batch: Any, off: AbstractContextManager[None]
) -> Any:
    """A fresh step of a run, traced while a plain version is in place.

    Args:
        config: a whole configuration.
        schedule: of the learning rate.
        mesh: the current one.
        state: placed, arrays or shapes.
        batch: the same.
        off: from `plain.Saving.off`; `contextlib.nullcontext()` leaves all savings on.

    Returns:
        What `jax.jit(...).trace` returns, to be lowered outside.
    """
    with off:
        return placement.build(config, schedule, mesh).step.trace(state, batch)


def _compiled(*args: Any) -> tuple[Any, results.Row]:
    """The program of `traced(*args)`, and what is known of it before it runs."""
    found = traced(*args)
    began = time.perf_counter()
    program = found.lower().compile()
    seconds = time.perf_counter() - began
    memory.give_back()  # Compiling takes more than it leaves.
    plan = chip.planned(program)
    return program, {
        "compile_s": seconds,
        "products_gflop": product_flops(found.jaxpr.jaxpr) / 1e9,
        "memory_planned_gb": plan.total / 1e9,
        "memory_temporary_gb": plan.temporary / 1e9,
    }


def check_exact(rows: Mapping[str, results.Row], tolerance: float) -> None:
    """Holds the first step of every program against that of the run.

    Raises:
        SideError: if the loss differs by more than `tolerance` of it, or the norm of the gradient
            by ten times as much; names the saving.
    """
    ours = rows[ON]
    for name, row in rows.items():
        for key, far in (("loss", tolerance), ("grad_norm", 10 * tolerance)):
            if not abs(row[key] - ours[key]) <= far * abs(ours[key]):
                raise SideError(
                    f"{name}: {key} of the first step is {ours[key]:.7g} with the saving and "
                    f"{row[key]:.7g} without; it is not exact, and nothing is timed"
                )


def measure(config: Any, steps: int, only: Sequence[str] = ()) -> dict[str, Any]:
    """Compiles, compares and times the step of a configuration without each of its savings.

    Args:
        config: a whole configuration with `task` pretrain or finetune; starts from random weights.
        steps: how many are timed of each program, after two others.
        only: names of savings; none means all that the step has.

    Returns:
        What all share, and "rows": that of the run first, then one for each saving; "times" says
        how many times as much the step takes without it.

    Raises:
        UserError: for a configuration that cannot be trained, or a saving that it does not have.
        SideError: if a saving changes loss or gradient.
    """
    if config.task not in ("pretrain", "finetune"):
        raise UserError(f"task={config.task!r} has no training step; choose pretrain or finetune")
    mesh = whole_step.mesh_of(config.train.fsdp)
    if config.train.batch_size % (mesh.size * config.train.accumulate):
        raise UserError(
            f"train.batch_size={config.train.batch_size} is not a multiple of {mesh.size} devices "
            f"x train.accumulate={config.train.accumulate}; change it with --batch_size"
        )
    savings = plain.chosen(config, only)
    config.init_from = config.init_head_rows = ""
    dtype = np.dtype(tasks.dtype_of(config.model.dtype)).name
    exact = dtype == "float32" and jax.default_backend() == "cpu"  # Elsewhere products are rounded.
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
        plan = tasks.plan(config, num_records=100 * config.train.batch_size)
        run = start.run(config, epath.Path(folder), plan, mesh)
        run.checkpoints.close()
        batch = sharding.put(whole_step.random_batch(config, np.random.default_rng(0)), mesh)
        programs, rows = {}, {}
        for name, off in {ON: nullcontext, **{s.name: s.off for s in savings}}.items():
            args = config, plan.schedule, mesh, run.state, batch, off()
            programs[name], rows[name] = _compiled(*args)
            _, metrics = programs[name](jax.tree.map(jnp.copy, run.state), batch)
            rows[name] |= {key: float(metrics[key]) for key in ("loss", "grad_norm")}
            del metrics
        check_exact(rows, TOLERANCE["float32" if exact else "bfloat16"])
        for name, found in _in_turn(programs, run.state, batch, steps).items():
            rows[name] |= found
    for row in rows.values():
        row["times"] = {key: row[key] / rows[ON][key] for key in _TIMES}
    said = {s.name: {"says": s.says, "plain": s.plain} for s in savings}
    strategy = run.task.strategy
    return {
        "config": config.name,
        "task": config.task,
        "mask": config.mask.name or "none",
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "dtype": dtype,
        "remat": config.model.remat,
        "clips": config.train.batch_size * config.data.repeats,
        "visible": strategy.num_visible if strategy else run.task.grid.n,
        "target": strategy.num_target if strategy else 0,
        "rows": [{"off": name, **said.get(name, {}), **row} for name, row in rows.items()],
        **results.where(),
    }


_TIMES = {"step_median_s": "median", "step_min_s": "least", "step_cpu_s": "CPU"}


def _in_turn(
    programs: Mapping[str, Any], state: Any, batch: Any, steps: int
) -> dict[str, results.Row]:
    """Times of all programs, which take one step each in every round and hand the state on."""
    wall: dict[str, list[float]] = {name: [] for name in programs}
    cpu: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(whole_step.WARMUP + steps):
        for name, program in programs.items():
            began, began_cpu = time.perf_counter(), time.process_time()
            state, metrics = program(state, batch)
            jax.block_until_ready((state, metrics))
            wall[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - began_cpu)
    timed = slice(whole_step.WARMUP, None)
    return {
        name: {
            "step_median_s": statistics.median(wall[name][timed]),
            "step_min_s": min(wall[name][timed]),
            "step_cpu_s": statistics.median(cpu[name][timed]),
            "steps_s": wall[name],
            "steps_cpu_s": cpu[name],
        }
        for name in programs
    }


def table(numbers: Mapping[str, Any]) -> str:
    """One row for each program; what is "x" says how many times the step of a run it is."""
    return results.markdown(
        [
            {
                "off": row["off"],
                "what a run does": row.get("says", ""),
                "instead": row.get("plain", ""),
                **{f"s {word}": f"{row[key]:.4g}" for key, word in _TIMES.items()},
                "GB temporary": f"{row['memory_temporary_gb']:.3f}",
                "GB planned": f"{row['memory_planned_gb']:.3f}",
                "GFLOP of products": f"{row['products_gflop']:.5g}",
                **{f"x {word}": f"{row['times'][key]:.3f}" for key, word in _TIMES.items()},
            }
            for row in numbers["rows"]
        ]
    )


def draw(path: pathlib.Path, numbers: Mapping[str, Any]) -> None:
    """Draws the median step without each saving, in steps of a run."""
    bars, labels = {}, []
    base, *others = numbers["rows"]
    for row in others:
        times = row["times"]["step_median_s"]
        bars[row["off"]] = {"with it": min(times, 1.0), "more without it": max(times - 1.0, 0.0)}
        more = 1e3 * (row["memory_planned_gb"] - base["memory_planned_gb"])
        cpu = row["times"]["step_cpu_s"]
        labels.append(f"{times:.3f}, CPU {cpu:.3f}, {more:+.0f} MB")
    said = (
        f"{numbers['config']}, {numbers['clips']} clips, {numbers['dtype']}, {numbers['device']}, "
        f"{base['step_median_s']:.3g} s a step. Each with one saving off."
    )
    results.stacked(path, bars, labels, "median step without it, in steps of a run", said)


def main(argv: list[str]) -> None:
    """Command line."""
    if len(argv) > 1 or _CONFIG.value is None:
        raise SystemExit("error: usage: python -m benchmarks.savings --config configs/<recipe>.py")
    config = _CONFIG.value
    results.prepare(config)
    if _BATCH.value:
        config.train.batch_size = _BATCH.value
    try:
        numbers = measure(config, _STEPS.value, _ONLY.value)
    except (UserError, SideError) as error:
        raise SystemExit(f"error: {error}") from error
    text = table(numbers)
    print(text)
    if _JSON.value:
        results.write(_JSON.value, numbers, text, lambda path: draw(path, numbers))


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "A recipe.", lock_config=True)
    _BATCH = flags.DEFINE_integer("batch_size", 0, "Videos of a step, all devices; 0: recipe's.")
    _STEPS = flags.DEFINE_integer("steps", 6, "Timed steps of each, after two others.", 1)
    _ONLY = flags.DEFINE_list("only", [], "Names of savings, such as embed,qkv; empty: all.")
    _JSON = flags.DEFINE_string("json", "", "File for the numbers; .md and .png go beside it.")
    app.run(main)
