"""Fine-tuning: a video classifier, scored over several views of every video."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Key

from mvm import preprocess, tasks
from mvm.models.classifier import Classifier
from mvm.tasks import parts
from mvm.types import Metrics, Params, UserError

SCORES = ("top1", "top5", "mean_class", "loss")
SPEC = tasks.Spec(labels=True, sampling="finetune", mixes=True, scores=SCORES)


def merge(logits: Float[Array, "V B C"], average: str) -> Float[Array, "B C"]:
    """Probabilities of videos from the logits of their views.

    "probabilities" is the mean softmax (VideoMAE since its commit 2254c5e, EVEREST, VideoMAE V2),
    "logits" the softmax of the mean logit (AdaMAE's release).
    """
    if average == "probabilities":
        return jnp.mean(jax.nn.softmax(logits), axis=0)
    return jax.nn.softmax(jnp.mean(logits, axis=0))


def accuracies(probability: np.ndarray, truths: tasks.Truths, num_classes: int) -> tasks.Scores:
    """Accuracies in percent, NaN without a video; tables by class and by video.

    By video: the true class, its rank (1 is right) and probability, and the five most probable.
    """
    label = truths.label
    if not len(label):
        nothing = dict.fromkeys(("top1", "top5", "mean_class"), float("nan"))
        return tasks.Scores(nothing, {})
    # Equal probabilities go to the lower class, whatever the sort.
    order = np.argsort(-probability, axis=1, kind="stable")
    hits = order == label[:, None]
    per_class = {c: hits[label == c, 0] for c in np.unique(label)}
    answered = np.bincount(order[:, 0], minlength=num_classes)
    values = {
        "top1": 100.0 * float(hits[:, 0].mean()),
        "top5": 100.0 * float(hits[:, :5].any(axis=1).mean()),
        "mean_class": 100.0 * float(np.mean([mine.mean() for mine in per_class.values()])),
    }
    names = truths.classes or [str(c) for c in range(num_classes)]
    classes: list[Any] = [("class", "videos", "predicted", "right", "accuracy")]
    for c, name in enumerate(names):
        mine = per_class.get(c, np.zeros(0))
        share = f"{100 * mine.mean():.2f}" if len(mine) else ""
        classes.append((name, len(mine), answered[c], int(mine.sum()), share))
    best = [
        f"{part}{n}" for n in range(1, hits[:, :5].shape[1] + 1) for part in ("top", "probability")
    ]
    videos: list[Any] = [("video", "label", "rank", "probability", *best)]
    for name, c, of, hit, p in zip(truths.name, label, order, hits, probability):
        tops = [cell for k in of[:5] for cell in (names[k], f"{p[k]:.4f}")]
        videos.append((name, names[c], hit.argmax() + 1, f"{p[c]:.4f}", *tops))
    return tasks.Scores(values, {"per_class": classes, "predictions": videos})


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Finetune(tasks.ClipTask):
    """The classifier, all of which is trained."""

    spec = SPEC
    num_classes: int
    smoothing: float
    average: str
    drop_path: float
    head_dropout: float

    def make(self, key: Key[Array, ""]) -> nnx.Module:
        rngs = nnx.Rngs(key)
        return Classifier(
            self.backbone(rngs, drop_rate=self.drop_path),
            self.num_classes,
            head_dropout=self.head_dropout,
            head_epsilon=self.head_epsilon,
            rngs=rngs,
        )

    def augmented(self, key: Key[Array, ""], batch: tasks.Batch) -> tuple[Array, Array]:
        """Clips and soft labels, after erasing and mixing if the batch asks."""
        video, other = batch["video"], batch["video"][::-1]
        hot = jax.nn.one_hot(batch["label"], self.num_classes)
        label = optax.smooth_labels(hot, self.smoothing)
        if "erase" in batch:
            other_key, box = jax.random.fold_in(key, 1), batch["erase"]
            video = preprocess.erase(key, video, box)
            other = preprocess.erase(other_key, other, box[::-1])
        if "lam" in batch:
            video, label = preprocess.mix(video, other, label, batch["lam"][0], batch["box"][0])
        return video, label

    def loss(
        self, params: Params, frozen: Params, key: Key[Array, ""], batch: tasks.Batch
    ) -> tuple[Array, Metrics]:
        """Cross entropy against smoothed labels."""
        erase_key, model_key = jax.random.split(key)
        video, label = self.augmented(erase_key, batch)
        logits = self.model(params, frozen)(video, self.strategy, model_key)
        hits = 100.0 * jnp.mean(jnp.argmax(logits, axis=-1) == batch["label"])
        return optax.softmax_cross_entropy(logits, label).mean(), {"accuracy": hits}

    def predict(self, params: Params, frozen: Params, batch: tasks.Batch) -> dict[str, Array]:
        """Probabilities `[B, C]`. Views go one by one: memory does not grow with their number."""
        model = self.model(params, frozen)
        views = jnp.moveaxis(batch["video"], 1, 0)
        logits = jax.lax.map(lambda view: model(view, self.strategy), views)
        return {"probability": merge(logits, self.average)}

    def score(self, predictions: Mapping[str, np.ndarray], truths: tasks.Truths) -> tasks.Scores:
        """Accuracies, and the cross entropy with the labels."""
        p, label = predictions["probability"], truths.label
        scores = accuracies(p, truths, self.num_classes)
        true = np.maximum(p[np.arange(len(label)), label], np.finfo(np.float32).tiny)
        loss = float(-np.log(true).mean(dtype=np.float64)) if len(label) else float("nan")
        return scores._replace(values=scores.values | {"loss": loss})

    def constant(self, shares: Mapping[str, np.ndarray], mixed: bool) -> dict[str, float]:
        def entropy(p: np.ndarray) -> float:
            return float(-np.sum(p * np.log(np.where(p > 0, p, 1))))

        smooth = shares["train"] * (1 - self.smoothing) + self.smoothing / self.num_classes
        known = {"loss": entropy(smooth)}  # Mixing does not change the mean of labels.
        if not mixed:
            known["accuracy"] = 100 * float(shares["train"].max())
        if "val" in shares:
            known["val_top1"] = 100 * float(shares["val"].max())
            known["val_loss"] = entropy(shares["val"])
        return known

    def macs(self, executed: bool = False) -> dict[str, int]:
        return super().macs(executed) | {"head": self.encoder.width * self.num_classes}


def classifier(config: Any, strategy: Any) -> dict[str, Any]:
    """What a classifier takes of the configuration beyond what all tasks share."""
    if config.data.num_classes < 2:
        raise UserError(
            f"data.num_classes={config.data.num_classes}; a classifier needs two or more"
        )
    if strategy is not None and (strategy.num_target or strategy.network):
        raise UserError(
            f"a classifier has nothing to reconstruct, but mask.name={config.mask.name!r} leaves "
            f"{strategy.num_target} targets; set mask.name to nothing, or to everest with "
            f"mask.mask_ratio = 1 - mask.keep_ratio"
        )
    return {
        "num_classes": config.data.num_classes,
        "smoothing": config.optim.smoothing,
        "average": config.eval.average,
        "drop_path": config.model.drop_path,
        "head_dropout": config.model.head_dropout,
    }


def build(config: Any, gather: Any) -> Finetune:
    shared = parts.shared(config, gather, SPEC.sampling)
    return Finetune(**shared, **classifier(config, shared["strategy"]))
