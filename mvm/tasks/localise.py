"""Temporal action detection: ActionFormer (arXiv 2202.07925) on features of long videos.

    python -m mvm.tasks.localise --truth thumos14.json --subset Test --predictions predictions.json

scores the detections of any system.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import nnx
from jaxtyping import Array, Float, Key

from mvm import objectives, tasks
from mvm.data import segments
from mvm.detections import temporal
from mvm.figures import timeline
from mvm.models import actionformer
from mvm.runtime.metrics import replace_text
from mvm.tasks import parts
from mvm.types import Metrics, Params, UserError

_DEPTH = 7  # Blocks, of which the first two are of level 0.
_BEST = 2000  # Detections of each level that suppression sees.
_MOMENTUM = 0.9  # Of the normaliser.
_VOTING = 0.9  # Of detections without classes, see `temporal.suppress`.


def records(config: Any, split: str) -> tuple[Sequence[Any], Sequence[str]]:
    """The annotated videos of a split; for training those that have both segments and features.

    Their classes are those of the training annotations, where these are given.
    """
    d, own, training = config.data, tasks.options(config), split == "train"
    if not d[split]:
        raise UserError(f"there is no data: give --config.data.{split}=FILE.json of annotations")
    names = segments.classes(segments.read(d.train or d[split]))
    root = d.root or epath.Path(d[split]).parent
    told = own["classifier"] and not training
    scores = segments.read_results(own["classifier"], float) if told else None
    subset = own["train_subset" if training else "test_subset"]
    spec = segments.FeatureSpec(own["columns"], own["stride"], own["length"], own["fit"])
    found = segments.load(d[split], subset, root, spec, names, scores)
    if training:
        found = [record for record in found if record.path and record.truth.segments]
    if not any(record.path for record in found):
        raise UserError(f"no annotated video has features in data.root={root}; give their folder")
    return found, names


SPEC = tasks.Spec(
    labels=True,
    scores=("average_mAP",),
    sampling="finetune",
    options=(
        # Width of the features, frames from one row to the next unless they say, rows of a sample.
        *(("columns", 1408), ("stride", 4), ("length", 2304)),
        # Longer videos are cropped in training, or all are resized, and have positions and a
        # coarsest level that attends to all steps.
        ("fit", ("crop", "resize")),
        ("attention", 19),  # Steps that a step attends to.
        # Of the losses: the normaliser at first, and the weight of that of distances.
        *(("normaliser", 100.0), ("regression", 1.0)),
        # Detections may know no class: then a file of a classifier of whole videos tells it.
        *(("classes", ("all", "none")), ("classifier", "")),
        # Of a video: steps that the shortest is longer than, and see `temporal.suppress`.
        *(("shortest", 0.05), ("sigma", 0.5), ("most", 200)),
        ("thresholds", "0.3,0.4,0.5,0.6,0.7"),
        *(("train_subset", "Validation"), ("test_subset", "Test")),
    ),
    records=records,
)


def losses(
    found: actionformer.Detections,
    target: Float[Array, "B P C"],
    sides: Float[Array, "B P 2"],
    normaliser: Float[Array, ""],
    *,
    smoothing: float,
    regression: float,
) -> tuple[Array, Metrics]:
    """Focal loss (arXiv 1708.02002) of the classes plus `regression` times DIoU of the distances.

    Both are sums over the normaliser, which follows the number of points with a target.
    """
    logits, offsets, valid = found
    positive = target.any(-1) & valid
    normaliser = _MOMENTUM * normaliser + (1 - _MOMENTUM) * jnp.maximum(positive.sum(), 1)
    target = target * (1 - smoothing) + smoothing / (target.shape[-1] + 1)
    classes = optax.sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2.0).sum(-1)
    classes = jnp.where(valid, classes, 0).sum() / normaliser
    distances = jnp.where(positive, objectives.distance_iou(offsets, sides), 0).sum() / normaliser
    said = {"loss_classes": classes, "loss_segments": distances, "normaliser": normaliser}
    return classes + regression * distances, said


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Localise(tasks.Task):
    """ActionFormer; the normaliser of its losses is a part of the model that no gradient trains."""

    spec = SPEC
    frozen = ("normaliser",)

    size: actionformer.Size
    num_classes: int
    """That it knows: 1 if it has none."""
    smoothing: float
    own: Mapping[str, Any]  # See `SPEC`.

    def make(self, key: Key[Array, ""]) -> nnx.Module:
        rngs = nnx.Rngs(key)
        model: Any = actionformer.ActionFormer(self.size, self.num_classes, self.run, rngs=rngs)
        model.normaliser = nnx.Param(jnp.float32(self.own["normaliser"]))
        return model

    def loss(
        self, params: Params, frozen: Params, key: Key[Array, ""], batch: tasks.Batch
    ) -> tuple[Array, Metrics]:
        found, at = self.model(params, frozen)(batch["video"], batch["length"], key)
        # A network without classes has class 0.
        truth = batch["segments"].at[..., 2].min(self.num_classes - 1)
        target, sides = actionformer.assign(at, truth, self.num_classes)
        more = {"smoothing": self.smoothing, "regression": self.own["regression"]}
        return losses(found, target, sides, frozen["normaliser"], **more)

    def updated(self, params: Params, frozen: Params, metrics: Metrics) -> Params:
        return {"normaliser": metrics["normaliser"]}

    def predict(self, params: Params, frozen: Params, batch: tasks.Batch) -> dict[str, Array]:
        """The best segments of each level, see `actionformer.decode`."""
        found, at = self.model(params, frozen)(batch["video"], batch["length"])
        return {"segments": actionformer.decode(found, at, _BEST)}

    def score(self, predictions: Mapping[str, np.ndarray], truths: tasks.Truths) -> tasks.Scores:
        """Mean average precision; the truth of videos without features counts, too.

        Where nothing tells the class of a detection, all classes count as one.
        """
        own, records, by_class = self.own, truths.records, self.own["classes"] == "all"
        thresholds, names = temporal.thresholds(own["thresholds"]), truths.classes

        def row(start: float, end: float, label: float, **score: float) -> dict[str, Any]:
            name = names[int(label)] if names else str(int(label))
            name = name if by_class or own["classifier"] else "action"
            return {"label": name, "segment": (start, end), **score}

        truth = {r.id: [row(*segment) for segment in r.truth.segments] for r in records}
        found = {}
        more = {"sigma": own["sigma"], "most": own["most"], "by_class": by_class}
        for record, rows in zip((records[p] for p in truths.position), predictions["segments"]):
            long = rows[:, 1] - rows[:, 0] > own["shortest"]
            rows = rows[long & (rows[:, 2] > temporal.LEAST)]
            rows = temporal.suppress(rows, voting=_VOTING, **more).astype(float)
            rows[:, :2] = record.truth.seconds(rows[:, :2])
            if record.truth.scores:
                rows = temporal.with_classes(rows, np.array(record.truth.scores))
            rows = rows.round(5).tolist()
            found[record.id] = [row(start, end, c, score=s) for start, end, s, c in rows]
        means = temporal.precision(truth, found, thresholds)
        said = [f"mAP@{t:g}" for t in thresholds]
        values = dict(zip(("average_mAP", *said), (means["average_mAP"], *means["mAP"])))
        table = [(n, *(100 * np.array(ap)).round(2)) for n, ap in means["per_class_AP"].items()]
        shown = {r.id: r.truth.duration for r in records if r.path}
        text = json.dumps({"results": found}) + "\n"
        files = {
            "predictions.json": partial(replace_text, text=text),
            "figures/timeline.png": partial(timeline.draw, shown=shown, truth=truth, found=found),
        }
        tables: Any = {"per_class": [("class", *said), *table]}
        return tasks.Scores({name: 100 * v for name, v in values.items()}, tables, files)

    def summary(self) -> str:
        return f"{self.own['length']} rows of {self.own['columns']} features"


def build(config: Any, gather: Any) -> Localise:
    own, m = tasks.options(config), config.model
    levels = (m.depth or _DEPTH) - 1
    whole, unit = own["fit"] == "resize", 2 ** (levels - 1)
    temporal.thresholds(own["thresholds"])
    if own["length"] <= 0 or own["length"] % unit:
        raise UserError(f"options.length={own['length']}; make it a multiple of {unit}")
    windows = (*[own["attention"]] * (levels - 1), 0 if whole else own["attention"])
    positions = own["length"] if whole else 0
    spec = segments.FeatureSpec(own["columns"], own["stride"], own["length"], own["fit"])
    return Localise(
        run=parts.run(config, gather),
        clips=dict.fromkeys(("train", "val", "test"), spec),
        size=actionformer.Size(
            own["columns"], m.width or 512, m.heads or 4, windows, positions, m.drop_path
        ),
        num_classes=config.data.num_classes if own["classes"] == "all" else 1,
        smoothing=config.optim.smoothing,
        own=own,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the scores of a file of detections as one JSON object."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--truth", required=True, help="annotations, JSON of ActivityNet's form")
    parser.add_argument("--subset", default="", help="of the annotations; all if not given")
    parser.add_argument("--predictions", required=True, help='JSON {"results": {video: [..]}}')
    parser.add_argument("--thresholds", default=dict(SPEC.options)["thresholds"], help="of tIoU")
    given = parser.parse_args(arguments)
    try:
        thresholds = temporal.thresholds(given.thresholds)
        videos = segments.read(given.truth, given.subset)
        results = segments.read_results(given.predictions)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    # ActivityNet's annotations name videos v_ID, its results ID.
    truth = {name.removeprefix("v_"): video["annotations"] for name, video in videos.items()}
    found = {name.removeprefix("v_"): rows for name, rows in results.items()}
    known, labels = ({r["label"] for of in s.values() for r in of} for s in (truth, found))
    for what, new in (("classes", labels - known), ("videos", {*found} - {*truth})):
        if new:
            print(f"{given.truth} lacks {len(new)} {what}, first {min(new)!r}", file=sys.stderr)
    print(json.dumps(temporal.precision(truth, found, thresholds), indent=1))


if __name__ == "__main__":
    main()
