"""The imperative shell of training: build, restore, loop, log, save."""

import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath

from mvm import config as keys
from mvm import data, evaluate, labels, start, state, tasks
from mvm import runs as workdirs
from mvm.figures import gallery
from mvm.runtime import checkpoint, chip, hosts, peers, sharding
from mvm.runtime import metrics as telemetry
from mvm.runtime.watchdog import Watchdog
from mvm.types import Params, UserError

log = logging.getLogger(__name__)

_IN_FLIGHT = 2
"""Steps handed to the device ahead of their results: keeps it busy and its memory bounded."""


def train(config: Any, workdir: epath.PathLike) -> dict[str, float]:
    """Trains to the end, going on from the newest good checkpoint of `workdir`.

    Returns:
        The last metrics and, after fine-tuning with a test list, its scores.

    Raises:
        UserError, DataError: for a mistake in configuration or data, before any long work.
    """
    workdir = epath.Path(workdir)
    config = data.ensure(config, workdir / "data")
    # A run that resumes needs nothing of what it started from, which may be gone.
    model = labels.of_model("" if checkpoint.steps_in(workdir) else config.init_from)
    config, classes = labels.agree(config, model)
    found = data.records(config, "train", classes)
    held_out = {s: data.records(config, s, classes) for s in ("val", "test") if _scores(config, s)}
    rows = labels.head_rows(config, model, classes)
    data.check(config, found)
    config = workdirs.with_training_grid(config, workdir)
    changes = workdirs.check_config(config, workdir)
    t = config.train
    sharding.check_batch(t.batch_size, t.accumulate, repeats=config.data.repeats)
    if held_out:
        sharding.check_batch(config.eval.batch_size, name="eval.batch_size")
    plan = tasks.plan(config, len(found))
    hosts.check_same(config, {"train": found, **held_out}, checkpoint.steps_in(workdir))
    for split, videos in {"train": found, **held_out}.items():
        data.look_at(config, videos, split)
    mesh = sharding.make_mesh(config.train.fsdp)
    with jax.set_mesh(mesh):
        records = f"{len(found)} ({data.digest(found)[:12]})"
        run = start.run(config, workdir, plan, mesh, rows, records, changes)
        if not run.resumed.step:  # Compiled now, not while the first save keeps a step waiting.
            checkpoint.digests(run.state)
        workdirs.write_config(config, workdir, classes.names)
        hosts.check_shared(workdir / "config.json")
        dtype = tasks.dtype_of(config.model.dtype)
        predict = evaluate.predictor(run.task, mesh, config.eval.average, dtype)
        put = partial(sharding.put, mesh=mesh)
        with contextlib.closing(run.checkpoints):
            final = _loop(config, workdir, run, records, found, held_out.get("val"), predict, put)
        last = telemetry.last_values(workdir / "metrics.jsonl")
        if held_out.get("test"):
            trained = _weights(final)
            last |= evaluate.test(
                config, workdir, predict, trained, held_out["test"], classes.names
            )
        params = sharding.collect(_weights(final), mesh)
    gallery.draw(config, workdir, params, found)
    return last


def _scores(config: Any, split: str) -> bool:
    return config.task == "finetune" and bool(config.data[split])


def _weights(trained: state.State) -> Params:
    return trained["ema"] if "ema" in trained else trained["params"]


