"""The one trainer, top to bottom: data, step, restore, loop, test, figures."""

import contextlib
import json
import logging
import time
from functools import partial
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from etils import epath

from mvm import config as schema
from mvm import data, evaluate, health, initial, optim, runs, tasks
from mvm.figures import gallery
from mvm.log import Log
from mvm.runtime import checkpoint, chip, memory, metrics, multihost, sharding, steps
from mvm.step import Program, count, jitted, merge, weights
from mvm.types import State, UserError

log = logging.getLogger(__name__)


def train(config: Any, workdir: epath.PathLike) -> dict[str, float]:
    """Trains from the newest good checkpoint to the end; returns the last metrics and scores."""
    workdir, spec = epath.Path(workdir), tasks.spec(config.task)
    d, t, eval_batch = config.data, config.train, config.eval.batch_size
    profiled = _profiled(t.profile)
    resumes = bool(checkpoint.steps_in(workdir))

    # --- Data ---
    # A run that resumes does not read init_from: its files may be gone.
    starts = config.init_from and not resumes
    head = runs.Source(config.init_from, "init_from").head() if starts else runs.Head()
    splits = ["train", *(s for s in ("val", "test") if spec.labels and d[s])]
    if t.probe_every and (spec.labels or not spec.scores):
        raise UserError(
            f"train.probe_every={t.probe_every} is for pre-training; task={config.task} is scored "
            f"on data.val every train.val_every steps"
        )
    splits += ["val"] * bool(t.probe_every)
    config, found, classes = initial.records(config, splits, head)
    records_id = f"{len(found['train'])} ({data.digest(found['train'])[:12]})"
    # Which rows of a loaded head become those of our classes, by name.
    head_rows = initial.rows_to_load(config, head, classes)
    config, changes = initial.resolved(config, workdir)
    reader = data.Reader(d.threads, d.workers, d.cache_gb)
    mix = (d.mixup, d.cutmix) if spec.mixes and (d.mixup or d.cutmix) else None

    # --- Step ---
    sharding.check_batch(t.batch_size, t.accumulate, repeats=d.repeats)
    if len(found) > 1:
        sharding.check_batch(eval_batch, name="eval.batch_size")
    schedule = planned(config, len(found["train"]))
    total_steps, clips = schedule.total_steps, t.batch_size * d.repeats
    mesh = sharding.make_mesh(t.fsdp)
    with jax.set_mesh(mesh):
        program = build_step(config, schedule, mesh)
        task = program.task
        data.check(task.clips["train"], t.batch_size, t.accumulate, mix)
        there = {"checkpoints in the workdir": checkpoint.steps_in(workdir)}
        multihost.agree(schema.shared(config) | data.facts(found) | there)
        for split, records in found.items():
            data.probe(records, split, task.clips[split], reader, d.max_bad_fraction)
        predictor = evaluate.predictor(task, mesh)

        with contextlib.ExitStack() as during:
            # --- Restore: this run > init_from > random weights ---
            # What a fresh run loads is read first: a mistake leaves nothing behind.
            load = partial(initial.of_run, config, task.abstract, head_rows, classes)
            loaded = {} if resumes else load()
            checkpoints = checkpoint.Checkpoints(workdir, t.keep)
            during.enter_context(contextlib.closing(checkpoints))
            if restored := checkpoints.restore(program.state):
                start, state = restored
                _accept(config, workdir, start.records, records_id, changes)
                done = start.step == total_steps and not changes.keys() <= schema.FREE
                if done or start.step > total_steps:  # No step is left to change.
                    raise UserError(
                        f"{workdir} is at step {start.step} and would end at step "
                        f"{total_steps}; set train.epochs (or train.steps) higher"
                    )
                log.info("resuming from step %d of %s", start.step, workdir)
            else:
                start = checkpoint.Progress(step=0, next_index=0, skipped=0)
                if resumes:  # No checkpoint of this run was whole.
                    loaded = load()
                state = _fresh(program, loaded)
                _describe(config, workdir, task, schedule)
                checkpoint.digests(state)  # Compiled now, if at all: the first save does not stall.
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
                start=start.next_index,
                failures=failures,
                mix=mix,
            )
            during.enter_context(contextlib.closing(batches))
            stopped = during.enter_context(multihost.stop_requests())
            during.callback(multihost.watch, 0)
            shares = {s: data.shares(found[s], config.data.num_classes) for s in splits}
            constant = task.constant(shares, mix is not None)
            logged = Log(
                checkpoints,
                start,
                watch=health.Watch(schedule, constant, clips, len(found.get("val", ()))),
                failures=failures,
                max_bad_fraction=d.max_bad_fraction,
                project=t.wandb,
            )
            traced = during.enter_context(contextlib.ExitStack())
            val_every = t.probe_every or t.val_every or len(found["train"]) // t.batch_size
            step = start.step
            best = start.best if start.best and start.best.by == t.keep_best else None
            ended = best is not None and 0 < t.patience <= best.since
            while step < total_steps and not ended:
                step += 1
                if step in profiled and step in (profiled.start, start.step + 1):
                    traced.enter_context(jax.profiler.trace(str(workdir / "profile")))
                with (
                    jax.transfer_guard("disallow"),
                    jax.profiler.StepTraceAnnotation("train", step_num=step),
                ):
                    with logged.waiting():
                        batch = next(batches)
                    batch.pop("index")  # Places in the list, which only evaluation needs.
                    inputs = sharding.put(batch, mesh)
                    if step == start.step + 1:
                        advance = _compiled(program, state, inputs, clips, logged)
                    state, step_metrics = advance(state, inputs)
                    logged.add(step_metrics)
                if step == profiled.stop - 1:
                    jax.block_until_ready(state)
                    traced.close()
                used = start.next_index + (step - start.step) * t.batch_size
                stopping = stopped()  # A signal that comes later waits for the next step.
                last = step == total_steps
                saving = step % t.save_every == 0 or last or stopping
                validating = "val" in found and (step % val_every == 0 or last)
                if saving or validating or step % t.log_every == 0:
                    logged.row(step, used)
                if validating:
                    multihost.watch(0)  # Its time does not count as that of a step.
                    predict = partial(predictor, *weights(state))
                    scores = evaluate.validate(task, predict, found["val"], reader, eval_batch)
                    logged.scores(step, scores)
                if validating and t.keep_best:
                    # Process 0 decides for all: CPUs of two kinds may differ in the last bit.
                    value = float(multihost.exchange(repr(scores[t.keep_best]))[0])
                    best = steps.better(best, t.keep_best, step, value)
                    ended = 0 < t.patience <= best.since
                    last = last or ended
                    saving = saving or last or best.step == step
                if saving:
                    at = checkpoint.Progress(step, used, logged.skipped, records_id, best)
                    checkpoints.save(at, state, json.loads(config.to_json_best_effort()))
                if stopping or (last and stopped()):
                    checkpoints.wait()
                    log.warning("stopped, saved at step %d; the same command resumes", step)
                    raise SystemExit(multihost.RESTART)
                multihost.watch(t.timeout_minutes)
            at = checkpoint.Progress(step, 0, 0, best=best)  # What is scored below.
            if best and ended and step < total_steps:
                log.info(
                    "ended at step %d: no check since step %d was better by %s; a higher "
                    "train.patience goes on",
                    *(step, best.step, best.by),
                )
            if best and best.step != step:
                checkpoints.wait()
                like = {k: v for k, v in program.state.items() if k in ("params", "ema", "frozen")}
                at, state = checkpoints.restore(like, first=best.step) or (at, state)

        # --- Test ---
        # Read from the file: a finished run that is repeated makes no step.
        final = metrics.last_values(workdir / "metrics.jsonl")
        params, frozen = weights(state)
        if "test" in found:
            predict = partial(predictor, params, frozen)
            final |= evaluate.test(
                task, workdir, predict, found["test"], reader, eval_batch, classes.names, at
            )
        whole = sharding.collect(tasks.joined(params, frozen), mesh)

    # --- Warnings, figures: never fatal ---
    logged.end()
    gallery.draw(task, workdir, whole, found["train"], config.seed, config.report.clips)
    return final


