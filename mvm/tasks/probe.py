"""Probing: heads on the kept features of a frozen encoder, a grid of them at once.

A linear head reads the mean over tokens through a BatchNorm without affine; an attentive one
(V-JEPA, arXiv 2404.08471; V-JEPA 2, arXiv 2506.09985) all tokens. The clips of one crop are one
sequence; probabilities are averaged over crops.
"""

import dataclasses
import json
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8

from mvm import evaluate, frozen, inference, objectives, runs, tasks
from mvm.figures import gallery, report
from mvm.models.classifier import Classifier
from mvm.models.pooler import AttentivePooler
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
        ("norm", ("tokens", "mean", "none")),  # Of the weights, see `inference.Encoder`.
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Probe(finetune.Finetune):
    """A classifier of which the encoder stays as it was loaded."""

    spec = SPEC
    frozen = ("encoder", "fc_norm")
    pooler_depth: int
    norm: str

    def make(self, key: Key[Array, ""]) -> nnx.Module:
        rngs, depth = nnx.Rngs(key), self.pooler_depth
        return Classifier(
            self.backbone(rngs, final_norm=self.norm == "tokens"),
            self.num_classes,
            head_scale=1.0,
            head_epsilon=self.head_epsilon,
            fc_norm=self.norm == "mean" and not depth,
            pooler=AttentivePooler(self.encoder, depth, self.run, rngs=rngs) if depth else None,
            rngs=rngs,
        )

    def read(
        self, params: Params, still: Params, video: UInt8[Array, "B V T H W 3"]
    ) -> Float[Array, "B K ..."]:
        """What of each of the K crops of a video is kept: all tokens of its clips, or the mean."""
        model, test = self.model(params, still), self.clips["test"]
        crops = test.num_crops if video.shape[1] == test.num_segments * test.num_crops else 1
        tokens = jax.lax.map(lambda view: model.features(view), jnp.moveaxis(video, 1, 0))
        tokens = sequences(tokens, crops)
        return jnp.stack([x if model.pooler else model.pool(x) for x in tokens], axis=1)

    def answer(self, params: Params, still: Params, x: Array) -> Float[Array, "B C"]:
        """Logits of what `read` keeps of a crop."""
        model = self.model(params, still)
        return model.head(model.pooler(x) if model.pooler else x)

    def predict(self, params: Params, frozen: Params, batch: tasks.Batch) -> dict[str, Array]:
        """Probabilities `[B, C]`."""
        crops = jnp.moveaxis(self.read(params, frozen, batch["video"]), 1, 0)
        logits = jnp.stack([self.answer(params, frozen, x) for x in crops])
        return {"probability": finetune.merge(logits, "probabilities")}


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


# --- Heads, one for each learning rate and weight decay, trained together


def grid(rates: str, decays: str) -> np.ndarray:
    """Every rate with every decay, `[G, 2]`; UserError for what is no list of numbers."""
    try:
        return np.array([(float(r), float(d)) for r in rates.split(",") for d in decays.split(",")])
    except ValueError as error:
        raise UserError(
            f"options.rates={rates!r}, options.decays={decays!r}; give numbers such as 1e-3,3e-4"
        ) from error


