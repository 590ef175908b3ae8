"""Temporal action detection: ActionFormer (arXiv 2202.07925) on features of long videos.

    python -m mvm.tasks.localise --truth thumos14.json --subset Test --predictions predictions.json

scores detections of any system, from files.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from mvm import data, objectives, tasks
from mvm.detections import temporal
from mvm.figures import timeline
from mvm.models import actionformer, pyramid
from mvm.runtime import metrics, sharding
from mvm.types import Metrics, Params, UserError

_RADIUS = 1.5  # strides: how far from the middle of a segment a point may be that detects it
_SAME = 1e-3  # steps: segments as short as the shortest share a point
_MOMENTUM = 0.9  # of the normaliser
_BEST = 2000  # detections of each level that are kept before suppression
_LEAST = 1e-3  # score before and after suppression
_LEVELS = 6

THRESHOLDS = {
    "0.3-0.7": (0.3, 0.4, 0.5, 0.6, 0.7),
    "0.5-0.95": (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
}


def records(config: Any, split: str) -> tasks.Annotated:
    """The videos of a subset that are annotated; for training those that can be learned from.

    The classes are those of the training annotations, or of the others where there are none.
    """
    d, own = config.data, tasks.options(config)
    if not d[split]:
        raise UserError(f"there are no annotations: give --config.data.{split}=FILE.json")
    names = data.annotated_classes(d.train or d[split])
    subset = own["train_subset" if split == "train" else "test_subset"]
    root = d.root or str(data.folder_of(d[split]))
    found = data.annotated(d[split], subset, root, _spec(own), names)
    if split == "train":
        found = [record for record in found if record.path and record.truth[-1]]
    return tasks.Annotated(found, names)


SPEC = tasks.Spec(
    labels=True,
    sampling="finetune",
    options=(
        ("columns", 1408),
        ("window", 16),
        ("stride", 4),
        ("length", 2304),
        ("fit", ("crop", "resize")),
        ("attention", 19),
        ("last_level", ("local", "global")),
        ("positions", ("none", "sinusoid")),
        ("suppression", ("by_class", "agnostic")),
        ("sigma", 0.5),
        ("voting", 0.0),
        ("shortest", 0.05),
        ("most", 200),
        ("normaliser", 100.0),
        ("regression", 1.0),
        ("thresholds", tuple(THRESHOLDS)),
        ("train_subset", "Validation"),
        ("test_subset", "Test"),
        ("classifier", ""),
    ),
    records=records,
)


def losses(
    found: pyramid.Detections,
    target: Float[Array, "B P C"],
    sides: Float[Array, "B P 2"],
    normaliser: Float[Array, ""],
    *,
    smoothing: float,
    regression: float,
) -> tuple[Array, Metrics]:
    """Focal loss of the classes plus `regression` times the DIoU loss of the distances.

    Both are sums over the normaliser, which follows the number of points with a target.
    """
    positive = target.any(-1) & found.valid
    normaliser = _MOMENTUM * normaliser + (1 - _MOMENTUM) * jnp.maximum(positive.sum(), 1)
    target = target * (1 - smoothing) + smoothing / (target.shape[-1] + 1)
    classes = objectives.focal(found.logits, target).sum(-1)
    distances = objectives.distance_iou(found.offsets, sides)
    classes = jnp.where(found.valid, classes, 0).sum() / normaliser
    distances = jnp.where(positive, distances, 0).sum() / normaliser
    parts = {"loss_classes": classes, "loss_segments": distances, "normaliser": normaliser}
    return classes + regression * distances, parts


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Localise(tasks.Task):
    """ActionFormer; the normaliser of its losses is a part of the model that nothing trains."""

    spec = SPEC
    frozen = ("normaliser",)

    size: actionformer.Size
    num_classes: int
    """Of the data."""
    agnostic: bool
    """Whether the network knows one class alone, and `classifier` the others."""
    normaliser: float
    """At first."""
    regression: float
    smoothing: float
    shortest: float
    """Steps: a detection that is not longer is left out."""
    suppress: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]
    """`temporal.suppress` but for the detections."""
    classifier: Mapping[str, np.ndarray]
    """Probabilities `[C]` of videos by name."""
    thresholds: tuple[float, ...]

    def make(self, key: Key[Array, ""]) -> nnx.Module:
        classes = 1 if self.agnostic else self.num_classes
        model = actionformer.ActionFormer(self.size, classes, self.run, rngs=nnx.Rngs(key))
        model.normaliser = nnx.Param(jnp.float32(self.normaliser))
        return model

    def parted(self, params: Params) -> tuple[Params, Params]:
        """The normaliser stays float32."""
        trained = dict(params)
        return trained, {name: trained.pop(name) for name in self.frozen if name in params}

    def _found(
        self, params: Params, frozen: Params, batch: tasks.Batch, key: Any = None
    ) -> pyramid.Detections:
        valid = jnp.arange(batch["video"].shape[1]) < batch["length"][:, None]
        return self.model(params, frozen)(batch["video"], valid, key)

    def loss(
        self, params: Params, frozen: Params, key: Key[Array, ""], batch: tasks.Batch
    ) -> tuple[Array, Metrics]:
        found, classes = self._found(params, frozen, batch, key), batch["classes"]
        points = pyramid.points(batch["video"].shape[1], len(self.size.windows))
        classes = jnp.minimum(classes, 0) if self.agnostic else classes
        target, sides = pyramid.assign(points, batch["segments"], classes, found.logits.shape[-1])
        more = {"smoothing": self.smoothing, "regression": self.regression}
        return losses(found, target, sides, frozen["normaliser"], **more)

    def updated(self, params: Params, frozen: Params, metrics: Metrics) -> Params:
        return {"normaliser": metrics["normaliser"]}

    def predict(self, params: Params, frozen: Params, batch: tasks.Batch) -> dict[str, Array]:
        """The best segments of each level; see `decode`."""
        found = self._found(params, frozen, batch)
        return pyramid.decode(found, batch["video"].shape[1], len(self.size.windows), _BEST)

    def of_video(
        self, record: data.Record, segment: np.ndarray, score: np.ndarray, label: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is left of `decode`d segments of a video: seconds, scores, classes."""
        kept = (score > _LEAST) & (segment[:, 1] - segment[:, 0] > self.shortest)
        segment, score, label = self.suppress(segment[kept], score[kept], label[kept])
        segment = data.Video(*record.truth).seconds(segment)
        if record.id in self.classifier:
            return temporal.with_classes(segment, score, self.classifier[record.id])
        return segment, score, label

    def score(self, predictions: Mapping[str, np.ndarray], truths: tasks.Truths) -> tasks.Scores:
        """Mean average precision; the truth of videos without features counts, too."""
        names = truths.classes or [str(c) for c in range(self.num_classes)]
        names = [_ANY] * len(names) if self.agnostic and not self.classifier else names
        every = zip(*(predictions[name] for name in ("segment", "score", "class")))
        found = {r.id: self.of_video(r, *rows) for r, rows in zip(truths.records, every)}
        detected = temporal.table(
            (video, segment, names[label], score)
            for video, rows in found.items()
            for segment, score, label in zip(*rows)
        )
        truth = temporal.table(
            (record.id, (start, end), names[label], 1.0)
            for record in (*truths.records, *truths.lost)
            for start, end, label in data.Video(*record.truth).segments
        )
        precise = temporal.precision(truth, detected, self.thresholds)
        mean = 100 * precise.average.mean(axis=1)
        values = {"average_mAP": float(mean.mean())}
        values |= {f"mAP@{t:g}": float(m) for t, m in zip(self.thresholds, mean)}
        header = ("class", "segments", *(f"AP@{t:g}" for t in self.thresholds))
        table: list[Any] = [header]
        for name, average in zip(precise.classes, precise.average.T):
            count = int((truth.label == name).sum())
            table.append((name, count, *(f"{100 * one:.2f}" for one in average)))
        files = {
            "predictions.json": partial(_write, found=detected),
            "figures/timeline.png": partial(_draw, truths=truths, truth=truth, found=detected),
        }
        return tasks.Scores(values, {"per_class": table}, files)

    def macs(self, executed: bool = False) -> dict[str, int]:
        return actionformer.macs(self.size, 1 if self.agnostic else self.num_classes, executed)

    def summary(self) -> str:
        return f"{self.size.length} rows of {self.size.features} features"


