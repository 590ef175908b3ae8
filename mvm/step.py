"""The pure steps: `(state, batch) -> (state, metrics)`, one for every task."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Key

from mvm import objectives, preprocess
from mvm.models.autoencoder import Autoencoder
from mvm.models.classifier import Classifier
from mvm.optim import Schedule
from mvm.state import State
from mvm.types import Params, Strategy

Batch = dict[str, Any]
Metrics = dict[str, Any]
Loss = Callable[[Any, Key[Array, ""], Batch], tuple[Array, Metrics]]
"""`(model, key, batch) -> (loss, metrics)`; the batch's leading axis is clips."""


def pretrain_loss(strategy: Strategy) -> Loss:
    """Reconstruction of the strategy's targets, and what its sampler learns from their errors."""

    def loss(model: Autoencoder, key: Key[Array, ""], batch: Batch) -> tuple[Array, Metrics]:
        out = model(key, batch["video"], strategy)
        error = objectives.token_error(out.predicted, out.target)
        value = objectives.over_targets(error, out.mask.weight)
        log_p = out.scores
        if strategy.loss is None or log_p is None:
            return value, {}
        sampling = strategy.loss(log_p, jax.lax.stop_gradient(error), out.mask)
        metrics = {
            "loss_reconstruction": value,
            "loss_sampling": sampling,
            # 1 is a uniform choice, 0 a certain one.
            "entropy": -jnp.mean(jnp.sum(jnp.exp(log_p) * log_p, -1)) / math.log(log_p.shape[-1]),
        }
        return value + sampling, metrics

    return loss


def finetune_loss(strategy: Strategy | None, num_classes: int, smoothing: float) -> Loss:
    """Cross entropy against smoothed labels, after erasing and mixing if the batch asks for it."""

    def loss(model: Classifier, key: Key[Array, ""], batch: Batch) -> tuple[Array, Metrics]:
        erase_key, model_key = jax.random.split(key)
        video, other = batch["video"], batch["video"][::-1]
        label = objectives.smooth(batch["label"], num_classes, smoothing)
        if "erase" in batch:
            other_key, box = jax.random.fold_in(erase_key, 1), batch["erase"]
            video = preprocess.erase(erase_key, video, box)
            other = preprocess.erase(other_key, other, box[::-1])
        if "lam" in batch:
            video, label = preprocess.mix(video, other, label, batch["lam"][0], batch["box"][0])
        logits = model(video, strategy, model_key)
        hits = jnp.mean(jnp.argmax(logits, axis=-1) == batch["label"])
        return objectives.cross_entropy(logits, label), {"accuracy": hits}

    return loss


def make(
    graphdef: Any,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    gather: Callable[[Params], Params] = lambda params: params,
    split: Callable[[Params], Params] = lambda gradients: gradients,
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """Builds the update of one optimiser step.

    Args:
        schedule: only to report the learning rate.
        gather: of the split parameters that the model does not gather by itself.
        split: keeps gradients where their parameters are, so that each device updates its part.

    Returns:
        A pure function, to be jitted with the state donated.
    """

    def gradients(params: Params, key: Any, batch: Batch) -> tuple[Any, Metrics]:
        def objective(params: Params) -> tuple[Array, Metrics]:
            return loss(nnx.merge(graphdef, gather(params)), key, batch)

        (value, metrics), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return split(grads), {"loss": value, **metrics}

    def micro_batches(params: Params, key: Any, batch: Batch) -> tuple[Any, Metrics]:
        if accumulate == 1:
            return gradients(params, key, batch)
        # Interleaved, so that every device keeps its own clips.
        parts = jax.tree.map(
            lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
        )
        keys = jax.random.split(key, accumulate)
        shapes = jax.eval_shape(gradients, params, keys[0], jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        zeros = (split(zeros[0]), zeros[1])

        def body(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradients(params, *part)), None

        total, _ = jax.lax.scan(body, zeros, (keys, parts))
        return jax.tree.map(lambda x: x / accumulate, total)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), state["step"])
        grads, metrics = micro_batches(state["params"], key, batch)
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        new = {**state, "step": state["step"] + 1, "params": params, "opt": opt}
        if "ema" in state:
            new["ema"] = optax.incremental_update(params, state["ema"], 1 - ema_decay)
        if "skipped" in batch:
            metrics["skipped"] = jnp.sum(batch["skipped"])  # Over the hosts, too.
        metrics["grad_norm"] = optax.tree.norm(grads)
        metrics["learning_rate"] = schedule(state["step"])
        return new, metrics

    return step
