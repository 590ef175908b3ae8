"""The one trainer, top to bottom: data, step, restore, loop, test, figures."""

import contextlib
import json
import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from clu import parameter_overview
from etils import epath

from mvm import config as keys
from mvm import data, evaluate, labels, optim, runs, tasks
from mvm.figures import gallery
from mvm.log import Counts, Log
from mvm.runtime import checkpoint, chip, flops, memory, multihost, sharding
from mvm.runtime import metrics as telemetry
from mvm.step import Placed, count, jitted, merge, weights
from mvm.types import State, UserError

log = logging.getLogger(__name__)


def train(config: Any, workdir: epath.PathLike) -> dict[str, float]:
    """Trains to the end, from the newest good checkpoint of `workdir` if there is one.

    Returns:
        The last metrics and, with a test list, the scores.

    Raises:
        UserError, DataError: for a mistake in configuration or data, before any long work.
    """
    workdir, spec = epath.Path(workdir), tasks.spec(config.task)
    d, t, eval_batch = config.data, config.train, config.eval.batch_size
    profiled = _profiled(t.profile)
    resumes = bool(checkpoint.steps_in(workdir))

    # --- Data ---
    # A run that resumes needs nothing of what it started from, which may be gone.
    head = labels.head_of("" if resumes else config.init_from)
    config, classes = labels.reconcile(config, head)
    num_classes = config.data.num_classes if spec.labels else 0
    splits = ["train", *(s for s in ("val", "test") if spec.labels and d[s])]
    found = {s: data.records(data.sources(d, s), num_classes, s, classes) for s in splits}
    rows = labels.rows_to_load(config, head, classes)
    config = runs.with_position_grid(config, workdir)
    changes = runs.check_config(config, workdir)
    reader = data.Reader(d.threads, d.workers, d.cache_gb)
    mix = data.Mix(d.mixup, d.cutmix) if spec.mixes and (d.mixup or d.cutmix) else None

    # --- Step ---
    sharding.check_batch(t.batch_size, t.accumulate, repeats=d.repeats)
    if len(found) > 1:
        sharding.check_batch(eval_batch, name="eval.batch_size")
    plan = planned(config, len(found["train"]))
    mesh = sharding.make_mesh(t.fsdp)
    with jax.set_mesh(mesh):
        placed = place(config, plan.schedule, mesh)
        task = placed.task
        data.check(found["train"], task.clips["train"], t.batch_size, t.accumulate, mix)
        steps = {"checkpoints in the workdir": checkpoint.steps_in(workdir)}
        multihost.agree(keys.shared(config) | data.facts(found) | steps)
        for split, records in found.items():
            data.look_at(records, split, task.clips[split], reader, d.max_bad_fraction)
        predict = evaluate.predictor(task, mesh)

        with contextlib.ExitStack() as during:
            # --- Restore: this run > init_from > random weights ---
            # What a fresh run loads is read first: a mistake leaves nothing behind.
            load = partial(runs.initial_params, config.init_from, task.abstract, rows, config.model)
            loaded = load() if config.init_from and not resumes else {}
            listed = f"{len(found['train'])} ({data.digest(found['train'])[:12]})"
            checkpoints = checkpoint.Checkpoints(workdir, t.keep)
            during.enter_context(contextlib.closing(checkpoints))
            accept = partial(_accept, config, workdir, plan, listed, changes)
            if restored := checkpoints.restore(placed.state, accept):
                begun, state = restored
                log.info("resuming from step %d of %s", begun.step, workdir)
                plan = resumed(config, plan, begun.step, begun.next_index)
                if plan.schedule.shift:
                    placed = place(config, plan.schedule, mesh)
            else:
                begun = checkpoint.Place(0, 0, 0)
                if config.init_from and resumes:  # No checkpoint of this run was whole.
                    loaded = load()
                state = _fresh(placed, loaded)
                _log_run(config, task, plan)
                checkpoint.digests(state)  # Compiled now: the first save keeps no step waiting.
            runs.write_config(config, workdir, classes.names)
            multihost.check_shared(workdir / "config.json")

            # --- Loop ---
            failures = data.Failures()
            batches = data.train_batches(
                found["train"],
                task.clips["train"],
                reader,
                batch_size=t.batch_size,
                seed=config.seed,
                start=begun.next_index,
                failures=failures,
                mix=mix,
            )
            during.enter_context(contextlib.closing(batches))
            stopped = during.enter_context(multihost.stop_requests())
            watchdog = multihost.Watchdog(t.timeout_minutes)
            during.callback(watchdog.close)
            counts = Counts(begun, t.batch_size, t.batch_size * d.repeats, plan.total_steps)
            logged = Log(workdir, counts, failures, d.max_bad_fraction, checkpoints)
            tracing = False
            for step in range(begun.step + 1, plan.total_steps + 1):
                last = step == plan.total_steps
                if step in profiled and not tracing:
                    jax.profiler.start_trace(str(workdir / "profile"))
                    tracing = True
                with (
                    jax.transfer_guard("disallow"),
                    jax.profiler.StepTraceAnnotation("train", step_num=step),
                ):
                    with logged.waiting():
                        batch = next(batches)
                    inputs = sharding.put({k: v for k, v in batch.items() if k != "index"}, mesh)
                    if step == begun.step + 1:
                        advance, work = _compiled(config, placed, state, inputs)
                        logged.start(work)
                    state, metrics = advance(state, inputs)
                    logged.add(metrics)
                if tracing and (last or step + 1 not in profiled):
                    jax.block_until_ready(state)
                    jax.profiler.stop_trace()
                    tracing = False
                stopping = stopped()  # A signal that comes later waits for the next step.
                saving = step % t.save_every == 0 or last or stopping
                val_every = t.val_every or plan.steps_per_epoch
                checking = "val" in found and (step % val_every == 0 or last)
                if saving or checking or step % t.log_every == 0:
                    logged.lap(step, keep=0 if saving or checking else 1)
                if checking:
                    with watchdog.paused():
                        now = partial(predict, *weights(state))
                        scores = evaluate.validate(task, now, found["val"], reader, eval_batch)
                    logged.scores(step, scores)
                if saving:
                    at = checkpoint.Place(step, counts.used(step), logged.skipped, listed)
                    checkpoints.save(at, state, json.loads(config.to_json_best_effort()))
                if stopping:
                    checkpoints.wait()
                    log.warning("stopped, saved at step %d; the same command resumes", step)
                    raise SystemExit(multihost.RESTART)
                watchdog.done()

        # --- Test ---
        final = telemetry.last_values(workdir / "metrics.jsonl")
        params, frozen = weights(state)
        if "test" in found:
            now = partial(predict, params, frozen)
            final |= evaluate.test(
                task, workdir, now, found["test"], reader, eval_batch, classes.names
            )
        whole = sharding.collect({**params, **frozen}, mesh)

    # --- Figures: never fatal ---
    gallery.draw(task, workdir, whole, found["train"], config.seed)
    return final


