"""Spatio-temporal detection: what the people on key frames do, given where they are (AVA).

`python -m mvm.tasks.detect --truth gt.csv --predictions predictions.csv --labels map.pbtxt` scores
anybody's predictions and prints one JSON object.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
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


def _records(config: Any, split: str) -> tuple[Sequence[data.Record], Sequence[str]]:
    """The key frames of a csv; options say what else there is."""
    d, own = config.data, tasks.options(config)
    train = split == "train"
    return data.boxes.load(d[split], d.root, train=train, num_classes=d.num_classes, **own)


SPEC = tasks.Spec(
    labels=True,
    scores=("mAP@0.5",),
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
    names: Mapping[int, str]
    """Of the actions that are scored, by number from 1 on."""

    def make(self, key: Key[Array, ""]) -> nnx.Module:
        rngs = nnx.Rngs(key)
        encoder = self.backbone(rngs, final_norm=True, drop_rate=self.drop_path)
        return Detector(encoder, self.num_classes, rngs=rngs)

    def loss(
        self, params: Params, frozen: Params, key: Key[Array, ""], batch: tasks.Batch
    ) -> tuple[Array, Metrics]:
        """`box_loss` of jittered boxes for each clip; every box weighs the same."""
        jitter_key, model_key = jax.random.split(key)
        video, valid, boxes = batch["video"], batch["box_valid"], batch["boxes"]
        draws = jax.random.uniform(jitter_key, boxes.shape)
        boxes = jittered(draws, boxes, *video.shape[2:4])
        logits = self.model(params, frozen)(video, boxes, model_key)
        label = batch["box_label"]
        masks = {"boxes": valid, "boxes_outside_crop": jnp.any(label, axis=-1) & ~valid}
        # Floats, so that they are summed with the gradient.
        counts = {k: jnp.sum(v, dtype=jnp.float32) / len(video) for k, v in masks.items()}
        return box_loss(logits, label, valid) / len(video), counts

    def predict(self, params: Params, frozen: Params, batch: tasks.Batch) -> dict[str, Array]:
        """Scores `[B, K, C]`: of each action, times that of there being a person."""
        logits = self.model(params, frozen)(batch["video"][:, 0], batch["boxes"])
        return {"score": jax.nn.sigmoid(logits) * batch["box_score"][..., None]}

    def score(self, predictions: Mapping[str, np.ndarray], truths: tasks.Truths) -> tasks.Scores:
        """Frame mAP in percent; its table by class, all detections in AVA's form, a figure.

        What is annotated on key frames that could not be read counts as missed.
        """
        frames, scores = [record.truth for record in truths.records], predictions["score"]
        seen = [frames[p].people[:, :4] for p in truths.position]
        of = np.repeat(truths.position, list(map(len, seen))).astype(int)
        box = np.round(np.concatenate([np.zeros((0, 4)), *seen]), 5)  # As it is written.
        score = np.concatenate([scores[:0, 0], *(s[: len(p)] for s, p in zip(scores, seen))])
        true = np.concatenate([frame.truth for frame in frames])
        within = np.repeat(np.arange(len(frames)), [len(frame.truth) for frame in frames])
        table: list[Sequence[Any]] = [("class", "boxes", "AP")]
        every: list[float] = []
        known_as = dict(enumerate(truths.classes, 1))
        names = {number: known_as.get(number, name) for number, name in self.names.items()}
        for number, name in names.items():
            mine = true[:, 4] == number
            known = within[mine], true[mine, :4]
            worth = spatial.average_precision(*known, of, box, score[:, number - 1])
            every += [] if worth is None else [100 * worth]
            table.append((name, int(mine.sum()), "" if worth is None else f"{100 * worth:.2f}"))
        files = {
            "predictions.csv": partial(_write, [truths.records[p].id for p in of], box, score),
            "figures/boxes.png": partial(_draw, truths, scores, names),
        }
        mean = float(np.mean(every)) if every else float("nan")
        return tasks.Scores({"mAP@0.5": mean}, {"per_class": table}, files)

    def macs(self, executed: bool = False) -> dict[str, int]:
        return super().macs(executed) | {"head": self.encoder.width * self.num_classes}


def _write(names: Sequence[str], box: np.ndarray, score: np.ndarray, path: epath.Path) -> None:
    """AVA's form, of as many digits as give the same score again."""
    with path.open("w") as file:
        for name, corners, own in zip(names, box, score.tolist()):
            person = ",".join([name, *(f"{side:.5f}" for side in corners)])
            file.writelines(f"{person},{c},{value:.9g}\n" for c, value in enumerate(own, 1))


