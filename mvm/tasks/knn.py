"""The vote of the nearest training videos: what an encoder knows without any training."""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array

from mvm import data, evaluate, frozen, inference, runs, tasks
from mvm.figures import gallery, report
from mvm.runtime import sharding
from mvm.types import Params, UserError

SPEC = tasks.Spec(labels=True, sampling="finetune")
NEIGHBOURS, TEMPERATURE = 20, 0.07


def run(config: Any, workdir: epath.PathLike) -> dict[str, float]:
    """Scores the videos of `data.test` by those of `data.train`; returns the scores.

    The feature of a video is the mean over its views of what `mvm.load(...).embed` gives.

    Raises:
        UserError, DataError: for a mistake in configuration or data, before any long work.
    """
    workdir, start = epath.Path(workdir), frozen.prepare(config, ["train", "test"])
    runs.write_config(start.config, workdir, start.names)
    pooled = partial(inference.pooled, start.encoder.task, start.encoder.config.mask)

    def mean(params: Params, video: Array) -> Array:
        return jax.lax.map(partial(pooled, params), jnp.moveaxis(video, 1, 0)).mean(axis=0)

    embed = sharding.on_devices(mean, start.encoder.params, config.eval.batch_size)
    train, test = (frozen.rows_of(workdir, start, split, embed) for split in ("train", "test"))
    votes = vote(test.read(), train.read(), train.label, start.config.data.num_classes)
    more = {"selection": "none", "k": NEIGHBOURS, "temperature": TEMPERATURE}
    values = frozen.publish(workdir, start, votes, test, more | {"gallery": len(train.label)})
    gallery.attempt(partial(gallery.draw_numbers, workdir), partial(report.write, workdir))
    return values


def vote(
    queries: np.ndarray,
    gallery: np.ndarray,
    label: np.ndarray,
    num_classes: int,
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    leave_one_out: bool = False,
) -> np.ndarray:
    """Shares of the votes for each class, float64 `[Q, C]`.

    Each of the k videos of largest cosine similarity s votes exp(s / temperature) (DINO, arXiv
    2104.14294); of equal ones the earlier goes first.

    Args:
        queries, gallery: features `[Q, D]`, `[R, D]`.
        label: of the gallery, `[R]`.
        num_classes: C.
        leave_one_out: both are the same, and none votes for itself.
    """
    queries, gallery = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        for x in (np.float32(queries), np.float32(gallery))
    )
    k = min(k, len(gallery) - leave_one_out)
    votes = np.zeros((len(queries), num_classes))
    for first in range(0, len(queries), 1024):
        similar = queries[first : first + 1024] @ gallery.T
        rows = np.arange(len(similar))
        if leave_one_out:
            similar[rows, first + rows] = -np.inf
        near = np.argsort(-similar, axis=1, kind="stable")[:, :k]
        weight = np.exp(np.take_along_axis(similar, near, axis=1).astype(np.float64) / temperature)
        np.add.at(votes, (first + rows[:, None], label[near]), weight)
    return votes / votes.sum(axis=1, keepdims=True)


def watch(
    config: Any, task: tasks.Task, reader: data.Reader, mesh: Any
) -> Callable[[Params, Params], dict[str, float]]:
    """What scores an encoder while it is pre-trained: each video of data.val by all others.

    Returns:
        Of parameters: "val_knn", top-1 in percent of the mean over all tokens of the middle clip.

    Raises:
        UserError, DataError: if `data.val` has not the labels that pre-training does without, or
            the task is not one of pre-training.
    """
    if tasks.spec(config.task).labels or not isinstance(task, tasks.ClipTask):
        raise UserError(
            f"train.probe_every={config.train.probe_every} is for pre-training; "
            f"task={config.task} is scored on data.val every train.val_every steps"
        )
    size, spec = config.eval.batch_size, task.clips["val"]
    sharding.check_batch(size, name="eval.batch_size")
    found = data.records(data.sources(config.data, "val"), data.ANY, "val")
    data.probe(found, "val", spec, reader, config.data.max_bad_fraction)
    threads = reader._replace(workers=0)  # The worker processes of training are there still.

    def embed(params: Params, still: Params, batch: Any) -> dict[str, Array]:
        tokens = inference.tokens_of(task.model(params, still), batch["video"][:, 0])
        return {"feature": tokens.mean(axis=(1, 2, 3))}

    program = evaluate.program(task, mesh, embed)

    def score(params: Params, still: Params) -> dict[str, float]:
        predict = evaluate.predictor(program, mesh, params, still)
        batches = data.eval_batches(found, spec, threads, size, data.Failures())
        with contextlib.closing(batches):
            rows = evaluate.run(predict, batches, len(found))
        label, features = rows["label"], rows["feature"]
        if len(label) < 2:
            raise UserError("train.probe_every needs two videos of data.val that can be read")
        votes = vote(features, features, label, int(label.max()) + 1, leave_one_out=True)
        return {"val_knn": 100.0 * float((votes.argmax(axis=1) == label).mean())}

    return score