def fit(
    answer: Callable[[Params, Array], Float[Array, "B C"]],
    first: Params,
    take: Callable[[np.ndarray], np.ndarray],
    label: np.ndarray,
    which: np.ndarray,
    *,
    epochs: float,
    batch_size: int,
    seed: int,
) -> Params:
    """Trains a head for each of `which`, on the same batches from the same first weights.

    AdamW on all parameters, rates falling to 0 by a cosine, as V-JEPA 2 (arXiv 2506.09985); the
    first crop of each video.

    Args:
        answer: logits of a head for features `[B, ...]`.
        first: the parameters that each head starts from; those returned are `[G, ...]`.
        take: features of videos by number, `[B, K, ...]`, K crops.
        label: `[R]`, of the videos that `take` has.
        which: `[G, 2]`, see `grid`.
    """
    per_epoch, mesh = max(len(label) // batch_size, 1), sharding.make_mesh()
    total = max(round(epochs * per_epoch), 1)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Params, moments: Any, number: Array, x: Array, y: Array) -> Any:
        def one(of_head: tuple[Params, Any, Array]) -> Any:
            head, moments, (rate, decay) = of_head

            def objective(head: Params) -> Array:
                logits = answer(head, x.astype(jnp.float32))
                return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

            loss, grads = jax.value_and_grad(objective)(head)
            adam = optax.adamw(
                rate * 0.5 * (1 + jnp.cos(jnp.pi * number / total)), weight_decay=decay
            )
            updates, moments = adam.update(grads, moments, head)
            return optax.apply_updates(head, updates), moments, loss

        return jax.lax.map(one, (params, moments, jnp.asarray(which)))

    params = jax.tree.map(lambda p: jnp.repeat(p[None], len(which), axis=0), first)
    moments = jax.vmap(optax.adamw(0.0).init)(params)
    for number in range(total):
        epoch, at = divmod(number, per_epoch)
        order = np.random.default_rng((seed, epoch)).permutation(len(label))
        order = np.resize(order, max(len(order), batch_size))  # Of few videos some twice.
        chosen = np.sort(order[at * batch_size : (at + 1) * batch_size])
        x, y = sharding.put((take(chosen)[:, 0], label[chosen]), mesh)
        params, moments, loss = step(params, moments, np.float32(number), x, y)
        if (number + 1) % max(total // 10, 1) == 0:
            said = np.asarray(loss)
            log.info("step %d/%d  loss %.4g to %.4g", number + 1, total, said.min(), said.max())
    return params


def probabilities(
    answer: Callable[[Params, Array], Float[Array, "B C"]],
    params: Params,
    take: Callable[[np.ndarray], np.ndarray],
    count: int,
    batch_size: int,
) -> np.ndarray:
    """`[G, R, C]` of each head for each of R videos, the mean over their crops."""

    def each(params: Params, x: Float[Array, "B K ..."]) -> Float[Array, "B G C"]:
        crops = jnp.moveaxis(x, 1, 0).astype(jnp.float32)

        def one(head: Params) -> Array:
            logits = jax.lax.map(lambda crop: answer(head, crop), crops)
            return finetune.merge(logits, "probabilities")

        return jnp.moveaxis(jax.lax.map(one, params), 0, 1)

    embed = sharding.on_devices(each, params, batch_size)
    videos = ((number, take(np.array([number]))[0]) for number in range(count))
    return np.stack([row for _, row in inference.rows(embed, videos, batch_size)], axis=1)


# --- The run


def run(config: Any, workdir: epath.PathLike) -> dict[str, float]:
    """Trains a grid of heads on features of `data.train`, takes the best by `data.val`, scores it.

    Without data.val a part of data.train chooses. What is left is a run of the best head, which
    `mvm.load` reads.
    """
    workdir = epath.Path(workdir)
    if config.evaluate:
        return evaluate.evaluate(inference.encoder(config).config, workdir)
    if checkpoint.steps_in(workdir):
        log.info("%s is finished", workdir)
        return metrics.last_values(workdir / "metrics.jsonl")
    options, t = tasks.options(config), config.train
    which = grid(options["rates"], options["decays"])
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
    take: dict[str, Callable[[np.ndarray], np.ndarray]]
    take = {split: one.read for split, one in kept.items()}
    if not attentive:  # BatchNorm without affine, which the best head takes in.
        whole = {split: one.read() for split, one in kept.items()}
        mean = whole["train"].mean((0, 1), np.float64).astype(np.float32)
        scale = (whole["train"].var((0, 1), np.float64) + 1e-6).astype(np.float32) ** -0.5
        take = {split: ((x - mean) * scale).__getitem__ for split, x in whole.items()}
    # --- Heads ---

    def answer(head: Params, x: Array) -> Array:
        return task.answer(head, still, x)

    log.info("%d heads on %d videos, the best by %s", len(which), len(train.label), by)
    schedule = {"epochs": t.epochs, "batch_size": t.batch_size, "seed": config.seed}
    params = fit(answer, first, take["train"], train.label, which, **schedule)
    p = probabilities(answer, params, take["val"], len(val.label), config.eval.batch_size)
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
        p = probabilities(answer, params, take["test"], len(test.label), config.eval.batch_size)[0]
        more = {"head": options["head"], "selection": f"best of {len(tried)} by {by}"}
        more |= {"best": tried[best], "grid": tried}
        votes = objectives.vote(_means(test), _means(train), train.label, p.shape[-1])
        more["knn"] = 100.0 * float((votes.argmax(axis=1) == test.label).mean())
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


def _means(rows: frozen.Rows) -> np.ndarray:
    """What nearest neighbours are of: the mean over crops and tokens of each video, `[R, D]`."""
    each = (rows.read(np.array([number]))[0] for number in range(len(rows.label)))
    return np.stack([x.reshape(-1, x.shape[-1]).mean(axis=0, dtype=np.float32) for x in each])


def fifth(label: np.ndarray) -> np.ndarray:
    """Every fifth video of each class, bool `[R]`; UserError if there is none."""
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
    own = start.encoder.config.copy_and_resolve_references()
    own.task, own.mask.name, own.data.num_classes = "probe", "", start.config.data.num_classes
    own.options = {**start.config.options, "norm": start.encoder.protocol["norm"]}
    task = tasks.build(own)
    assert isinstance(task, Probe)
    first, still = sharding.jit_once(task.init)(jax.random.key(own.seed))
    loaded = {name: leaf for name, leaf in start.encoder.params.items() if name in still}
    return own, task, first, still | task.parted(jax.tree.map(jnp.asarray, loaded))[1]
