"""All views of every record once -> `task.score` -> results.json and CSV files."""

import contextlib
import csv
import io
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import Array

from mvm import config as keys
from mvm import data, labels, runs, tasks
from mvm.figures import gallery
from mvm.runtime import metrics as telemetry
from mvm.runtime import multihost, sharding
from mvm.types import Params, UserError

log = logging.getLogger(__name__)

Predict = Callable[[Params, Params, data.Batch], dict[str, Array]]
"""`(params, frozen, this process's batch) -> rows of the global batch`, see `Task.predict`."""

Rows = dict[str, np.ndarray]
"""One row per record that could be read, ordered by its place in the list: "position" `[R]`,
"label" `[R]`, "id" `[R, 256]` (UTF-8, zeros behind), and what the task predicts."""

_INPUTS = ("position", "label", "id")
_PERIOD = 10.0
"""Seconds between two lines of progress."""


def predictor(task: tasks.Task, mesh: Any) -> Predict:
    """Jits `task.predict`; make it once per run."""
    jitted = program(task, mesh)

    def predict(params: Params, frozen: Params, batch: data.Batch) -> dict[str, Array]:
        with jax.set_mesh(mesh):
            return jitted(params, frozen, sharding.put({"video": batch["video"]}, mesh))

    return predict


def program(task: tasks.Task, mesh: Any) -> Any:
    """`task.predict` jitted, to be traced under the mesh.

    Split weights outside the stacks are all-gathered once for all views.
    """
    gather = partial(sharding.gather_rest, dtype=task.run.dtype)

    def predict(params: Params, frozen: Params, batch: Any) -> Any:
        return task.predict(gather(params), gather(frozen), batch)

    return jax.jit(predict, out_shardings=sharding.of_batch(mesh))


def run(
    predict: Callable[[data.Batch], dict[str, Array]],
    batches: Iterable[data.Batch],
    progress: Callable[[int], None] = lambda done: None,
) -> Rows:
    """Predicts all batches of this process and collects the rows of all processes.

    There are equally many batches on every process; `progress` is told how many records this one
    has done.
    """
    parts: dict[str, list[np.ndarray]] = {}
    done = 0
    for batch in batches:
        valid = batch["valid"]
        rows = {"position": np.where(valid, batch["index"], -1)}
        rows |= {"label": batch["label"], "id": batch["id"]}
        rows |= {k: _local(v)[: len(valid)] for k, v in predict(batch).items()}
        for name, row in rows.items():
            parts.setdefault(name, []).append(row)
        done += int(valid.sum())
        progress(done)
    every = {name: np.concatenate(part) for name, part in parts.items()}
    if jax.process_count() > 1:
        every = multihost_utils.process_allgather(every)
        every = {k: v.reshape(-1, *v.shape[2:]) for k, v in every.items()}
    good = np.flatnonzero(every["position"] >= 0)
    order = good[np.argsort(every["position"][good])]
    return {name: row[order] for name, row in every.items()}


