"""Temporal action detection: ActionFormer (arXiv 2202.07925) on features of long videos.

    python -m mvm.tasks.localise --truth thumos14.json --subset Test --predictions predictions.json

scores the detections of any system.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import Array, Float, Key

from mvm import data, objectives, tasks
from mvm.detections import temporal
from mvm.figures import charts, timeline
from mvm.models import actionformer, pyramid
from mvm.tasks import parts
from mvm.types import Metrics, Params, UserError

LEVELS = 6
_BEST = 2000  # Detections of each level that suppression sees.
_LEAST = 1e-3  # Score of a detection, before suppression and after.
_MOMENTUM = 0.9  # Of the normaliser.
_ANY = "action"

THRESHOLDS = {
    "0.3-0.7": (0.3, 0.4, 0.5, 0.6, 0.7),
    "0.5-0.95": (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
}


def records(config: Any, split: str) -> tuple[Sequence[data.Record], Sequence[str]]:
    """The annotated videos of a split; for training those that have both segments and features.

    Their classes are those of the training annotations, where these are given.
    """
    d, own = config.data, tasks.options(config)
    if not d[split]:
        raise UserError(f"there is no data: give --config.data.{split}=FILE.json of annotations")
    names = data.annotated_classes(data.read_annotations(d.train or d[split]))
    subset = own["train_subset" if split == "train" else "test_subset"]
    root = d.root or epath.Path(d[split]).parent
    found = data.annotated(d[split], subset, root, spec_of(own), names)
    if split == "train":
        found = [record for record in found if record.path and data.Video(*record.truth).segments]
    elif own["classifier"]:
        known = temporal.read_probabilities(own["classifier"])
        for record in found:
            if record.path and len(known.get(record.id, ())) != len(names):
                raise UserError(
                    f"options.classifier={own['classifier']} has {len(known.get(record.id, ()))} "
                    f"probabilities of {record.id}, {len(names)} wanted; add them"
                )
    return found, names


SPEC = tasks.Spec(
    labels=True,
    sampling="finetune",
    options=(
        # Features: their width; frames of a row, and from one to the next, unless they say.
        ("columns", 1408),
        ("window", 16),
        ("stride", 4),
        # Rows of a sample: longer videos are cropped in training, or all are resized.
        ("length", 2304),
        ("fit", ("crop", "resize")),
        # Of the network: steps that a step attends to, in the coarsest level perhaps all.
        ("attention", 19),
        ("last_level", ("local", "global")),
        ("positions", ("none", "sinusoid")),
        # Of the losses: the normaliser at first, and the weight of that of distances.
        ("normaliser", 100.0),
        ("regression", 1.0),
        # Detections may know no class: then a file of a classifier of whole videos tells it.
        ("classes", ("all", "none")),
        ("classifier", ""),
        # Of a video: steps that the shortest is longer than, and see `temporal.suppress`.
        ("shortest", 0.05),
        ("sigma", 0.5),
        ("voting", 0.0),
        ("most", 200),
        ("thresholds", tuple(THRESHOLDS)),
        ("train_subset", "Validation"),
        ("test_subset", "Test"),
    ),
    records=records,
)


def spec_of(own: Mapping[str, Any]) -> data.FeatureSpec:
    """What becomes of features, by the task's options."""
    resize = own["fit"] == "resize"
    return data.FeatureSpec(own["length"], own["columns"], resize, own["window"], own["stride"])


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
    said = {"loss_classes": classes, "loss_segments": distances, "normaliser": normaliser}
    return classes + regression * distances, said


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Localise(tasks.Task):
    """ActionFormer; the normaliser of its losses is a part of the model that no gradient trains."""

    spec = SPEC
    frozen = ("normaliser",)

    size: actionformer.Size
    num_classes: int
    """Of the data."""
    smoothing: float
    own: Mapping[str, Any]
    """The task's options, see `SPEC`."""

    @property
    def _outputs(self) -> int:
        return self.num_classes if self.own["classes"] == "all" else 1

    @cached_property
    def _classifier(self) -> dict[str, np.ndarray]:
        return temporal.read_probabilities(self.own["classifier"])

    def make(self, key: Key[Array, ""]) -> nnx.Module:
        rngs = nnx.Rngs(key)
        model: Any = actionformer.ActionFormer(self.size, self._outputs, self.run, rngs=rngs)
        model.normaliser = nnx.Param(jnp.float32(self.own["normaliser"]))
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
        at, classes = pyramid.points(batch["video"].shape[1], LEVELS), batch["classes"]
        classes = classes if self.own["classes"] == "all" else jnp.minimum(classes, 0)
        target, sides = pyramid.assign(at, batch["segments"], classes, self._outputs)
        more = {"smoothing": self.smoothing, "regression": self.own["regression"]}
        found = self._found(params, frozen, batch, key)
        return losses(found, target, sides, frozen["normaliser"], **more)

    def updated(self, params: Params, frozen: Params, metrics: Metrics) -> Params:
        return {"normaliser": metrics["normaliser"]}

    def predict(self, params: Params, frozen: Params, batch: tasks.Batch) -> dict[str, Array]:
        """The best segments of each level, see `pyramid.decode`."""
        found = self._found(params, frozen, batch)
        return pyramid.decode(found, batch["video"].shape[1], LEVELS, _BEST)

    def of_video(
        self, record: data.Record, segment: np.ndarray, score: np.ndarray, label: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is left of the predictions of a video: seconds, scores, classes."""
        own = self.own
        kept = (score > _LEAST) & (segment[:, 1] - segment[:, 0] > own["shortest"])
        segment, score, label = temporal.suppress(
            *(segment[kept], score[kept], label[kept]),
            sigma=own["sigma"],
            min_score=_LEAST,
            most=own["most"],
            by_class=own["classes"] == "all",
            voting=own["voting"],
        )
        segment = data.Video(*record.truth).seconds(segment)
        if self._classifier:
            return temporal.with_classes(segment, score, self._classifier[record.id])
        return segment, score, label

    def score(self, predictions: Mapping[str, np.ndarray], truths: tasks.Truths) -> tasks.Scores:
        """Mean average precision; the truth of videos without features counts, too.

        Where nothing tells the class of a detection, all classes count as one.
        """
        names = list(truths.classes or map(str, range(self.num_classes)))
        if self.own["classes"] == "none" and not self._classifier:
            names = [_ANY] * len(names)
        every = zip(*(predictions[name] for name in ("segment", "score", "class")))
        found = temporal.table(
            (record.id, segment, names[label], score)
            for record, rows in zip([truths.records[p] for p in truths.position], every)
            for segment, score, label in zip(*self.of_video(record, *rows))
        )
        truth = temporal.table(
            (record.id, (start, end), names[label], 1.0)
            for record in truths.records
            for start, end, label in data.Video(*record.truth).segments
        )
        precise = temporal.precision(truth, found, THRESHOLDS[self.own["thresholds"]])
        mean = 100 * precise.average.mean(axis=1)
        values = {"average_mAP": float(mean.mean())}
        values |= {f"mAP@{t:g}": float(m) for t, m in zip(precise.thresholds, mean)}
        table: list[Any] = [("class", "segments", *(f"AP@{t:g}" for t in precise.thresholds))]
        bars = []
        for name, average in zip(precise.classes, 100 * precise.average.T):
            count = int((truth.label == name).sum())
            table.append((name, count, *(f"{one:.2f}" for one in average)))
            bars.append({"class": name, "videos": str(count), "accuracy": str(average.mean())})
        shown = {r.id: data.Video(*r.truth).duration for r in truths.records if r.path}
        files = {
            "predictions.json": partial(temporal.write_results, found=found),
            "figures/per_class.png": partial(charts.per_class, rows=bars),
            "figures/timeline.png": partial(timeline.draw, shown=shown, truth=truth, found=found),
        }
        return tasks.Scores(values, {"per_class": table}, files)

    def macs(self, executed: bool = False) -> dict[str, int]:
        return actionformer.macs(self.size, self._outputs, executed)

    def summary(self) -> str:
        return f"{self.size.length} rows of {self.size.features} features"


def build(config: Any, gather: Any) -> Localise:
    """Raises UserError for values that do not fit together."""
    own, m = tasks.options(config), config.model
    width, heads, coarsest = m.width or 512, m.heads or 4, 2 ** (LEVELS - 1)
    if own["length"] <= 0 or own["length"] % coarsest:
        raise UserError(f"options.length={own['length']}; make it a multiple of {coarsest}")
    if own["attention"] % 2 == 0:
        raise UserError(f"options.attention={own['attention']}; make it odd: a step and both sides")
    if width % heads:
        raise UserError(f"model.width={width} is not divisible by model.heads={heads}")
    windows = [own["attention"]] * LEVELS
    if own["last_level"] == "global":
        windows[-1] = 0
    size = actionformer.Size(
        features=own["columns"],
        width=width,
        heads=heads,
        windows=tuple(windows),
        length=own["length"],
        positions=own["positions"] == "sinusoid",
        drop_path=m.drop_path,
    )
    return Localise(
        run=parts.run(config, gather),
        clips=dict.fromkeys(("train", "val", "test"), spec_of(own)),
        size=size,
        num_classes=config.data.num_classes,
        smoothing=config.optim.smoothing,
        own=own,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the scores of a file of detections as one JSON object."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--truth", required=True, help="annotations, JSON of ActivityNet's form")
    parser.add_argument("--subset", default="", help="of the annotations; all if not given")
    parser.add_argument("--predictions", required=True, help='JSON {"results": {video: [..]}}')
    parser.add_argument("--thresholds", default="0.3,0.4,0.5,0.6,0.7", help="of temporal IoU")
    given = parser.parse_args(arguments)
    try:
        thresholds = [float(t) for t in given.thresholds.split(",")]
        if not all(0 < t <= 1 for t in thresholds):
            raise ValueError(f"--thresholds={given.thresholds}; give numbers above 0, at most 1")
        truth = data.read_annotations(given.truth, given.subset)
        found = temporal.read_results(given.predictions)
        if all(name.startswith("v_") for name in truth):  # ActivityNet's files; names lack it.
            truth = {name[2:]: video for name, video in truth.items()}
            found = found._replace(
                video=np.array([v.removeprefix("v_") for v in found.video], object)
            )
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    known = temporal.from_results({name: video["annotations"] for name, video in truth.items()})
    for what, mine, theirs in (
        ("classes", found.label, known.label),
        ("videos", found.video, truth),
    ):
        if new := sorted({*mine} - {*theirs}):
            print(f"{given.truth} lacks {len(new)} {what}, first {new[0]!r}", file=sys.stderr)
    json.dump(temporal.precision(known, found, thresholds).as_json(), sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
