"""The vote of the nearest training videos: what an encoder knows without any training."""

import contextlib
import logging
from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Array

from mvm import data, evaluate, frozen, inference, runs, tasks
from mvm.figures import gallery, report
from mvm.runtime import sharding
from mvm.tasks import finetune
from mvm.types import Params, UserError

log = logging.getLogger(__name__)

SPEC = tasks.Spec(labels=True, sampling="finetune")
NEIGHBOURS, TEMPERATURE = 20, 0.07


def run(config: Any, workdir: epath.PathLike) -> dict[str, float]:
    """Scores the videos of `data.test` by those of `data.train`; returns the scores.

    The feature of a video is the mean over its views of what `mvm.load(...).embed` gives.

    Raises:
        UserError, DataError: for a mistake in configuration or data, before any long work.
    """
    workdir = epath.Path(workdir)
    config, names, found, reader, encoder = frozen.prepare(config, workdir, ["train", "test"])
    spec, batch = encoder.task.clips["test"], config.eval.batch_size
    runs.write_config(config, workdir, names)
    mesh = sharding.make_mesh()
    network = inference.Network(
        encoder.task, encoder.params, encoder.config.mask, sharding.whole(mesh)
    )

    def embed(views: np.ndarray) -> np.ndarray:
        each = (network.embed(sharding.put(views[:, v], mesh)) for v in range(views.shape[1]))
        return np.mean([np.asarray(one) for one in each], axis=0)

    with jax.set_mesh(mesh):
        rows = {
            split: frozen.kept(
                workdir / "features" / split,
                *(records, embed, spec, reader, batch, {"digest": encoder.digest}),
            )
            for split, records in found.items()
        }
    (train, test), count = (rows["train"], rows["test"]), config.data.num_classes
    votes = vote(test.features, train.features, train.label, count)
    scores = finetune.accuracies(votes, tasks.Truths(test.label, test.name, names), count)
    protocol = frozen.protocol(encoder, config, "none")
    more = {"k": NEIGHBOURS, "temperature": TEMPERATURE, "gallery": len(train.label)}
    counts = {"num_videos": len(test.label), "num_unreadable": len(test.unreadable)}
    scores = scores._replace(values=scores.values | counts)
    more |= protocol | {"unreadable": test.unreadable}
    said = f"{NEIGHBOURS} nearest of {len(train.label)} videos, {protocol['views']} views"
    values = evaluate.publish(workdir, scores, more, said)
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
    queries, gallery = (_unit(np.asarray(x, np.float32)) for x in (queries, gallery))
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


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


class Watch:
    """Whether an encoder learns while it is pre-trained: each video of data.val by all others.

    Raises:
        UserError, DataError: if `data.val` has not the labels that pre-training does without, or
            the task is not one of pre-training.
    """

    def __init__(self, config: Any, task: tasks.Task, reader: data.Reader, mesh: Any):
        if tasks.spec(config.task).labels or not isinstance(task, tasks.ClipTask):
            raise UserError(
                f"train.probe_every={config.train.probe_every} is for pre-training; "
                f"task={config.task} is scored on data.val every train.val_every steps"
            )
        d, batch = config.data, config.eval.batch_size
        sharding.check_batch(batch, name="eval.batch_size")
        self._found = data.records(data.sources(d, "val"), data.ANY, "val")
        spec = task.clips["val"]
        data.probe(self._found, "val", spec, reader, d.max_bad_fraction)
        # In threads: the worker processes of training are there still.
        self._read = (spec, reader._replace(workers=0), batch)
        self._mesh, gather = mesh, partial(sharding.gather_rest, dtype=task.run.dtype)

        def embed(params: Params, still: Params, batch: Any) -> dict[str, Array]:
            model = task.model(gather(params), gather(still))
            tokens = inference.tokens_of(model, batch["video"][:, 0])
            return {"feature": tokens.mean(axis=(1, 2, 3))}

        self._jitted = jax.jit(embed, out_shardings=sharding.of_batch(mesh))

    def score(self, params: Params, still: Params) -> dict[str, float]:
        """ "val_knn": top-1 in percent of the mean over all tokens of the middle clip."""
        predict = evaluate.predictor(self._jitted, self._mesh, params, still)
        batches = data.eval_batches(self._found, *self._read, data.Failures())
        with contextlib.closing(batches):
            rows = evaluate.run(predict, batches, len(self._found))
        label, features = rows["label"], rows["feature"]
        if len(label) < 2:
            raise UserError("train.probe_every needs two videos of data.val that can be read")
        votes = vote(features, features, label, int(label.max()) + 1, leave_one_out=True)
        return {"val_knn": 100.0 * float((votes.argmax(axis=1) == label).mean())}
