"""All views of every record once -> `task.score` -> results.json and CSV files."""

import contextlib
import csv
import io
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import tqdm
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import Array

from mvm import config as schema
from mvm import data, initial, runs, tasks
from mvm.figures import gallery
from mvm.runtime import metrics, multihost, sharding
from mvm.runtime.steps import Progress
from mvm.types import Params, UserError

log = logging.getLogger(__name__)

Predict = Callable[[data.Batch], dict[str, Array]]
"""This process's batch -> rows of the global batch, see `Task.predict`."""

Rows = dict[str, np.ndarray]
"""One row per record that could be read, ordered by its place in the list: "position" `[R]`,
"label" `[R]`, "id" `[R, 256]` (UTF-8, zeros behind), and what the task predicts."""

_INPUTS = ("position", "label", "id")
_OF_RECORDS = ("index", "label", "id", "valid")


def predictor(task: tasks.Task, mesh: Any) -> Callable[..., dict[str, Array]]:
    """`task.predict` of parameters, frozen ones and a batch, jitted under the mesh; once per run.

    Split weights outside the stacks are all-gathered once for all views.
    """
    gather = partial(sharding.gather_rest, dtype=task.run.dtype)

    @partial(jax.jit, out_shardings=sharding.of_batch(mesh))
    def predict(params: Params, frozen: Params, batch: Any) -> Any:
        return task.predict(gather(params), gather(frozen), batch)

    def call(params: Params, frozen: Params, batch: data.Batch) -> Any:
        seen = {name: array for name, array in batch.items() if name not in _OF_RECORDS}
        return predict(params, frozen, sharding.put(seen, mesh))

    return call