def _write(path: Any, found: temporal.Segments) -> None:
    metrics.replace_text(path, json.dumps({"results": temporal.to_results(found)}) + "\n")


def _draw(
    path: Any, truths: tasks.Truths, truth: temporal.Segments, found: temporal.Segments
) -> None:
    """The first videos that have both truths and features."""
    shown = []
    for record in [r for r in truths.records if data.Video(*r.truth).segments][:_SHOWN]:
        mine, said = (rows.at(np.flatnonzero(rows.video == record.id)) for rows in (truth, found))
        of_both = (mine.segment, mine.label, said.segment, said.label, said.score)
        shown.append(timeline.Timeline(record.id, data.Video(*record.truth).duration, *of_both))
    if shown:
        timeline.draw(path, shown)


def build(config: Any, gather: Any) -> Localise:
    """Raises UserError for values that do not fit together."""
    own, m, o = tasks.options(config), config.model, config.optim
    width, heads = m.width or 512, m.heads or 4
    windows = (own["attention"],) * _LEVELS
    if own["last_level"] == "global":
        windows = (*windows[:-1], 0)
    coarse = 2 ** (_LEVELS - 1)
    if own["length"] % coarse or own["length"] < coarse:
        raise UserError(f"options.length={own['length']}; make it a multiple of {coarse}")
    if own["attention"] % 2 == 0:
        raise UserError(f"options.attention={own['attention']}; make it odd: the step is in the middle")
    if width % heads:
        raise UserError(f"model.width={width} is not divisible by model.heads={heads}")
    spec, agnostic = spec_of(own), own["suppression"] == "agnostic"
    return Localise(
        run=parts.run(config, gather),
        clips=dict.fromkeys(("train", "val", "test"), spec),
        size=actionformer.Size(
            spec.columns,
            width,
            heads,
            windows,
            spec.length,
            own["positions"] == "sinusoid",
            m.drop_path,
        ),
        num_classes=config.data.num_classes,
        agnostic=agnostic,
        normaliser=own["normaliser"],
        regression=own["regression"],
        smoothing=o.smoothing,
        shortest=own["shortest"],
        suppress=partial(
            temporal.suppress,
            sigma=own["sigma"],
            min_score=_LEAST,
            most=own["most"],
            by_class=not agnostic,
            voting=own["voting"],
        ),
        classifier=probabilities(own["classifier"]) if agnostic else {},
        thresholds=THRESHOLDS[own["thresholds"]],
    )


def probabilities(path: str, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Of the classes of videos, from a classifier's JSON: `{"results": {video: [p, ..]}}`."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Scores a file of detections against one of annotations; one JSON object on stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--truth", required=True, help="annotations, JSON of ActivityNet's form")
    parser.add_argument("--subset", default="", help="of the annotations; default: all")
    parser.add_argument("--predictions", required=True, help='JSON, {"results": {video: [..]}}')
    parser.add_argument("--thresholds", default="0.3,0.4,0.5,0.6,0.7", help="of temporal IoU")
    given = parser.parse_args(arguments)
    try:
        thresholds = [float(t) for t in given.thresholds.split(",")]
        ...
    except (UserError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
