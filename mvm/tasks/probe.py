"""Probing: heads on the kept features of a frozen encoder, a grid of them at once.

A linear head reads the mean over tokens through a BatchNorm without affine; an attentive one
(V-JEPA, arXiv 2404.08471; V-JEPA 2, arXiv 2506.09985) all tokens. The clips of one crop are one
sequence; probabilities are averaged over crops.
"""

import dataclasses
import json
import logging
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
from mvm.models import pooler, vit
from mvm.models.classifier import Classifier
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
        ("norm", ("tokens", "mean", "none")),  # Of the weights, see `frozen.protocol`.
    ),
)


class Probed(Classifier):
    """A frozen encoder and a head; `norm` as in the options."""

    def __init__(self, size: vit.Size, *args: Any, depth: int, norm: str, **more: Any):
        super().__init__(size, *args, final_norm=norm == "tokens", **more)
        if depth or norm != "mean":
            self.fc_norm = None  # type: ignore[assignment]
        run, rngs = args[-1], more["rngs"]
        self.pooler = pooler.AttentivePooler(size, depth, run, rngs=rngs) if depth else None

    def read(self, tokens: Float[Array, "B N D"]) -> Array:
        """What of the tokens is kept: all, or their mean `[B, D]`."""
        if self.pooler is not None:
            return tokens
        mean = tokens.mean(axis=1)
        return mean if self.fc_norm is None else self.fc_norm(mean)

    def answer(self, x: Array) -> Float[Array, "B C"]:
        """Logits of what `read` gives."""
        return self.head(x if self.pooler is None else self.pooler(x))

    def __call__(
        self, video: Array, strategy: Any = None, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B C"]:
        return self.answer(self.read(self.features(video, strategy)))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Probe(finetune.Finetune):
    """A classifier of which the encoder stays as it was loaded."""

    spec = SPEC
    frozen = ("encoder", "fc_norm")
    pooler_depth: int
    norm: str

    def make(self, key: Key[Array, ""]) -> nnx.Module:
        return Probed(
            self.encoder,
            self.num_classes,
            self.tubelet,
            self.run,
            depth=self.pooler_depth,
            norm=self.norm,
            head_scale=1.0,
            layout=self.layout,
            head_epsilon=self.head_epsilon,
            rngs=nnx.Rngs(key),
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
    options, t = tasks.options(config), config.train
    which = probing.grid(options["rates"], options["decays"])
    sharding.check_batch(t.batch_size)
    splits = ["train", *(split for split in ("val", "test") if config.data[split])]
    start = frozen.prepare(config, splits)
    runs.write_config(start.config, workdir, start.names)
    own, task, first, still = _probe(start)
    # --- Features ---
    attentive = bool(task.pooler_depth)
    dtype = jnp.float16 if attentive else jnp.float32
    largest = float(jnp.finfo(dtype).max)  # A few tokens without a norm may be beyond.

    def read(params: tuple[Params, Params], views: Array) -> Array:
        return jnp.clip(task.read(*params, views), -largest, largest).astype(dtype)

    embed = sharding.on_devices(read, (first, still), config.eval.batch_size)
    kept = {  # Heads are trained on, and chosen by, the middle crop.
        split: frozen.rows_of(workdir, start, split, embed, num_crops=int(split != "test"))
        for split in splits
    }
    by = "data.val top-1"
    if "val" not in kept:
        by, out = "top-1 on every fifth video of data.train", fifth(kept["train"].label)
        log.warning("data.val is empty: every fifth video of each class of data.train is held out")
        kept |= {"val": kept["train"].part(out), "train": kept["train"].part(~out)}
    train, val = kept["train"], kept["val"]
    take: dict[str, probing.Take] = {split: one.read for split, one in kept.items()}
    if not attentive:  # BatchNorm without affine, which the best head takes in.
        whole = {split: one.read() for split, one in kept.items()}
        mean = whole["train"].mean((0, 1), np.float64).astype(np.float32)
        scale = (whole["train"].var((0, 1), np.float64) + 1e-6).astype(np.float32) ** -0.5
        take = {split: ((x - mean) * scale).__getitem__ for split, x in whole.items()}
    # --- Heads ---
    put = partial(sharding.put, mesh=sharding.make_mesh())

    def answer(head: Params, x: Array) -> Array:
        return task.model(head, still).answer(x)

    log.info("%d heads on %d videos, the best by %s", len(which), len(train.id), by)
    again = {"batch_size": t.batch_size, "put": put}
    fit = partial(probing.fit, answer, first, take["train"], train.label, which)
    params = fit(epochs=t.epochs, seed=config.seed, **again)
    p = probing.probabilities(answer, params, take["val"], len(val.id), **again)
    top1 = 100.0 * (p.argmax(axis=-1) == val.label).mean(axis=1)
    best = int(top1.argmax())
    params = jax.tree.map(lambda leaf: leaf[best : best + 1], params)
    tried = [
        {"rate": rate, "decay": decay, "val_top1": value}
        for (rate, decay), value in zip(which.tolist(), top1.tolist())
    ]
    log.info("the best of %d has %s", len(tried), tried[best])
    values = {"val_top1": tried[best]["val_top1"]}
    if "test" in kept:
        test = kept["test"]
        p = probing.probabilities(answer, params, take["test"], len(test.id), **again)[0]
        more = {"head": options["head"], "selection": f"best of {len(tried)} by {by}"}
        more |= {"best": tried[best], "grid": tried}
        values |= frozen.publish(workdir, start, p, test, more)
    # --- A run of the best head ---
    runs.write_config(own, workdir, start.names)
    metrics.Metrics(workdir).write(1, values)
    head = jax.tree.map(lambda leaf: leaf[0], params)
    if not attentive:
        head["head"]["kernel"] *= scale[:, None]
        head["head"]["bias"] -= mean @ head["head"]["kernel"]
    state = {"params": head, "frozen": still, "step": jnp.ones((), jnp.int32)}
    checkpoints = checkpoint.Checkpoints(workdir, 1)
    at, said = checkpoint.Progress(1, 0, 0), json.loads(own.to_json_best_effort())
    checkpoints.save(at, state, said)
    checkpoints.close()
    gallery.attempt(partial(gallery.draw_numbers, workdir), partial(report.write, workdir))
    return values


def fifth(label: np.ndarray) -> np.ndarray:
    """Every fifth video of each class; UserError if there is none."""
    out = np.zeros(len(label), bool)
    for one in np.unique(label):
        out[np.flatnonzero(label == one)[4::5]] = True
    if not out.any():
        raise UserError(
            "data.train has fewer than 5 videos of each class and data.val is empty: nothing "
            "chooses between the heads; give --config.data.val"
        )
    return out


def _probe(start: frozen.Start) -> tuple[Any, Probe, Params, Params]:
    """The configuration of the probe itself, the task, and its parameters: trained, frozen."""
    config, encoder = start.config, start.encoder
    own = encoder.config.copy_and_resolve_references()
    own.task, own.mask.name, own.data.num_classes = "probe", "", config.data.num_classes
    with own.unlocked():
        own.options = {**config.options, "norm": start.protocol["norm"]}
    task = tasks.build(own)
    assert isinstance(task, Probe)
    first, still = jax.jit(task.init)(jax.random.key(config.seed))
    loaded = {name: encoder.params[name] for name in still if name in encoder.params}
    return own, task, first, still | task.parted(jax.tree.map(jnp.asarray, loaded))[1]
