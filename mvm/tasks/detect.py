"""Spatio-temporal detection: what the people on key frames do, given where they are (AVA).

`python -m mvm.tasks.detect --truth gt.csv --predictions predictions.csv --labels map.pbtxt` scores
anybody's predictions and prints one JSON object.
"""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import nnx
from jaxtyping import Array, Bool, Float, Key, UInt8

from mvm import data, tasks
from mvm.detections import spatial
from mvm.figures import boxes as figure
from mvm.models.roi import Detector
from mvm.runtime import multihost
from mvm.tasks import parts
from mvm.types import Metrics, Params, UserError

_FILES = ("label_map", "person_boxes", "images", "excluded")
_DRAWN = 6
"""Key frames of the figure."""


def _records(config: Any, split: str) -> tasks.Annotated:
    """The key frames of a csv; options say what else there is."""
    own = tasks.options(config)
    found = data.key_frames.load(
        config.data[split],
        config.data.root,
        split=split,
        num_classes=config.data.num_classes,
        **own,
    )
    return tasks.Annotated(found, found.names)


SPEC = tasks.Spec(
    labels=True,
    sampling="finetune",
    options=(*((name, "") for name in _FILES), ("start", 0.0)),
    records=_records,
)


def jittered(
    draws: Float[Array, "B K 4"], boxes: Float[Array, "B K 4"], height: int, width: int
) -> Float[Array, "B K 4"]:
    """Boxes whose sides were moved by draws in [0, 1), each by its own.

    Left and right by 20 % of the width outwards to 10 % inwards, top and bottom by half of that.
    """
    low = jnp.array([-0.2, -0.1, -0.1, -0.05])
    span = jnp.array([0.3, 0.15, 0.3, 0.15])
    size = jnp.tile(boxes[..., 2:] - boxes[..., :2] + 1, 2)
    first, last = jnp.split(boxes + size * (low + span * draws), 2, axis=-1)
    most = jnp.array([width - 1.0, height - 1.0])
    first = jnp.clip(first, 0, most - 1)
    return jnp.concatenate([first, jnp.maximum(jnp.minimum(last, most), first + 1)], axis=-1)


def box_loss(
    logits: Float[Array, "B K C"], label: UInt8[Array, "B K C"], valid: Bool[Array, "B K"]
) -> Float[Array, ""]:
    """Binary cross entropy, the mean over classes, summed over the boxes that are there."""
    error = optax.sigmoid_binary_cross_entropy(logits, label.astype(jnp.float32))
    return jnp.sum(error.mean(axis=-1) * valid)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Detect(tasks.ClipTask):
    """The classifier of boxes, all of which is trained."""

    spec = SPEC
    num_classes: int
    drop_path: float
    head_scale: float
    names: Mapping[int, str]
    """Of the actions that are scored, by number from 1 on; empty: all, without names."""

    def make(self, key: Key[Array, ""]) -> nnx.Module:
        return Detector(
            self.encoder,
            self.num_classes,
            self.tubelet,
            self.run,
            drop_path=self.drop_path,
            head_scale=self.head_scale,
            layout=self.layout,
            rngs=nnx.Rngs(key),
        )

    def loss(
        self, params: Params, frozen: Params, key: Key[Array, ""], batch: tasks.Batch
    ) -> tuple[Array, Metrics]:
        """`box_loss` of jittered boxes for each clip; every box weighs the same."""
        jitter_key, model_key = jax.random.split(key)
        video, valid, boxes = batch["video"], batch["box_valid"], batch["boxes"]
        draws = jax.random.uniform(jitter_key, boxes.shape)
        boxes = jittered(draws, boxes, *video.shape[2:4])
        logits = self.model(params, frozen)(video, boxes, model_key)
        return box_loss(logits, batch["box_label"], valid) / len(video), {
            "boxes": jnp.sum(valid, dtype=jnp.float32) / len(video)
        }

    def predict(self, params: Params, frozen: Params, batch: tasks.Batch) -> dict[str, Array]:
        """Scores `[B, K, C]`: of each action, times that of there being a person."""
        logits = self.model(params, frozen)(batch["video"][:, 0], batch["boxes"])
        return {"score": jax.nn.sigmoid(logits) * batch["box_score"][..., None]}

    def score(self, predictions: Mapping[str, np.ndarray], truths: tasks.Truths) -> tasks.Scores:
        """Frame mAP in percent; its table by class, all detections in AVA's form, a figure."""
        records = [truths.records[p] for p in truths.position]
        if not records:
            return tasks.Scores({"mAP@0.5": float("nan")}, {})
        names, count = [record.id for record in records], self.num_classes
        frames = [data.key_frames.key_frame(record) for record in records]
        of, person = np.nonzero([frame.score > 0 for frame in frames])
        box = np.stack([frame.boxes for frame in frames])[of, person].astype(np.float64)
        box, score = np.round(box, 5), predictions["score"][of, person]  # As they are written.
        found = spatial.Boxes(
            names,
            np.repeat(of, count),
            np.repeat(box, count, axis=0),
            np.tile(np.arange(1, count + 1), len(of)),
            score.astype(np.float64).ravel(),
        )
        true, done = (np.concatenate(part) for part in zip(*(frame.truth for frame in frames)))
        within = np.repeat(np.arange(len(frames)), [len(frame.truth[1]) for frame in frames])
        truth = spatial.Boxes(names, within, true, done, np.ones(len(done)))
        actions = self.names or {number: str(number) for number in range(1, count + 1)}
        precision = spatial.average_precision(truth, found, actions)
        classes: list[Sequence[Any]] = [("class", "boxes", "AP")]
        for number, name in actions.items():
            worth = precision[number]
            said = "" if math.isnan(worth) else f"{100 * worth:.2f}"
            classes.append((name, int((truth.action == number).sum()), said))
        files: dict[str, Callable[[epath.Path], object]] = {
            "predictions.csv": partial(_write, [names[i] for i in of], box, score),
            "figures/boxes.png": partial(_draw, records, predictions["score"], actions),
        }
        values = {"mAP@0.5": 100 * spatial.mean(precision)}
        return tasks.Scores(values, {"per_class": classes}, files)

    def macs(self, executed: bool = False) -> dict[str, int]:
        return super().macs(executed) | {"head": self.encoder.width * self.num_classes}


