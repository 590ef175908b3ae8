"""Where a training step's time goes: functions that build on one another, and their differences.

The forward pass is cut after each stage and timed, alone and with the gradients of all parameters
that the stages so far have; what a stage adds is the difference to the one before. The stages are

- select: erasing and mixing, motion scores, frame selection, the sampler, the draw of a mask;
- embed: patch embedding and positions of the visible tubelets;
- encode: the encoder's blocks;
- decode: targets, decoder and loss of pre-training (head: pooling, head and loss of a classifier).

Each ends in a mean of squares, which costs little and gives its gradient. The optimiser's update
is timed alone, with given gradients. What the whole step takes beyond the last stage with its
gradients and the optimiser is the rest; XLA fuses across the cuts, so that it may be below zero.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mvm import preprocess, start, tasks
from mvm.models import tubelets
from mvm.models.autoencoder import Autoencoder
from mvm.models.classifier import Classifier
from mvm.models.encoder import OWN, Encoder, add_positions
from mvm.optim import path_of
from mvm.types import Strategy, UserError


class Piece(NamedTuple):
    """What one stage adds to a step, in seconds."""

    name: str
    forward: float
    backward: float


class Split(NamedTuple):
    """A whole step in pieces, in seconds, which add up to its median time in the same rounds."""

    pieces: list[Piece]
    optimiser: float
    rest: float
    step: float


def measure(config: Any, run: start.Run, step: Any, batch: Any, rounds: int) -> Split:
    """Times every cut of the step, all of them in turn in every round.

    Args:
        config: a whole configuration.
        run: from `start.run`; its state is used up.
        step: its compiled step.
        batch: on devices.
        rounds: medians are over these, after one that is not counted.

    Raises:
        UserError: if gradients are accumulated, which has no such stages.
    """
    if config.train.accumulate != 1:
        raise UserError(
            f"train.accumulate={config.train.accumulate}; a step in pieces needs 1, at "
            f"--config.train.batch_size={config.train.batch_size // config.train.accumulate}"
        )
    optimizer = tasks.optimizer_of(config, run.task, run.plan.schedule)
    key, current = jax.random.key(0), run.state

    def update(state: Any, gradients: Any) -> Any:
        updates, opt = optimizer.update(gradients, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        new = {**state, "params": params, "opt": opt}
        if "ema" in state:
            new["ema"] = optax.incremental_update(params, state["ema"], 1 - config.train.ema_decay)
        return new, optax.tree.norm(gradients)

    stages = _stages(config, run.task)
    cuts = {(name, "forward"): jax.jit(objective) for name, objective, _ in stages}
    cuts |= {
        (name, "both"): jax.jit(partial(_gradients, objective, trained))
        for name, objective, trained in stages
        if trained
    }
    times: dict[Any, list[float]] = {}

    def timed(name: Any, function: Callable[..., Any], *args: Any) -> Any:
        began = time.perf_counter()
        out = jax.block_until_ready(function(*args))
        times.setdefault(name, []).append(time.perf_counter() - began)
        return out

    updated = jax.jit(update, donate_argnums=0)
    for _ in range(1 + rounds):
        for name, cut in cuts.items():
            out = timed(name, cut, current["params"], key, batch)
        current, _ = timed("optimiser", updated, current, out[1])
        del out
        current, _ = timed("step", step, current, batch)
    median = {name: statistics.median(found[1:]) for name, found in times.items()}
    pieces, forward, both = [], 0.0, 0.0
    for stage, _, _ in stages:
        now = median[stage, "forward"]
        with_gradients = median.get((stage, "both"), now)
        added = now - forward
        pieces.append(Piece(stage, added, with_gradients - both - added))
        forward, both = now, with_gradients
    rest = median["step"] - both - median["optimiser"]
    return Split(pieces, median["optimiser"], rest, median["step"])


Objective = Callable[[Any, Any, Any], Any]
"""`(params, key, batch) -> scalar`."""


def _gradients(objective: Objective, trained: Sequence[str], params: Any, *rest: Any) -> Any:
    """The objective and its gradients for parameters whose path begins with any of `trained`."""
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    chosen = [path_of(path).startswith(tuple(trained)) for path, _ in paths]
    leaves = [leaf for _, leaf in paths]

    def of(some: list[Any]) -> Any:
        found = iter(some)
        all_of_them = [next(found) if c else leaf for c, leaf in zip(chosen, leaves)]
        return objective(jax.tree.unflatten(tree, all_of_them), *rest)

    value, gradients = jax.value_and_grad(of)([x for x, c in zip(leaves, chosen) if c])
    return value, jax.tree.unflatten(tree, gradients) if all(chosen) else gradients


def _stages(config: Any, task: tasks.Task) -> list[tuple[str, Objective, tuple[str, ...]]]:
    """Name, objective up to there, and what begins the paths of the parameters it trains."""
    whole = tasks.loss_of(config, task)

    def last(params: Any, key: Any, batch: Any) -> Any:
        return whole(nnx.merge(task.graphdef, params), key, batch)[0]

    pretrains = config.task == "pretrain"
    cut: Callable[..., Any] = _autoencoder if pretrains else _classifier
    learns = task.strategy is not None and task.strategy.network is not None
    scores: tuple[str, ...] = ("sampler", "encoder/embed") if learns else ()
    names = {"select": scores, "embed": ("encoder/embed", "encoder/positions", *scores)}
    names["encode"] = ("encoder", *scores)

    def until(name: str, params: Any, key: Any, batch: Any) -> Any:
        return cut(nnx.merge(task.graphdef, params), key, batch, task.strategy, name)

    d = config.data
    selects = task.strategy or d.num_candidates or d.erasing or d.mixup or d.cutmix
    if not selects:
        del names["select"]
    out = [(name, partial(until, name), trained) for name, trained in names.items()]
    return [*out, ("decode" if pretrains else "head", last, ("",))]


def _autoencoder(
    model: Autoencoder, key: Any, batch: Any, strategy: Strategy, until: str
) -> jax.Array:
    """What the stages up to `until` come to."""
    pixels, grid = tubelets.split(batch["video"], model.tubelet)
    frames_key, drop_key = jax.random.split(jax.random.fold_in(key, OWN))
    pixels, grid = model.encoder.keep_frames(frames_key, pixels, grid)
    scores = model.score(drop_key, pixels)
    mask = model.encoder.select(key, pixels, grid, strategy, scores)
    total = _size(mask.visible) + _size(mask.target) + (0.0 if scores is None else _size(scores))
    if until == "select":
        return total
    shown = tubelets.gather(pixels, mask.visible)
    return total + _encoded(model.encoder, shown, mask.visible, grid, None, until)


def _classifier(
    model: Classifier, key: Any, batch: Any, strategy: Strategy | None, until: str
) -> jax.Array:
    """What the stages up to `until` come to."""
    erase_key, model_key = jax.random.split(key)
    video, total = batch["video"], jnp.float32(0)
    other = video[::-1]
    if "erase" in batch:
        video = preprocess.erase(erase_key, video, batch["erase"])
        other = preprocess.erase(model_key, other, batch["erase"][::-1])
    if "lam" in batch:
        nothing = jnp.zeros((len(video), 1))
        video, _ = preprocess.mix(video, other, nothing, batch["lam"][0], batch["box"][0])
    select_key, path_key, _ = jax.random.split(model_key, 3)
    pixels, grid = tubelets.split(video, model.tubelet)
    pixels, grid = model.encoder.keep_frames(jax.random.fold_in(model_key, OWN), pixels, grid)
    index = jnp.arange(grid.n)
    if strategy is not None:
        index = model.encoder.select(select_key, pixels, grid, strategy).visible
        pixels, total = tubelets.gather(pixels, index), _size(index)
    if until == "select":
        return total + _size(pixels)
    return total + _encoded(model.encoder, pixels, index, grid, path_key, until)


def _encoded(encoder: Encoder, pixels: Any, index: Any, grid: Any, key: Any, until: str) -> Any:
    if until == "encode":
        return _size(encoder(pixels, index, grid, key))
    x = encoder.embed(tubelets.standardise(pixels))
    return _size(add_positions(x, grid, index, encoder.layout, encoder.positions))


def _size(x: jax.Array) -> jax.Array:
    """A number that needs every element."""
    return jnp.mean(jnp.square(x.astype(jnp.float32)))