def _profiled(text: str) -> range:
    """Steps of which `jax.profiler` writes a trace: "10:13" are 10, 11 and 12."""
    if not text:
        return range(0)
    first, _, end = text.partition(":")
    if not (first.isdecimal() and end.isdecimal() and 0 < int(first) < int(end)):
        raise UserError(f"train.profile={text!r}; give two steps such as 10:13, or nothing")
    return range(int(first), int(end))


class Plan(NamedTuple):
    """How long a run is and how its learning rate goes."""

    total_steps: int
    steps_per_epoch: int
    schedule: optim.Schedule


def planned(config: Any, num_records: int) -> Plan:
    """Steps and schedule for a training list of `num_records`.

    An epoch counts whole batches, as in the released codes; what is left over opens the next.

    Raises:
        UserError: if the list is smaller than one batch, or the run has no step.
    """
    t, o, scale = config.train, config.optim, config.train.batch_size / 256
    if num_records < t.batch_size:
        raise UserError(
            f"train.batch_size={t.batch_size} is larger than the {num_records} training records; "
            f"set --config.train.batch_size={num_records} or fewer"
        )
    per_epoch = num_records // t.batch_size
    total = t.steps or round(t.epochs * per_epoch)
    if total < 1:
        raise UserError(f"train.epochs={t.epochs} makes no step; set it higher")
    warmup = min(round(o.warmup_epochs * per_epoch), total)
    schedule = optim.Schedule(o.base_lr * scale, o.min_lr * scale, warmup, total)
    return Plan(total, per_epoch, schedule)


def resumed(config: Any, plan: Plan, step: int, next_index: int) -> Plan:
    """The plan of a run at `step` that has used `next_index` records, in batches of any size.

    Where epochs count (`train.steps` is 0), the records used decide what is left and how far the
    schedule is.
    """
    shift = 0 if config.train.steps else step - next_index // config.train.batch_size
    schedule = plan.schedule._replace(shift=shift)
    return plan._replace(total_steps=plan.total_steps + shift, schedule=schedule)


