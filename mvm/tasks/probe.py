"""Probing: heads on the kept features of a frozen encoder, a grid of them at once.

A linear head reads the mean over tokens through a BatchNorm without affine; an attentive one
(V-JEPA, arXiv 2404.08471; V-JEPA 2, arXiv 2506.09985) all tokens. The clips of one crop are one
sequence; probabilities are averaged over crops.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8

from mvm import evaluate, frozen, inference, probing, runs, tasks
from mvm.figures import gallery, report
from mvm.models import pooler
from mvm.models.classifier import Classifier
from mvm.models.encoder import Encoder
from mvm.runtime import checkpoint, metrics, sharding
from mvm.tasks import finetune, parts
from mvm.types import Params, UserError

log = logging.getLogger(__name__)

HEADS = {"linear": 0, "attentive": 1, "attentive4": 4}
"""Depth of the pooler; 0 has none."""
SPEC = tasks.Spec(
    labels=True,
    sampling="finetune",
    options=(
        ("head", tuple(HEADS)),
        ("rates", "5e-3,3e-3,1e-3,3e-4,1e-4"),  # Learning rates, each with each weight decay.
        ("decays", "0.01,0.1,0.4,0.8"),
        ("norm", ("tokens", "mean", "none")),  # Of the weights, see `frozen.norm_of`.
    ),
)
_HELD_OUT = 5
"""Without data.val every fifth training video of each class decides between the heads."""


class Probed(Classifier):
    """A frozen encoder and a head; `norm` as of `frozen.norm_of`."""

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        *,
        depth: int,
        norm: str,
        head_epsilon: float,
        rngs: nnx.Rngs,
    ):
        super().__init__(encoder, num_classes, head_scale=1.0, head_epsilon=head_epsilon, rngs=rngs)
        size, run = encoder.size, encoder.run
        if depth or norm != "mean":
            self.fc_norm = None  # type: ignore[assignment]
        self.statistics = None if depth else pooler.Standardise(size.width)
        self.pooler = pooler.AttentivePooler(size, depth, run, rngs=rngs) if depth else None

    def read(self, tokens: Float[Array, "B N D"]) -> Array:
        """What of the tokens is kept: all, or their mean `[B, D]`."""
        if self.pooler is not None:
            return tokens
        mean = tokens.mean(axis=1)
        return mean if self.fc_norm is None else self.fc_norm(mean)

    def answer(self, x: Array) -> Float[Array, "B C"]:
        """Logits of what `read` gives."""
        pooled = x if self.statistics is None else self.statistics(x)
        return self.head(pooled if self.pooler is None else self.pooler(x))

    def features(self, *args: Any, **more: Any) -> Float[Array, "B V D"]:
        return jax.lax.stop_gradient(super().features(*args, **more))

    def __call__(
        self, video: Array, strategy: Any = None, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B C"]:
        return self.answer(self.read(self.features(video, strategy)))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Probe(finetune.Finetune):
    """A classifier of which the encoder stays as it was loaded."""

    spec = SPEC
    frozen = ("encoder", "fc_norm", "statistics")
    pooler_depth: int
    norm: str

    def make(self, key: Key[Array, ""]) -> nnx.Module:
        rngs = nnx.Rngs(key)
        return Probed(
            self.backbone(rngs, final_norm=self.norm == "tokens"),
            self.num_classes,
            depth=self.pooler_depth,
            norm=self.norm,
            head_epsilon=self.head_epsilon,
            rngs=rngs,
        )

    def read(
        self, params: Params, still: Params, video: UInt8[Array, "B V T H W 3"]
    ) -> Float[Array, "B K ..."]:
        """What of each of the K crops of a video is kept; its clips are one sequence."""
        model, test = self.model(params, still), self.clips["test"]
        crops = test.num_crops if video.shape[1] == test.num_segments * test.num_crops else 1
        tokens = jax.lax.map(lambda view: model.features(view), jnp.moveaxis(video, 1, 0))
        tokens = sequences(tokens, crops)
        return jnp.stack([model.read(one) for one in tokens], axis=1)

    def predict(self, params: Params, frozen: Params, batch: tasks.Batch) -> dict[str, Array]:
        """Probabilities `[B, C]`."""
        x, model = self.read(params, frozen, batch["video"]), self.model(params, frozen)
        each = [jax.nn.softmax(model.answer(x[:, crop])) for crop in range(x.shape[1])]
        return {"probability": jnp.mean(jnp.stack(each), axis=0)}


def sequences(tokens: Float[Array, "V B N D"], crops: int) -> Float[Array, "K B M D"]:
    """The tokens of all clips of each crop, clip after clip; view = clip * K + crop."""
    views, b, n, d = tokens.shape
    each = tokens.reshape(views // crops, crops, b, n, d)
    return each.transpose(1, 2, 0, 3, 4).reshape(crops, b, -1, d)


def build(config: Any, gather: Any) -> Probe:
    shared, options = parts.shared(config, gather, SPEC.sampling), tasks.options(config)
    classifier = finetune.classifier(config, shared["strategy"])
    depth = HEADS[options["head"]]
    return Probe(**shared, **classifier, pooler_depth=depth, norm=options["norm"])


# --- The run


def run(config: Any, workdir: epath.PathLike) -> dict[str, float]:
    """Trains a grid of heads on features of `data.train`, takes the best by `data.val`, scores it.

    Without data.val a part of data.train chooses. What is left is a run of the best head, which
    `mvm.load` reads.

    Returns:
        Scores on `data.test`, if there is one, and the top-1 that chose.

    Raises:
        UserError, DataError: for a mistake in configuration or data, before any long work.
    """
    workdir = epath.Path(workdir)
    if config.evaluate:
        return evaluate.evaluate(inference.encoder(config).config, workdir)
    if checkpoint.steps_in(workdir):
        log.info("%s is finished", workdir)
        return metrics.last_values(workdir / "metrics.jsonl")
    # --- Data, encoder ---
    options, t = tasks.options(config), config.train
    which = probing.grid(options["rates"], options["decays"])
    sharding.check_batch(t.batch_size)
    splits = ["train", *(split for split in ("val", "test") if config.data[split])]
    config, names, found, reader, encoder = frozen.prepare(config, workdir, splits)
    own, task, first, still = _probe(config, encoder)
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        # --- Features ---
        put, whole = partial(sharding.put, mesh=mesh), sharding.whole(mesh)
        still = jax.device_put(still, whole)
        dtype = jnp.float16 if task.pooler_depth else jnp.float32
        largest = float(jnp.finfo(dtype).max)  # A few tokens without a norm may be beyond.

        @jax.jit
        def read(still: Params, views: Array) -> Array:
            return jnp.clip(task.read(first, still, views), -largest, largest).astype(dtype)

        facts = {"digest": encoder.digest, "dtype": np.dtype(dtype).name}
        kept = {}
        for split, records in found.items():
            spec = task.clips["test"]
            if split != "test":  # Heads are trained on, and chosen by, the middle crop.
                spec = spec._replace(num_crops=1)
            kept[split] = frozen.kept(
                workdir / "features" / split,
                records,
                lambda views: np.asarray(read(still, put(views))),
                spec,
                reader,
                config.eval.batch_size,
                facts,
            )
        # --- Heads ---
        train, val, by = _split(kept)
        batch = min(t.batch_size, len(train.used) // mesh.size * mesh.size)
        if not batch:
            raise UserError(f"data.train has {len(train.used)} videos for {mesh.size} devices")
        if not task.pooler_depth:
            x = np.asarray(train.features[train.used, 0], np.float64)
            statistics = {"mean": np.float32(x.mean(0)), "variance": np.float32(x.var(0))}
            still = {**still, "statistics": jax.device_put(statistics, whole)}
        heads = probing.Heads(
            lambda head, x: task.model(head, still).answer(x), not task.pooler_depth, put
        )
        log.info("%d heads on %d videos, the best by %s", len(which.rate), len(train.used), by)
        fit = partial(probing.fit, heads, first, train, which)
        params = fit(epochs=t.epochs, batch_size=batch, seed=config.seed)
        val_p = probing.probabilities(heads, params, val, batch)
        top1 = 100.0 * (val_p.argmax(axis=-1) == val.label[val.used]).mean(axis=1)
        best = int(top1.argmax())
        params = jax.tree.map(lambda leaf: leaf[best : best + 1], params)
        # --- Test ---
        test = kept.get("test")
        values = {"val_top1": float(top1[best])}
        tried = [
            {"rate": float(rate), "decay": float(decay), "val_top1": float(value)}
            for rate, decay, value in zip(*which, top1)
        ]
        log.info("the best of %d has %s", len(tried), tried[best])
        more = {"head": options["head"], "best": tried[best], "grid": tried}
        more |= frozen.protocol(encoder, config, f"best of {len(tried)} by {by}")
        if test is not None:
            rows = probing.Rows(test.features, test.label, np.arange(len(test.label)))
            probability = probing.probabilities(heads, params, rows, batch)[0]
            truths = tasks.Truths(test.label, test.name, names)
            scores = finetune.accuracies(probability, truths, task.num_classes)
            counts = {"num_videos": len(test.label), "num_unreadable": len(test.unreadable)}
            scores = scores._replace(values={**scores.values, **counts})
            more["unreadable"] = test.unreadable
            values |= evaluate.publish(workdir, scores, more, more["selection"])
        # --- A run of the best head ---
        state = {"params": jax.tree.map(lambda leaf: leaf[0], params), "frozen": still}
        _save(workdir, own, names, state, values)
    gallery.attempt(partial(gallery.draw_numbers, workdir), partial(report.write, workdir))
    return values


def _probe(config: Any, encoder: inference.Encoder) -> tuple[Any, Probe, Params, Params]:
    """The configuration of the probe itself, the task, and its parameters: trained, frozen."""
    own = encoder.config.copy_and_resolve_references()
    own.task, own.mask.name, own.data.num_classes = "probe", "", config.data.num_classes
    with own.unlocked():
        own.options = {**config.options, "norm": frozen.norm_of(encoder)}
    task = tasks.build(own)
    assert isinstance(task, Probe)
    first, still = jax.jit(task.init)(jax.random.key(config.seed))
    loaded = {name: encoder.params[name] for name in still if name in encoder.params}
    return own, task, first, still | task.parted(jax.tree.map(jnp.asarray, loaded))[1]


def _split(kept: Mapping[str, frozen.Kept]) -> tuple[probing.Rows, probing.Rows, str]:
    """Videos that heads are trained on, those that choose between them, and what to call these."""
    features, label = kept["train"].features, kept["train"].label
    if "val" in kept:
        whole = [
            probing.Rows(one.features, one.label, np.arange(len(one.label)))
            for one in (kept["train"], kept["val"])
        ]
        return whole[0], whole[1], "data.val top-1"
    turn = np.zeros(len(label), np.int64)
    for one in np.unique(label):
        turn[label == one] = np.arange((label == one).sum())
    out = turn % _HELD_OUT == _HELD_OUT - 1
    if not out.any():
        raise UserError(
            f"data.train has fewer than {_HELD_OUT} videos of each class and data.val is empty: "
            f"nothing chooses between the heads; give --config.data.val"
        )
    log.warning("data.val is empty: every fifth video of each class of data.train is held out")
    rows = [probing.Rows(features, label, np.flatnonzero(which)) for which in (~out, out)]
    return rows[0], rows[1], "top-1 on every fifth video of data.train"


def _save(
    workdir: epath.Path, config: Any, names: Any, state: Params, values: Mapping[str, float]
) -> None:
    runs.write_config(config, workdir, names)
    metrics.Metrics(workdir).write(1, values)
    checkpoints = checkpoint.Checkpoints(workdir, 1)
    at, said = checkpoint.Progress(1, 0, 0), json.loads(config.to_json_best_effort())
    checkpoints.save(at, {**state, "step": jnp.ones((), jnp.int32)}, said)
    checkpoints.close()
