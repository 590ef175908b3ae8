"""Distillation: a classifier learns from what a larger, frozen one says of the same clips.

The student is what is scored, loaded and converted: its runs are those of fine-tuning. Teacher and
student see the same augmented and mixed clips ("a good teacher is patient and consistent", arXiv
2106.05237), the teacher without dropout, each with its own tubelets and selection of tokens.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from mvm import config as schema
from mvm import tasks
from mvm.models import vit
from mvm.tasks import finetune, parts
from mvm.types import Metrics, Params

SPEC = tasks.Spec(
    labels=True,
    sampling="finetune",
    mixes=True,
    scores=finetune.SCORES,
    options=(
        # A run, a weight file, a Hugging Face folder or name; "" = random weights, for a trial.
        ("teacher", ""),
        # What differs from the defaults of `model` and `mask`: read from the teacher when a run
        # begins, and kept in its configuration, so that it resumes without the teacher's files.
        ("teacher_model", ConfigDict()),
        ("teacher_mask", ConfigDict()),
        ("temperature", 3.0),
        # What is compared: class probabilities, or the inputs of the heads, of length 1 and the
        # student's mapped to the teacher's width; then the head learns from labels alone.
        ("match", ("logits", "features")),
        # Whether a divergence is multiplied by temperature^2, as Hinton's (arXiv 1503.02531).
        ("squared", ("no", "yes")),
        ("label_weight", 0.0),  # Of the cross entropy with the labels.
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Distill(finetune.Finetune):
    """The student, and beside it the teacher while it is trained."""

    spec = SPEC
    frozen = ("teacher",)
    untrained = ("select", "teacher")
    teacher: finetune.Finetune | None
    temperature: float
    factor: float
    """Of the divergence."""
    label_weight: float
    by_features: bool

    def make(self, key: Key[Array, ""]) -> nnx.Module:
        model: Any = super().make(key)
        if self.teacher is not None:
            teacher_key, map_key = jax.random.split(jax.random.fold_in(key, 1))
            model.teacher = self.teacher.make(teacher_key)
            if self.by_features:
                widths = self.encoder.width, self.teacher.encoder.width
                rngs = nnx.Rngs(map_key)
                model.to_teacher = vit.linear(*widths, "torch", vit.Run(), rngs=rngs)
        return model

    def loss(
        self, params: Params, frozen: Params, key: Key[Array, ""], batch: tasks.Batch
    ) -> tuple[Array, Metrics]:
        """KL(teacher || student), or 2 - 2 cosine of the features, and of labels their part."""
        assert self.teacher is not None
        erase_key, model_key = jax.random.split(key)
        video, label = self.augmented(erase_key, batch)
        model = self.model(params, frozen)
        features = model.pool(model.features(video, self.strategy, model_key))
        taught = model.teacher.pool(model.teacher.features(video, self.teacher.strategy))
        logits, theirs = model.logits(features, model_key), model.teacher.logits(taught)
        if self.by_features:
            apart = vit.unit_length(model.to_teacher(features)) - vit.unit_length(taught)
            value = jnp.mean(jnp.sum(apart * apart, axis=-1))
        else:
            log_s, log_t = (jax.nn.log_softmax(x / self.temperature) for x in (logits, theirs))
            value = self.factor * optax.losses.kl_divergence_with_log_targets(log_s, log_t).mean()
        of_labels = optax.softmax_cross_entropy(logits, label).mean()
        hit = lambda x: 100.0 * jnp.mean(jnp.argmax(x, -1) == batch["label"])  # noqa: E731
        metrics = {"loss_teacher": value, "loss_label": of_labels}
        metrics |= {"accuracy": hit(logits), "accuracy_teacher": hit(theirs)}
        return value + self.label_weight * of_labels, metrics

    def constant(self, shares: Mapping[str, Any], mixed: bool) -> dict[str, float]:
        if self.by_features and not self.label_weight:  # Nothing trains the head.
            return {}
        known = super().constant(shares, mixed)
        return {"loss_label" if k == "loss" else k: value for k, value in known.items()}

    def macs(self, executed: bool = False) -> dict[str, int]:
        found = super().macs(executed)
        if self.teacher is not None:
            found["teacher"] = sum(self.teacher.macs(executed).values())
        return found


def build(config: Any, gather: Any) -> Distill:
    shared, options = parts.shared(config, gather, SPEC.sampling), tasks.options(config)
    return Distill(
        **shared,
        **finetune.classifier(config, shared["strategy"]),
        teacher=None if config.evaluate else _teacher(config, options, gather),
        temperature=options["temperature"],
        factor=options["temperature"] ** 2 if options["squared"] == "yes" else 1.0,
        label_weight=options["label_weight"],
        by_features=options["match"] == "features",
    )


def _teacher(config: Any, options: dict[str, Any], gather: Any) -> finetune.Finetune:
    """The teacher as a task of its own, of the student's clips; without any a second student."""
    own, given = config.copy_and_resolve_references().unlock(), schema.defaults()
    model, mask = options["teacher_model"], options["teacher_mask"]
    if options["teacher"] or model or mask:
        computed = {key: own.model[key] for key in ("dtype", "remat", "attention")}
        own.model, own.mask = given.model, given.mask
        own.model.update(model, **computed)
        own.mask.update(mask)
    own.optim.train = "all"
    return finetune.build(own, gather)