def place(config: Any, schedule: optim.Schedule, mesh: Any) -> Placed:
    """The jitted step of a configuration, see `step.jitted`.

    Raises:
        UserError: for values that do not fit together, one line each.
    """
    task = tasks.build(config, sharding.gather if mesh.shape["fsdp"] > 1 else None)
    o, t = config.optim, config.train
    optimizer = optim.adamw(
        schedule,
        b2=o.b2,
        weight_decay=o.weight_decay,
        clip_norm=o.clip_norm,
        layer_decay=o.layer_decay,
        depth=task.encoder.depth,
    )
    return jitted(
        task,
        optimizer,
        schedule,
        mesh,
        seed=config.seed,
        accumulate=t.accumulate,
        ema_decay=t.ema_decay,
    )


def _fresh(placed: Placed, loaded: Any) -> State:
    """A state at step 0: random weights, and in their place those that were loaded."""
    state = placed.create()
    for part, values in zip(("params", "frozen"), placed.task.parted(loaded)):
        if values:
            state[part] = merge(state[part], values)
    if "ema" in state:
        state["ema"] = jax.tree.map(lambda p: p.copy(), state["params"])
    return state


def _accept(
    config: Any,
    workdir: epath.Path,
    plan: Plan,
    listed: str,
    changes: Mapping[str, str],
    at: checkpoint.Place,
) -> None:
    """Holds list and length of the run against those of a checkpoint, before it is read."""
    changed = dict(changes)
    if at.records and at.records != listed:
        changed["records of data.train"] = f"{at.records} -> {listed}"
        if not config[keys.ASK]:
            raise UserError(
                f"{workdir} was begun with another list (records of data.train {at.records} -> "
                f"{listed}); {runs.GO_ON}"
            )
    said = ", ".join(f"{key} {change}" for key, change in changed.items())
    total = resumed(config, plan, at.step, at.next_index).total_steps
    free = {key for key in changed if key in keys.KEYS and keys.KEYS[key].resume == "always"}
    if at.step >= total and changed.keys() - free:
        epochs = at.next_index / (plan.steps_per_epoch * config.train.batch_size)
        raise UserError(
            f"{workdir} is at step {at.step}, {epochs:.4g} epochs of this list, and with {said} it "
            f"would end at step {total}; set train.epochs (or train.steps) higher"
        )
    if changed:
        log.warning("RESUMING WITH CHANGES: %s", said)


def _compiled(config: Any, placed: Placed, state: State, batch: Any) -> Any:
    """The step compiled for one shape of batch on devices, and its work, which is logged."""
    began, task = time.monotonic(), placed.task
    step = placed.step.lower(state, batch).compile()
    seconds = time.monotonic() - began
    memory.give_back()  # Compiling takes more than it leaves.
    train = flops.train_flops(task.macs(), task.untrained)
    log.info(
        "a clip takes %.4g GFLOP forward as published, %.4g here, %.4g in training; "
        "step compiled in %.1f s, %.2f GB planned on each device",
        2e-9 * sum(task.macs().values()),
        2e-9 * sum(task.macs(executed=True).values()),
        1e-9 * train,
        seconds,
        chip.planned(step).total / 1e9,
    )
    clips = config.train.batch_size * config.data.repeats
    kind = jax.local_devices()[0].device_kind
    tflop = 1e-12 * train * clips / jax.device_count()
    return step, chip.Work(tflop, chip.peak_tflops(kind, np.dtype(task.run.dtype).name))


def _log_run(config: Any, task: tasks.Task, plan: Plan) -> None:
    table = parameter_overview.get_parameter_overview(task.abstract, include_stats=False)
    log.info("parameters\n%s", table)
    log.info(
        "%s: %.1f M parameters, %d visible and %d target of %d tokens, %d steps of %d clips "
        "(%d videos x %d) on %d devices of %d hosts, learning rate %.3g",
        config.task,
        count(task.abstract) / 1e6,
        *(task.num_visible, task.num_target, task.grid.n),
        plan.total_steps,
        config.train.batch_size * config.data.repeats,
        *(config.train.batch_size, config.data.repeats),
        *(jax.device_count(), jax.process_count()),
        plan.schedule.peak,
    )
