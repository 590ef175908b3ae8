"""How a run begins: the jitted step, and a state that is restored, converted or new."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from mvm import config as keys
from mvm import labels, placement, state, tasks
from mvm import runs as workdirs
from mvm.runtime import checkpoint, chip, memory
from mvm.runtime import flops as cost
from mvm.runtime import metrics as telemetry
from mvm.runtime.checkpoint import Checkpoints
from mvm.types import Params, UserError
from mvm.weights import convert, hub
from mvm.weights import files as weight_files

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
    load = partial(initial_params, config.init_from, task.abstract, rows, config.model)
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


def head_rows(config: Any) -> list[int] | None:
    """The row of the loaded head for each of our classes, from `init_head_rows`; None without.

    No rows are a new head.

    Raises:
        UserError: if the file is missing or is not a list of one number per class.
    """
    path = config.init_head_rows
    if not path or config.task == "pretrain":
        return None
    if path == "new":
        return []
    try:
        rows = json.loads(epath.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"init_head_rows={path} cannot be read as JSON: {error}") from error
    classes = config.data.num_classes
    if not isinstance(rows, list) or len(rows) != classes or {type(r) for r in rows} != {int}:
        raise UserError(
            f"init_head_rows={path} must be a list of data.num_classes={classes} row numbers; "
            f"or `new`, to start with a new head"
        )
    return rows


def initial_params(
    path: str,
    like: Params,
    rows: list[int] | None = None,
    model: Any = None,
    whole: bool = False,
) -> Params:
    """Weights from a run directory, a step directory or an official PyTorch file.

    Args:
        rows: which rows of the loaded head to take, one per class of `like`; None takes the head
            as it is, if it fits, and an empty list leaves it out.
        model: `config.model`, to be held against what a Hugging Face folder says of its own.
        whole: whether nothing may be missing.

    Raises:
        UserError: if there is nothing at `path`, or it is of another model.
    """
    where = epath.Path(hub.local(path))
    if not where.exists():
        raise UserError(
            f"init_from={path} does not exist; train that run first, name another run, step or "
            f"PyTorch file, or start from random weights with --config.init_from="
        )
    if checkpoint.is_run(where):
        classes = labels.of_model(path).num_classes
        loaded, report = checkpoint.load_params(where, _with_head(like, classes if rows else 0))
        if rows:
            if "head" not in loaded:
                raise UserError(f"init_head_rows: {path} has no head; set it to `new`")
            _check_rows(rows, classes, path)
            head = {
                "kernel": loaded["head"]["kernel"][:, rows],
                "bias": loaded["head"]["bias"][rows],
            }
            loaded = {**loaded, "head": head}
    else:
        weights, known, _ = weight_files.read(where)
        if "decoder" not in like:
            known.pop("model.decoder_heads", None)
        if known and model is not None:
            _check_known(known, model, path)
        classes = len(weights.get("head.bias", ()))
        if rows:
            _check_rows(rows, classes, path)
            weights = {k: v[rows] if k.startswith("head.") else v for k, v in weights.items()}
        loaded, matched = convert.to_params(weights, like)
        report = f"{path}: {matched}"
    if rows == []:
        loaded.pop("head", None)
    if whole and (lacking := missing(like, loaded)):
        wanted = like["head"]["bias"].shape[0]
        raise UserError(
            f"init_from={path} has {classes} classes, {wanted} wanted (data.num_classes)"
            if classes not in (0, wanted)
            else f"init_from={path} lacks {', '.join(lacking)}; evaluation needs a fine-tuned model"
        )
    log.info("init_from %s%s", report, f"; {len(rows)} rows of its head" if rows else "")
    return loaded


def _check_known(known: dict[str, Any], model: Any, path: str) -> None:
    """Holds what shapes do not show against the configuration.

    Raises:
        UserError: if the heads differ, which would make it another function.
    """
    encoder, decoder = tasks.sizes(model)
    ours = {"model.heads": encoder.heads, "model.decoder_heads": decoder.heads}
    ours |= {f"model.{key}": model[key] for key in ("epsilon", "head_epsilon", "targets")}
    for key, value in known.items():
        if key in ("model.heads", "model.decoder_heads") and value != ours[key]:
            raise UserError(
                f"init_from={path} has {value} heads ({key}), this configuration {ours[key]}; set "
                f"--config.{key}={value}, or mend its config.json"
            )
        if ours.get(key, value) != value:
            log.warning(
                "init_from %s was made with %s=%s, which is %s here; set --config.%s=%s to compute "
                "as it does",
                *(path, key, value, ours[key], key, value),
            )


def _with_head(like: Params, classes: int) -> Params:
    """The same tree with a head of as many classes; 0 leaves it alone."""
    if not classes:
        return like
    resize = lambda leaf: jax.ShapeDtypeStruct((*leaf.shape[:-1], classes), leaf.dtype)  # noqa: E731
    return {**like, "head": jax.tree.map(resize, like["head"])}


def _check_rows(rows: list[int], classes: int, path: str) -> None:
    if bad := [row for row in rows if not 0 <= row < classes]:
        raise UserError(
            f"init_head_rows names row {bad[0]}, but the head of {path} has {classes}; set it to "
            f"`new` to start with a new head"
        )


def missing(wanted: Params, loaded: Params) -> list[str]:
    """Paths of the leaves of `wanted` that a nested subset of it lacks."""
    return sorted(set(checkpoint.leaves(wanted)) - set(checkpoint.leaves(loaded)))


def to_json(config: Any) -> str:
    """The configuration as text, keys in order."""
    return config.to_json_best_effort(indent=2, sort_keys=True) + "\n"


def write_config(config: Any, workdir: epath.Path, class_names: Sequence[str] = ()) -> None:
    """Writes `config.json` and, where classes have names and not just numbers, `classes.txt`."""
    if jax.process_index() == 0:
        telemetry.replace_text(workdir / "config.json", to_json(config))
        if any(name != str(label) for label, name in enumerate(class_names)):
            text = "".join(f"{name}\n" for name in class_names)
            telemetry.replace_text(workdir / "classes.txt", text)