def _write(frames: Sequence[str], box: np.ndarray, score: np.ndarray, path: epath.Path) -> None:
    """AVA's form, without header, of as many digits as give the same score again."""
    with path.open("w") as file:
        for name, corners, own in zip(frames, box, score.tolist()):
            person = ",".join([name, *(f"{side:.5f}" for side in corners)])
            file.writelines(f"{person},{c},{value:.9g}\n" for c, value in enumerate(own, 1))


def _draw(
    records: Sequence[data.Record], score: np.ndarray, names: Mapping[int, str], path: epath.Path
) -> None:
    """Key frames spread over those with boxes: what is detected, and what is annotated."""
    frames = [data.key_frames.key_frame(record) for record in records]
    seen = [i for i, frame in enumerate(frames) if frame.score.any()]
    shown = []
    for i in dict.fromkeys(seen[j] for j in np.linspace(0, len(seen) - 1, _DRAWN).astype(int)):
        frame, (true, what) = frames[i], frames[i].truth
        found = []
        for box, person, own in zip(frame.boxes, frame.score, score[i]):
            best = max(names, key=lambda number: own[number - 1])
            if person:
                found.append((box, f"{names[best]} {own[best - 1]:.2f}"))
        labels = [(box, names.get(number, str(number))) for box, number in zip(true, what)]
        picture = data.key_frames.picture(records[i])
        shown.append(figure.Shown(records[i].id, picture, found, labels))
    figure.draw(path, shown)


def build(config: Any, gather: Any) -> Detect:
    """Raises UserError for a mask, or where nobody tells the number of classes."""
    shared = parts.shared(config, gather, SPEC.sampling)
    label_map = tasks.options(config)["label_map"]
    names = data.boxes.read_label_map(label_map) if label_map else {}
    if shared["strategy"] is not None:
        raise UserError(f"detect sees all tokens, but mask.name={config.mask.name!r}; set it to ''")
    if not (count := config.data.num_classes or max(names, default=0)):
        raise UserError("give data.num_classes or options.label_map, which tell the actions")
    tubelet, layout = shared["tubelet"], shared["layout"]
    # The released code scales 224 px out of 256; whole tokens of other sizes, too.
    short = round(config.data.image_size * 256 / 224 / tubelet.h) * tubelet.h
    boxes = data.BoxSpec(short, (tubelet.h, tubelet.w))
    clips = {
        split: spec._replace(boxes=boxes, num_segments=1, num_crops=1, rand_augment="", erasing=0.0)
        for split, spec in shared["clips"].items()
    }
    # Frames of any size: positions are always those of the grid of training, resized.
    layout = layout._replace(trained=layout.trained or shared["grid"])
    return Detect(
        **shared | {"clips": clips, "layout": layout},
        num_classes=count,
        drop_path=config.model.drop_path,
        head_scale=config.model.head_scale,
        names=names,
    )


def evaluate(truth: str, predictions: str, labels: str, excluded: str = "") -> dict[str, Any]:
    """What the files are worth, fractions; None for a class without true boxes.

    Raises:
        DataError: a file that is missing or wrong.
    """
    names = data.boxes.read_label_map(labels)
    out = data.boxes.read_excluded(excluded) if excluded else frozenset()
    read = [data.boxes.read(truth), data.boxes.read(predictions, truth=False)]
    for path, rows in zip((truth, predictions), read):
        if unknown := sorted({*rows.action.tolist()} - names.keys()):
            said = ", ".join(map(str, unknown))
            print(f"{path}: actions not in {labels} are left out: {said}", file=sys.stderr)
    if wrong := int((~spatial.ordered(read[1].box)).sum()):
        print(f"{predictions}: {wrong} boxes out of order are left out", file=sys.stderr)
    given, found = (spatial.Boxes(r.frames, r.frame, r.box, r.action, r.score) for r in read)
    precision = spatial.average_precision(given, found, names, out)
    worth = {number: None if math.isnan(ap) else ap for number, ap in precision.items()}
    mean = spatial.mean(precision)
    return {
        "mAP@0.5": None if math.isnan(mean) else mean,
        "per_class_AP": {names[number]: ap for number, ap in worth.items()},
        "AP_by_action_id": {str(number): ap for number, ap in worth.items()},
        "num_key_frames": len({*read[0].frames} - out),
        "num_boxes": len(read[0].frame),
        "num_predictions": len(read[1].frame),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mvm.tasks.detect", description=__doc__)
    parser.add_argument("--truth", required=True, help="csv of AVA")
    parser.add_argument("--predictions", required=True, help="csv of AVA with a score")
    parser.add_argument("--labels", required=True, help="pbtxt of the actions that are scored")
    parser.add_argument("--excluded", default="", help="csv of video,second to leave out")
    try:
        print(json.dumps(evaluate(**vars(parser.parse_args()))))
    except ValueError as error:
        multihost.fail(error, (ValueError,))


if __name__ == "__main__":
    main()