def _loop(
    config: Any,
    workdir: epath.Path,
    run: start.Run,
    records: str,
    found: Sequence[data.Record],
    val: Sequence[data.Record] | None,
    predict: evaluate.Predict,
    put: Callable[[data.Batch], Any],
) -> state.State:
    t, total, current = config.train, run.plan.total_steps, run.state
    first = run.resumed.step
    val_every = t.val_every or run.plan.steps_per_epoch
    failures = data.Failures()
    source = data.train_batches(config, found, run.resumed.next_index, failures)
    writes, device = jax.process_index() == 0, jax.local_devices()[0]
    metrics = telemetry.Metrics(workdir, first, writes)
    clock = telemetry.Clock(first)
    pending: deque[dict[str, Any]] = deque()  # metrics of steps whose row is not written yet
    due: deque[telemetry.Lap] = deque()  # whose rows are not written yet

    skipped = run.resumed.skipped

    def consumed(step: int) -> int:
        """Records; earlier steps may have had batches of another size."""
        return run.resumed.next_index + (step - first) * t.batch_size

    def flush(keep: int) -> None:
        """Writes the rows that are due, except the newest `keep`, whose steps may still run."""
        nonlocal skipped
        while len(due) > keep:
            lap = due.popleft()
            rows = jax.device_get([pending.popleft() for _ in range(lap.num_steps)])
            skipped += sum(int(row.pop("skipped")) for row in rows)
            values = _mean(rows, lap.step, run.checkpoints) | {"skipped": skipped}
            metrics.write(lap.step, values)
            clips = t.batch_size * config.data.repeats
            rates = telemetry.speed(lap, clips, work, chip.peak_bytes(device))
            metrics.write(lap.step, rates, "speed.jsonl")
            log.info(telemetry.progress(lap, total, values, rates))
            _check_skipped(config, failures, skipped, consumed(lap.step))

    with (
        contextlib.closing(source) as batches,
        hosts.stop_requests() as stopped,
        Watchdog(t.timeout_minutes) as watchdog,
    ):
        for step in range(first + 1, total + 1):
            began = time.monotonic()
            batch = next(batches)
            waited = time.monotonic() - began
            if not pending or pending[-1]["loss"].is_ready():
                clock.waited += waited  # The device had nothing to do meanwhile.
            inputs = put({k: v for k, v in batch.items() if k != "index"})
            if step == first + 1:
                advance, work = start.compiled(config, run, inputs)
                clock.restart()
            current, out = advance(current, inputs)
            pending.append(out)
            if len(pending) > _IN_FLIGHT:
                pending[-1 - _IN_FLIGHT]["loss"].block_until_ready()
            stopping = stopped()  # A signal that comes later waits for the next step.
            saving = step % t.save_every == 0 or step == total or stopping
            checking = bool(val) and (step % val_every == 0 or step == total)
            if saving or checking or step % t.log_every == 0:
                due.append(clock.lap(step))
                flush(keep=0 if saving or checking else 1)
            if val and checking:
                with watchdog.paused():
                    scores = evaluate.validate(config, predict, _weights(current), val)
                metrics.write(step, scores)
                log.info("step %d  %s", step, "  ".join(f"{k} {v:.2f}" for k, v in scores.items()))
            if saving:
                place = checkpoint.Place(step, consumed(step), skipped, records)
                run.checkpoints.save(place, current, json.loads(config.to_json_best_effort()))
            if stopping:
                run.checkpoints.wait()
                log.warning("stopped and saved at step %d; repeat the command to go on", step)
                raise SystemExit(peers.RESTART)
            watchdog.done(step)
    return current


def _mean(
    rows: list[dict[str, Any]], step: int, checkpoints: checkpoint.Checkpoints
) -> dict[str, float]:
    """Means over an interval; of the learning rate, its last value.

    Raises:
        UserError: if a loss or gradient is not finite; names its step and what is saved.
    """
    for offset, row in enumerate(rows, step - len(rows) + 1):
        if not (np.isfinite(row["loss"]) and np.isfinite(row["grad_norm"])):
            checkpoints.wait()
            kept = checkpoint.steps_in(checkpoints.workdir)
            raise UserError(
                f"step {offset}: loss {row['loss']}, gradient norm {row['grad_norm']}; the last "
                f"good checkpoint is {kept[0] if kept else 'none'}. Repeat with a lower "
                f"--config.optim.base_lr or with --config.optim.clip_norm=1, and "
                f"--config.{keys.ASK}=true, to go on from there; if that fails again at once, "
                f"delete that checkpoint, too"
            )
    mean = {k: float(np.mean([row[k] for row in rows], dtype=np.float64)) for k in rows[0]}
    return mean | {"learning_rate": float(rows[-1]["learning_rate"])}


def _check_skipped(config: Any, failures: data.Failures, skipped: int, used: int) -> None:
    allowed = config.data.max_bad_fraction
    if skipped > allowed * (used + skipped) and skipped > 8:
        name, reason = failures.items[0] if failures.items else ("see the log", "")
        raise UserError(
            f"{skipped} of {used + skipped} records could not be read (first: {name}: {reason}); "
            f"mend the list or raise data.max_bad_fraction={allowed}"
        )