def _profiled(text: str) -> range:
    """Steps of which `jax.profiler` writes a trace: "10:13" are 10, 11 and 12."""
    first, _, end = (text or "0:0").partition(":")
    if not (first.isdecimal() and end.isdecimal() and (not text or 0 < int(first) < int(end))):
        raise UserError(f"train.profile={text!r}; give two steps such as 10:13, or nothing")
    return range(int(first), int(end))


def planned(config: Any, num_records: int) -> optim.Schedule:
    """Steps and learning rates for a training list of `num_records`.

    An epoch counts whole batches, as in the released codes; what is left over opens the next.
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
    warmup = min(o.warmup_steps or round(o.warmup_epochs * per_epoch), total)
    return optim.Schedule(o.base_lr * scale, o.min_lr * scale, warmup, total)


def build_step(config: Any, schedule: optim.Schedule, mesh: Any) -> Program:
    """The jitted step of a configuration, see `step.jitted`."""
    # The model gathers split weights layer by layer; the step gathers the rest.
    task = tasks.build(config, sharding.gather if mesh.shape["fsdp"] > 1 else None)
    o, t = config.optim, config.train
    optimizer = optim.adamw(
        schedule,
        b2=o.b2,
        weight_decay=o.weight_decay,
        clip_norm=o.clip_norm,
        layer_decay=o.layer_decay,
        depth=task.depth,
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


def _fresh(program: Program, loaded: Any) -> State:
    """A state at step 0: random weights, and in their place those that were loaded."""
    state = program.init()
    for part, values in zip(("params", "frozen"), program.task.parted(loaded)):
        if values:
            state[part] = merge(state[part], values)
    if "ema" in state:
        state["ema"] = jax.tree.map(lambda p: p.copy(), state["params"])
    return state


def _accept(
    config: Any, workdir: epath.Path, was: str, records_id: str, changes: dict[str, str]
) -> None:
    """Compares the list with that of a checkpoint, and tells what changed."""
    if was not in ("", records_id):
        changes["records of data.train"] = f"{was} -> {records_id}"
        if not config[schema.ASK]:
            raise UserError(
                f"{workdir} was begun with another list (records of data.train {was} -> "
                f"{records_id}); {runs.GO_ON}"
            )
    if changes:
        said = ", ".join(f"{key} {change}" for key, change in changes.items())
        log.warning("RESUMING WITH CHANGES: %s", said)


def _compiled(program: Program, state: State, batch: Any, clips: int, logged: Log) -> Any:
    """The step compiled for one shape of batch on devices; its work is logged, and time starts."""
    began, task = time.monotonic(), program.task
    step = program.step.lower(state, batch).compile()
    memory.give_back()  # Compiling takes more than it leaves.
    work, macs = task.work(), [sum(task.macs(executed).values()) for executed in (False, True)]
    if work:
        log.info(
            "a clip takes %.4g GFLOP forward as in the paper, %.4g here, %.4g in training",
            *(2e-9 * macs[0], 2e-9 * macs[1], 1e-9 * work),
        )
    seconds, planned_gb = time.monotonic() - began, chip.planned(step)[1] / 1e9
    log.info("step compiled in %.1f s, %.2f GB planned on each device", seconds, planned_gb)
    peak = chip.peak_tflops(jax.local_devices()[0].device_kind, np.dtype(task.run.dtype).name)
    logged.start_clock(1e-12 * work * clips / jax.device_count(), peak)
    return step


def _describe(config: Any, workdir: epath.Path, task: tasks.Task, schedule: optim.Schedule) -> None:
    """One line on the run; all its parameters go to parameters.txt."""
    if jax.process_index() == 0:
        table = parameter_overview.get_parameter_overview(task.abstract, include_stats=False)
        metrics.replace_text(workdir / "parameters.txt", table + "\n")
    log.info(
        "%s: %.1f M parameters, %s, %d steps of %d clips (%d videos x %d) on %d devices of "
        "%d hosts, learning rate %.3g",
        config.task,
        count(task.abstract) / 1e6,
        task.summary(),
        schedule.total_steps,
        config.train.batch_size * config.data.repeats,
        *(config.train.batch_size, config.data.repeats),
        *(jax.device_count(), jax.process_count()),
        schedule.peak,
    )
