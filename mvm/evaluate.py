"""Scores a classifier on many views of every video, each video exactly once."""

import contextlib
import csv
import io
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Shaped

from mvm import data, labels, tasks
from mvm import runs as workdirs
from mvm.figures import gallery
from mvm.runtime import hosts, sharding
from mvm.runtime import metrics as telemetry
from mvm.types import Params, UserError

log = logging.getLogger(__name__)


class Scores(NamedTuple):
    """Accuracies in percent over the videos that could be read."""

    top1: float
    top5: float
    mean_class: float
    num_videos: int
    """Videos scored; `num_unreadable` more are listed, not replaced."""
    num_unreadable: int


class Predictions(NamedTuple):
    """One row per video that could be read, ordered by its place in the list."""

    position: np.ndarray
    """`[V]`, in the test list."""
    label: np.ndarray
    """`[V]`"""
    probability: np.ndarray
    """`[V, C]`, averaged over views."""
    id: np.ndarray
    """`[V, 256]`, uint8: UTF-8 of the record's name, zeros behind."""


Predict = Callable[[Params, Shaped[np.ndarray, "b V T H W 3"]], Float[Array, "B C"]]
"""`(params, this process's views) -> probabilities` of the global batch."""


_PERIOD = 10.0
"""Seconds between two lines of progress."""


def merge(logits: Float[Array, "V B C"], average: str) -> Float[Array, "B C"]:
    """Scores of videos from those of their views.

    "probabilities" is the mean softmax (VideoMAE since its commit 2254c5e, EVEREST, VideoMAE V2),
    "logits" the mean logit (AdaMAE's release).
    """
    return jnp.mean(jax.nn.softmax(logits) if average == "probabilities" else logits, axis=0)


def predictor(
    task: tasks.Task, mesh: Any, average: str = "probabilities", dtype: Any = jnp.float32
) -> Predict:
    """Jits the prediction of videos from all their views; make it once per run.

    Views go one by one, so memory does not grow with their number. Split weights outside the
    stacks are all-gathered once for all views.

    Args:
        task: a classifier; gathers its layers by itself if they are split.
        mesh: the devices.
        average: see `merge`; the softmax of averaged logits is taken last.
        dtype: the model's, in which its split matrices are sent.
    """
    program = _program(task, mesh, average, dtype)

    def predict(params: Params, views: Shaped[np.ndarray, "b V T H W 3"]) -> Float[Array, "B C"]:
        with jax.set_mesh(mesh):
            return program(params, sharding.put(views, mesh))

    return predict


def _program(task: tasks.Task, mesh: Any, average: str, dtype: Any) -> Any:
    """`(params, views on the devices) -> probabilities`, jitted; to be traced under the mesh."""

    def predict(params: Params, views: Shaped[Array, "B V T H W 3"]) -> Float[Array, "B C"]:
        model = nnx.merge(task.graphdef, sharding.gather_rest(params, dtype))
        one = lambda view: model(view, task.strategy)  # noqa: E731
        scores = merge(jax.lax.map(one, jnp.moveaxis(views, 1, 0)), average)
        return scores if average == "probabilities" else jax.nn.softmax(scores)

    return jax.jit(predict, out_shardings=sharding.of_batch(mesh))


def run(
    predict: Callable[[Any], Array],
    batches: Iterable[dict[str, np.ndarray]],
    progress: Callable[[int], None] = lambda done: None,
) -> Predictions:
    """Predicts all batches of this process and collects those of all processes.

    There are equally many batches on every process; `predict` takes their views to probabilities
    of the global batch; `progress` is told how many videos this process has done.
    """
    rows: dict[str, list[np.ndarray]] = {name: [] for name in Predictions._fields}
    done = 0
    for batch in batches:
        out = predict(batch["video"])
        local = np.concatenate(
            [np.asarray(s.data) for s in sorted(out.addressable_shards, key=_start)]
        )
        valid = batch["valid"]
        rows["position"].append(np.where(valid, batch["index"], -1))
        rows["label"].append(batch["label"])
        rows["id"].append(batch["id"])
        rows["probability"].append(local[: len(valid)])
        done += int(valid.sum())
        progress(done)
    mine = {name: np.concatenate(parts) for name, parts in rows.items()}
    every = mine
    if jax.process_count() > 1:
        every = multihost_utils.process_allgather(mine)
        every = {k: v.reshape(-1, *v.shape[2:]) for k, v in every.items()}
    good = np.flatnonzero(every["position"] >= 0)
    order = good[np.argsort(every["position"][good])]
    return Predictions(**{name: value[order] for name, value in every.items()})


def _start(shard: Any) -> int:
    return shard.index[0].start or 0


def score(predictions: Predictions, num_records: int) -> Scores:
    """Top-1, top-5 and mean-class accuracy; NaN if no video could be read."""
    label, probability = predictions.label, predictions.probability
    if not len(label):
        return Scores(float("nan"), float("nan"), float("nan"), 0, num_records)
    # Equal probabilities go to the lower class, whatever the sort.
    order = np.argsort(-probability, axis=1, kind="stable")
    hits = order == label[:, None]
    per_class = [hits[label == c, 0].mean() for c in np.unique(label)]
    return Scores(
        top1=100.0 * float(hits[:, 0].mean()),
        top5=100.0 * float(hits[:, :5].any(axis=1).mean()),
        mean_class=100.0 * float(np.mean(per_class)),
        num_videos=len(label),
        num_unreadable=num_records - len(label),
    )


