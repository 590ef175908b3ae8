"""How a run begins: the jitted step, and a state that is restored, converted or new."""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from mvm import config as keys
from mvm import placement, state, tasks
from mvm import runs as workdirs
from mvm.runtime import checkpoint, chip, memory
from mvm.runtime import flops as cost
from mvm.runtime.checkpoint import Checkpoints
from mvm.types import UserError

log = logging.getLogger(__name__)


class Run(NamedTuple):
    """Everything a loop needs, placed on devices."""

    task: tasks.Task
    plan: tasks.Plan
    step: Callable[[state.State, Any], tuple[state.State, Any]]
    state: state.State
    resumed: checkpoint.Place
    """Where the run goes on from; zeros in a fresh one."""
    checkpoints: Checkpoints


def run(
    config: Any,
    workdir: epath.Path,
    plan: tasks.Plan,
    mesh: Any,
    rows: list[int] | None = None,
    records: str = "",
    changes: Mapping[str, str] = {},
) -> Run:
    """Builds the step and a state that is restored, converted or new.

    `rows` are from `head_rows`, `changes` from `check_config`, `records` number and digest of the
    training list.

    Raises:
        UserError: if the run was begun with another list, and `resume_with_changes` is not set, or
            with what changed nothing is left to do.
    """
    placed = placement.build(config, plan.schedule, mesh)
    task, step = placed.task, placed.step
    load = partial(workdirs.initial_params, config.init_from, task.abstract, rows, config.model)
    steps = checkpoint.steps_in(workdir)
    loaded = load() if config.init_from and not steps else {}  # A mistake shows before any work.

    changed = dict(changes)

    def accept(place: checkpoint.Place) -> None:
        if place.records and place.records != records:
            change = f"{place.records} -> {records}"
            if not config[keys.ASK]:
                raise UserError(
                    f"{workdir} was begun with another list (records of data.train {change}); "
                    f"{workdirs.GO_ON}"
                )
            changed["records of data.train"] = change
        total = tasks.going_on(config, plan, place.step, place.next_index).total_steps
        free = {key for key in changed if key in keys.KEYS and keys.KEYS[key].resume == "always"}
        if place.step >= total and changed.keys() - free:
            epochs = place.next_index / (plan.steps_per_epoch * config.train.batch_size)
            raise UserError(
                f"{workdir} is at step {place.step}, {epochs:.4g} epochs of this list, and with "
                f"{_said(changed)} it would end at step {total}; set train.epochs (or train.steps) "
                f"higher"
            )

    checkpoints = Checkpoints(workdir, config.train.keep)
    resumed = checkpoints.restore(placed.state, accept)
    if changed:
        log.warning("GOING ON WITH CHANGES: %s", _said(changed))
    if resumed:
        place, saved = resumed
        log.info("going on from step %d of %s", place.step, workdir)
        plan = tasks.going_on(config, plan, place.step, place.next_index)
        if plan.schedule.shift:
            step = placement.build(config, plan.schedule, mesh).step
        return Run(task, plan, step, saved, place, checkpoints)
    if config.init_from and steps:  # None of them was whole.
        loaded = load()
    where = jax.tree.map(lambda leaf: leaf.sharding, placed.state)
    fresh = jax.jit(placed.create, out_shardings=where)()
    fresh["params"] = state.merge(fresh["params"], loaded)
    if "ema" in fresh:
        fresh["ema"] = jax.tree.map(lambda p: p.copy(), fresh["params"])
    log.info(
        "%s: %.1f M parameters, %d visible and %d target of %d tokens, %d steps of %d clips "
        "(%d videos x %d) on %d devices of %d hosts, learning rate %.3g",
        config.task,
        state.count(task.abstract) / 1e6,
        task.strategy.num_visible if task.strategy else task.grid.n,
        task.strategy.num_target if task.strategy else 0,
        task.grid.n,
        plan.total_steps,
        config.train.batch_size * config.data.repeats,
        config.train.batch_size,
        config.data.repeats,
        *(jax.device_count(), jax.process_count()),
        plan.schedule.peak,
    )
    return Run(task, plan, step, fresh, checkpoint.Place(0, 0, 0), checkpoints)


def _said(changed: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {change}" for key, change in changed.items())


Step = Callable[[state.State, Any], tuple[state.State, Any]]


def compiled(config: Any, run: Run, batch: Any) -> tuple[Step, chip.Work]:
    """The step compiled for one shape of batch on devices, and its work, which is logged."""
    began = time.monotonic()
    step = run.step.lower(run.state, batch).compile()  # type: ignore[attr-defined]
    seconds = time.monotonic() - began
    memory.give_back()  # Compiling takes more than it leaves.
    classes = config.data.num_classes if config.task == "finetune" else 0
    macs = cost.forward_macs(run.task, classes)
    train = cost.train_flops(macs)
    log.info(
        "a clip takes %.4g GFLOP forward as published, %.4g here, %.4g in training; "
        "step compiled in %.1f s, %.2f GB planned on each device",
        2e-9 * sum(macs.values()),
        2e-9 * sum(cost.executed_macs(run.task, classes).values()),
        1e-9 * train,
        seconds,
        chip.planned(step).total / 1e9,
    )
    clips = config.train.batch_size * config.data.repeats
    kind = jax.local_devices()[0].device_kind
    dtype = np.dtype(tasks.dtype_of(config.model.dtype)).name
    tflop = 1e-12 * train * clips / jax.device_count()
    return step, chip.Work(tflop, chip.peak_tflops(kind, dtype))