def run(predict: Predict, batches: Iterable[data.Batch], num_records: int) -> Rows:
    """Predicts all batches of this process and collects the rows of all processes.

    There are equally many batches on every process.
    """
    parts: dict[str, list[np.ndarray]] = {}
    others, mine = jax.process_index() > 0, -(-num_records // jax.process_count())
    bar = tqdm.tqdm(total=mine, unit=" videos", delay=10, mininterval=10, disable=others)
    for batch in batches:
        valid = batch["valid"]
        rows = {"position": np.where(valid, batch["index"], -1)}
        rows |= {"label": batch["label"], "id": batch["id"]}
        rows |= {k: _local(v)[: len(valid)] for k, v in predict(batch).items()}
        for name, row in rows.items():
            parts.setdefault(name, []).append(row)
        bar.update(int(valid.sum()))
    bar.close()
    every = {name: np.concatenate(part) for name, part in parts.items()}
    every = multihost_utils.process_allgather(every, tiled=True)
    good = np.flatnonzero(every["position"] >= 0)
    order = good[np.argsort(every["position"][good])]
    return {name: row[order] for name, row in every.items()}


def _local(rows: Array) -> np.ndarray:
    """This process's rows of a global array."""
    shards = sorted(rows.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate(jax.device_get([shard.data for shard in shards]))


def score(
    task: tasks.Task, rows: Rows, found: Sequence[data.Record], classes: Sequence[str] = ()
) -> tasks.Scores:
    """Scores of the task, of the rows of all records that could be read."""
    names = [i.tobytes().rstrip(b"\0").decode(errors="ignore") for i in rows["id"]]
    predictions = {k: v for k, v in rows.items() if k not in _INPUTS}
    return task.score(
        predictions, tasks.Truths(rows["label"], names, classes, rows["position"], found)
    )


def validate(
    task: tasks.Task,
    predict: Predict,
    found: Sequence[data.Record],
    reader: data.Reader,
    batch_size: int,
) -> dict[str, float]:
    """Scores of the centre clip of every record of `data.val`.

    In threads: the worker processes of training are there still.
    """
    reader = reader._replace(workers=0)
    batches = data.eval_batches(found, task.clips["val"], reader, batch_size, data.Failures())
    with contextlib.closing(batches):
        scores = score(task, run(predict, batches, len(found)), found)
    return {f"val_{k}": v for k, v in scores.values.items()}


def test(
    task: tasks.Task,
    workdir: epath.Path,
    predict: Predict,
    found: Sequence[data.Record],
    reader: data.Reader,
    batch_size: int,
    classes: Sequence[str],
    at: Progress | None,
) -> dict[str, float]:
    """Scores all views of the test list, and publishes the scores."""
    spec, failures = task.clips["test"], data.Failures()
    log.info("scoring %s", at or "weights of no run")
    batches = data.eval_batches(found, spec, reader, batch_size, failures)
    with contextlib.closing(batches):
        rows = run(predict, batches, len(found))
    scores, more = score(task, rows, found, classes), {"step": at.step if at else None}
    return publish(workdir, scores, found, rows["position"], spec, dict(failures), more)


def publish(
    workdir: epath.Path,
    scores: tasks.Scores,
    found: Sequence[data.Record],
    position: np.ndarray,
    spec: data.Spec,
    reasons: Mapping[str, str],
    more: Mapping[str, Any],
) -> dict[str, float]:
    """Writes results.json, with `more`, a CSV file for each table, and figures; logs the scores.

    Of the records found, those at `position` were scored; `reasons` say, by id, why not the others.
    """
    values, tables, files = scores
    lost = [found[p].id for p in sorted({*range(len(found))} - {*position.tolist()})]
    values = values | {"num_videos": len(position), "num_unreadable": len(lost)}
    views = "x".join(str(getattr(spec, f"num_{n}", 1)) for n in ("segments", "crops"))
    if jax.process_index() == 0:
        told = "see the log of its process"
        unreadable = [{"id": i, "reason": reasons.get(i, told)} for i in lost]
        results = {**values, **more, "views": views, "unreadable": unreadable}
        metrics.replace_text(workdir / "results.json", json.dumps(results, indent=2) + "\n")
        for name, table in tables.items():
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(table)
            metrics.replace_text(workdir / f"{name}.csv", text.getvalue())
        (workdir / "figures").mkdir(parents=True, exist_ok=True)
        gallery.attempt(*(partial(write, workdir / name) for name, write in files.items()))
    log.info("test: %s, %s views", "  ".join(f"{k} {v:.4g}" for k, v in values.items()), views)
    gallery.attempt(partial(gallery.draw_errors, workdir, found, position, spec))
    return {f"test_{k}": v for k, v in values.items()}


def evaluate(config: Any, workdir: epath.PathLike) -> dict[str, float]:
    """Scores `init_from` on `data.test` without training; results and figures go to `workdir`."""
    workdir, d = epath.Path(workdir), config.data
    if not tasks.spec(config.task).labels:
        raise UserError(f"task={config.task} has nothing to score; evaluate another task")
    if not config.init_from:
        raise UserError("evaluation needs weights: --config.init_from=a run, a step or a file")
    # --- Data ---
    source = runs.Source(config.init_from, "init_from")
    head = source.head()
    config, every, classes = initial.records(config, ["test"], head)
    found = every["test"]
    config, _ = initial.resolved(config, workdir)
    batch_size, reader = config.eval.batch_size, data.Reader(d.threads, d.workers, d.cache_gb)
    sharding.check_batch(batch_size, name="eval.batch_size")
    multihost.agree(schema.shared(config) | data.facts({"test": found}))
    mesh = sharding.make_mesh(config.train.fsdp)
    with jax.set_mesh(mesh):
        # --- Weights ---
        task = tasks.build(config, sharding.gather if mesh.shape["fsdp"] > 1 else None)
        data.probe(found, "test", task.clips["test"], reader, d.max_bad_fraction)
        rows = initial.rows_to_load(config, head, classes)
        loaded = initial.params(source, task.abstract, rows, config.model, whole=True)
        params, frozen = task.parted(jax.device_put(loaded, sharding.of_state(mesh, loaded)))
        runs.write_config(config, workdir)
        # --- Test, figures ---
        predict = partial(predictor(task, mesh), params, frozen)
        options = reader, batch_size, classes.names
        scores = test(task, workdir, predict, found, *options, source.at)
        whole = sharding.collect({**params, **frozen}, mesh)
    gallery.draw(task, workdir, whole, found, config.seed, config.report.clips)
    return scores