def _local(rows: Array) -> np.ndarray:
    """This process's rows of a global array."""
    shards = sorted(rows.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate(jax.device_get([shard.data for shard in shards]))


def score(
    task: tasks.Task, rows: Rows, num_records: int, classes: Sequence[str] = ()
) -> tasks.Scores:
    """Scores of the task, "num_videos" scored and "num_unreadable": listed, not replaced."""
    names = [i.tobytes().rstrip(b"\0").decode(errors="ignore") for i in rows["id"]]
    predictions = {k: v for k, v in rows.items() if k not in _INPUTS}
    values, tables = task.score(predictions, tasks.Truths(rows["label"], names, classes))
    count = len(rows["position"])
    return tasks.Scores(
        values | {"num_videos": count, "num_unreadable": num_records - count}, tables
    )


def validate(
    task: tasks.Task,
    predict: Callable[[data.Batch], dict[str, Array]],
    found: Sequence[data.Record],
    reader: data.Reader,
    batch_size: int,
) -> dict[str, float]:
    """Scores of the centre clip of every record of `data.val`.

    In threads: the worker processes of training are there still.
    """
    reader, failures = reader._replace(workers=0, cache_gb=0.0), data.Failures()
    spec = task.clips["val"]
    batches = data.eval_batches(found, spec, reader, batch_size=batch_size, failures=failures)
    with contextlib.closing(batches):
        values = score(task, run(predict, batches), len(found)).values
    return {f"val_{k}": v for k, v in values.items() if not k.startswith("num_")}


def test(
    task: tasks.Task,
    workdir: epath.Path,
    predict: Callable[[data.Batch], dict[str, Array]],
    found: Sequence[data.Record],
    reader: data.Reader,
    batch_size: int,
    classes: Sequence[str],
) -> dict[str, float]:
    """Scores all views of the test list; writes results.json and the task's tables."""
    failures, began = data.Failures(), time.monotonic()
    mine, due = -(-len(found) // jax.process_count()), began + _PERIOD
    spec = task.clips["test"]
    views = f"{spec.num_segments}x{spec.num_crops}"

    def progress(done: int) -> None:
        nonlocal due
        if done and (now := time.monotonic()) >= due:
            due = now + _PERIOD
            left = telemetry.duration((now - began) / done * (mine - done))
            log.info("test: %d of %d videos, %s views  ETA %s", done, mine, views, left)

    batches = data.eval_batches(found, spec, reader, batch_size=batch_size, failures=failures)
    with contextlib.closing(batches):
        rows = run(predict, batches, progress)
    scores = score(task, rows, len(found), classes)
    if jax.process_index() == 0:
        lost = sorted(set(range(len(found))) - set(rows["position"].tolist()))
        reasons = dict(failures.items)
        unreadable = [
            {"id": i, "reason": reasons.get(i, "see the log of its process")}
            for i in (found[position].id for position in lost)
        ]
        write(workdir, scores, {"views": views, "unreadable": unreadable})
    said = "  ".join(f"{name} {value:.4g}" for name, value in scores.values.items())
    log.info("test: %s, %s views", said, views)
    return {f"test_{k}": v for k, v in scores.values.items()}


def write(workdir: epath.PathLike, scores: tasks.Scores, more: Mapping[str, Any]) -> None:
    """Writes results.json, the scores and `more`, and each table as a CSV file."""
    workdir = epath.Path(workdir)
    results = json.dumps({**scores.values, **more}, indent=2) + "\n"
    telemetry.replace_text(workdir / "results.json", results)
    for name, rows in scores.tables.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        telemetry.replace_text(workdir / f"{name}.csv", text.getvalue())


def evaluate(config: Any, workdir: epath.PathLike) -> dict[str, float]:
    """Scores `init_from` on `data.test` without training; results and figures go to `workdir`.

    Raises:
        UserError, DataError: for a mistake in configuration or data, before any long work.
    """
    workdir, d = epath.Path(workdir), config.data
    if not tasks.spec(config.task).labels:
        raise UserError(f"task={config.task} has nothing to score; evaluate another task")
    if not config.init_from:
        raise UserError("evaluation needs weights: --config.init_from=a run, a step or a file")
    # --- Data ---
    config, classes = labels.reconcile(config, labels.head_of(config.init_from))
    num_classes = config.data.num_classes
    found = data.records(data.sources(d, "test"), num_classes, "test", classes)
    config = runs.with_position_grid(config, workdir)
    runs.check_config(config, workdir)
    batch_size, reader = config.eval.batch_size, data.Reader(d.threads, d.workers, d.cache_gb)
    sharding.check_batch(batch_size, name="eval.batch_size")
    multihost.agree(keys.shared(config) | data.facts({"test": found}))
    mesh = sharding.make_mesh(config.train.fsdp)
    with jax.set_mesh(mesh):
        # --- Weights ---
        task = tasks.build(config, sharding.gather if mesh.shape["fsdp"] > 1 else None)
        data.look_at(found, "test", task.clips["test"], reader, d.max_bad_fraction)
        loaded = runs.initial_params(
            config.init_from, task.abstract, model=config.model, whole=True
        )
        params, frozen = task.parted(jax.device_put(loaded, sharding.of_state(mesh, loaded)))
        runs.write_config(config, workdir)
        # --- Test, figures ---
        predict = partial(predictor(task, mesh), params, frozen)
        scores = test(task, workdir, predict, found, reader, batch_size, classes.names)
        whole = sharding.collect({**params, **frozen}, mesh)
    gallery.draw(task, workdir, whole, found, config.seed)
    return scores