def write(
    workdir: epath.PathLike,
    predictions: Predictions,
    scores: Scores,
    found: Sequence[data.Record],
    names: Sequence[str],
    views: str,
    unreadable: Sequence[tuple[str, str]],
) -> None:
    """Writes `results.json`, `per_class.csv` and `predictions.csv` into a run directory.

    Of `found`, the test list, only records that were not predicted are asked for; `unreadable` are
    (id, reason) of videos that this process could not read.
    """
    workdir = epath.Path(workdir)
    best = predictions.probability.argmax(axis=1) if len(predictions.label) else np.empty(0, int)
    reasons = dict(unreadable)
    lost = [found[i].id for i in sorted(set(range(len(found))) - {*predictions.position.tolist()})]
    listed = [{"id": i, "reason": reasons.get(i, "see the log of its process")} for i in lost]
    results = {**scores._asdict(), "views": views, "unreadable": listed}
    telemetry.replace_text(workdir / "results.json", json.dumps(results, indent=2) + "\n")
    classes = []
    for c, name in enumerate(names):
        mine = predictions.label == c
        accuracy = f"{100 * (best[mine] == c).mean():.2f}" if mine.any() else ""
        classes.append((name, int(mine.sum()), accuracy))
    _write_csv(workdir / "per_class.csv", ("class", "videos", "accuracy"), classes)
    rows = [
        (i.tobytes().rstrip(b"\0").decode(errors="ignore"), names[c], names[b], f"{p[b]:.4f}")
        for i, c, b, p in zip(predictions.id, predictions.label, best, predictions.probability)
    ]
    header = ("video", "label", "prediction", "probability")
    _write_csv(workdir / "predictions.csv", header, rows)


def _write_csv(path: epath.Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    path.write_text(text.getvalue())


def validate(
    config: Any, predict: Predict, params: Params, found: Sequence[data.Record]
) -> dict[str, float]:
    """Top-1 and top-5 on the centre clip of every video of `data.val`."""
    with contextlib.closing(data.eval_batches(config, found, "val", data.Failures())) as batches:
        scores = score(run(partial(predict, params), batches), len(found))
    return {"val_top1": scores.top1, "val_top5": scores.top5}


def test(
    config: Any,
    workdir: epath.Path,
    predict: Predict,
    params: Params,
    found: Sequence[data.Record],
    names: Sequence[str],
) -> dict[str, float]:
    """Evaluates on all views of the test list and writes the result files."""
    names = names or [str(label) for label in range(config.data.num_classes)]
    views = f"{config.eval.num_segments}x{config.eval.num_crops}"
    failures, began = data.Failures(), time.monotonic()
    mine, due = -(-len(found) // jax.process_count()), began + _PERIOD

    def progress(done: int) -> None:
        nonlocal due
        if done and (now := time.monotonic()) >= due:
            due = now + _PERIOD
            left = telemetry.duration((now - began) / done * (mine - done))
            log.info("test: %d of %d videos, %s views  ETA %s", done, mine, views, left)

    with contextlib.closing(data.eval_batches(config, found, "test", failures)) as batches:
        predictions = run(partial(predict, params), batches, progress)
    scores = score(predictions, len(found))
    if jax.process_index() == 0:
        write(workdir, predictions, scores, found, names, views, failures.items)
    log.info(
        "test: top-1 %.2f %%, top-5 %.2f %%, mean class %.2f %% over %d of %d videos, %s views",
        scores.top1,
        scores.top5,
        scores.mean_class,
        scores.num_videos,
        len(found),
        views,
    )
    return {f"test_{k}": v for k, v in scores._asdict().items()}


def main(config: Any, workdir: epath.PathLike) -> dict[str, float]:
    """Evaluates `init_from` on `data.test`; results and figures go to `workdir`.

    Raises:
        UserError, DataError: for a mistake in configuration or data, before any long work.
    """
    workdir = epath.Path(workdir)
    config = data.ensure(config, workdir / "data")
    config, classes = labels.agree(config, labels.of_model(config.init_from))
    found = data.records(config, "test", classes)
    if not config.init_from:
        raise UserError(
            "evaluation needs weights: --config.init_from=a run, a step or a PyTorch file"
        )
    config = workdirs.with_training_grid(config, workdir)
    workdirs.check_config(config, workdir)
    sharding.check_batch(config.eval.batch_size, name="eval.batch_size")
    hosts.check_same(config, {"test": found})
    data.look_at(config, found, "test")
    mesh = sharding.make_mesh(config.train.fsdp)
    with jax.set_mesh(mesh):
        task = tasks.build(config, sharding.gather if mesh.shape["fsdp"] > 1 else None)
        dtype = tasks.dtype_of(config.model.dtype)
        predict = predictor(task, mesh, config.eval.average, dtype)
        loaded = workdirs.initial_params(
            config.init_from, task.abstract, model=config.model, whole=True
        )
        params = jax.device_put(loaded, sharding.of_state(mesh, loaded))
        workdirs.write_config(config, workdir)
        scores = test(config, workdir, predict, params, found, classes.names)
        params = sharding.collect(params, mesh)
    gallery.draw(config, workdir, params, found)
    return scores