def _draw(
    truths: tasks.Truths, score: np.ndarray, names: Mapping[int, str], path: epath.Path
) -> None:
    """Some of the key frames that were read: what is detected, and what is annotated."""
    shown = []
    for i in sorted(np.random.default_rng(0).permutation(len(score))[:_DRAWN].tolist()):
        record = truths.records[truths.position[i]]
        found: dict[tuple[float, ...], str] = {}
        for person, own in zip(record.truth.people.tolist(), score[i]):
            best = max(names, key=lambda number: own[number - 1])
            found[tuple(person[:4])] = f"{names[best]} {own[best - 1]:.2f}"
        true: dict[tuple[float, ...], str] = {}
        for *box, action in record.truth.truth.tolist():  # One person may do several things.
            said = names.get(int(action), f"{action:g}")
            true[tuple(box)] = ", ".join(filter(None, (true.get(tuple(box)), said)))
        shown.append((record.id, data.key_picture(record), found, true))
    figure.draw(path, shown)


def build(config: Any, gather: Any) -> Detect:
    shared = parts.shared(config, gather, SPEC.sampling)
    label_map = tasks.options(config)["label_map"]
    names = data.boxes.read_label_map(label_map) if label_map else {}
    if shared["strategy"] is not None:
        raise UserError(f"detect sees all tokens, but mask.name={config.mask.name!r}; set it to ''")
    if config.data.crop == "fit":
        raise UserError("data.crop=fit: detect cuts windows out of frames; leave it out")
    count = config.data.num_classes or max(names, default=0)
    if max(names, default=0) > count:
        raise UserError(f"{label_map} has action {max(names)}, but data.num_classes={count}")
    tubelet, layout = shared["tubelet"], shared["layout"]
    # The released code scales 224 px out of 256; whole tokens of other sizes, too.
    short = round(config.data.image_size * 256 / 224 / tubelet.h) * tubelet.h
    boxes = data.BoxSpec(count, short, (tubelet.h, tubelet.w))
    own = {"boxes": boxes, "num_segments": 1, "num_crops": 1, "rand_augment": "", "erasing": 0.0}
    clips = {split: spec._replace(**own, crop="window") for split, spec in shared["clips"].items()}
    # Frames of any size: positions are always those of the grid of training, resized.
    layout = layout._replace(trained=layout.trained or shared["grid"])
    return Detect(
        **shared | {"clips": clips, "layout": layout},
        num_classes=count,
        drop_path=config.model.drop_path,
        names=names or {number: str(number) for number in range(1, count + 1)},
    )


def evaluate(truth: str, predictions: str, labels: str, excluded: str = "") -> dict[str, Any]:
    """What the files are worth, fractions; None for a class without true boxes."""
    names = data.boxes.read_label_map(labels)
    frames: data.boxes.Frames = {}
    out: data.boxes.Frames = {}
    true = data.boxes.read(truth, frames, names)
    found = data.boxes.read(predictions, frames, names, detected=True)
    if excluded:
        data.boxes.read(excluded, out)
    gone = [frames[name][0] for name in out if name in frames]
    true, found = (rows[~np.isin(rows[:, 0], gone)] for rows in (true, found))
    worth: dict[int, float | None] = {}
    for number in names:
        known, mine = (rows[rows[:, 5] == number] for rows in (true, found))
        worth[number] = spatial.average_precision(
            known[:, 0], known[:, 1:5], mine[:, 0], mine[:, 1:5], mine[:, 6]
        )
    every = [ap for ap in worth.values() if ap is not None]
    return {
        "mAP@0.5": float(np.mean(every)) if every else None,
        "per_class_AP": {names[number]: ap for number, ap in worth.items()},
        "AP_by_action_id": {str(number): ap for number, ap in worth.items()},
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
