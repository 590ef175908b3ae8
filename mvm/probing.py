"""Heads on kept features, trained together: one for each learning rate and weight decay."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from mvm.types import Params, UserError

log = logging.getLogger(__name__)


class Grid(NamedTuple):
    """Learning rates and weight decays of the heads, `[G]` each."""

    rate: np.ndarray
    decay: np.ndarray


def grid(rates: str, decays: str) -> Grid:
    """Every rate with every decay; UserError for what is no list of numbers."""
    values = []
    for name, given in (("rates", rates), ("decays", decays)):
        try:
            numbers = [float(text) for text in given.split(",")]
        except ValueError:
            numbers = [-1.0]
        if not all(0 <= number < np.inf for number in numbers):
            raise UserError(f"options.{name}={given!r}; give numbers such as 1e-3,3e-4")
        values.append(np.array(numbers))
    rate, decay = np.meshgrid(*values, indexing="ij")
    return Grid(rate.ravel(), decay.ravel())


class Rows(NamedTuple):
    """Videos that heads are trained on, or chosen by."""

    features: np.ndarray
    """`[R, K, ...]`, K crops; may be in a file."""
    label: np.ndarray
    """`[R]`"""
    used: np.ndarray
    """Which of them, by number."""


class Heads(NamedTuple):
    """What heads are, but for their parameters."""

    answer: Callable[[Params, Array], Float[Array, "B C"]]
    """Logits of features `[B, ...]`."""
    side_by_side: bool
    """Whether all of the grid are computed together: else in turn, where each fills a device."""
    put: Callable[[Any], Any] = jax.device_put
    """Brings an array of rows to the devices."""

    def each(self, function: Callable[..., Any], *arrays: Any) -> Any:
        """The function of each head, over the leading axis of the arrays."""
        if self.side_by_side:
            return jax.vmap(function)(*arrays)
        return jax.lax.map(lambda mine: function(*mine), arrays)


def fit(
    heads: Heads,
    first: Params,
    rows: Rows,
    which: Grid,
    *,
    epochs: float,
    batch_size: int,
    seed: int,
) -> Params:
    """Trains one head for each rate and decay, on the same batches from the same first weights.

    AdamW on all parameters, rates falling to 0 by a cosine, as V-JEPA 2 (arXiv 2506.09985); the
    first crop of each video.

    Args:
        heads, first: what they are, and the parameters that each starts from.
        rows: videos.
        which: G rates and decays.
        epochs: passes over the videos.
        batch_size: videos of a step.
        seed: of the order.

    Returns:
        Trained parameters, `[G, ...]` each.
    """
    per_epoch, adam = len(rows.used) // batch_size, optax.scale_by_adam(0.9, 0.999, 1e-8)
    total = max(round(epochs * per_epoch), 1)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Params, moments: Any, number: Array, x: Array, y: Array) -> Any:
        def one(head: Params, moments: Any, rate: Array, decay: Array) -> Any:
            def objective(head: Params) -> Array:
                logits = heads.answer(head, x.astype(jnp.float32))
                return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

            loss, grads = jax.value_and_grad(objective)(head)
            updates, moments = adam.update(grads, moments)
            head = jax.tree.map(lambda p, u: p - rate * (u + decay * p), head, updates)
            return head, moments, loss

        rates = which.rate * 0.5 * (1.0 + jnp.cos(jnp.pi * number / total))
        return heads.each(one, params, moments, rates, jnp.asarray(which.decay))

    params = jax.tree.map(lambda p: jnp.repeat(p[None], len(which.rate), axis=0), first)
    moments = jax.vmap(adam.init)(params)
    for number in range(total):
        epoch, at = divmod(number, per_epoch)
        order = np.random.default_rng((seed, epoch)).permutation(rows.used)
        chosen = np.sort(order[at * batch_size : (at + 1) * batch_size])
        batch = heads.put((np.asarray(rows.features[chosen, 0]), rows.label[chosen]))
        params, moments, loss = step(params, moments, np.float32(number), *batch)
        if (number + 1) % max(total // 10, 1) == 0:
            said = np.asarray(loss)
            log.info("step %d/%d  loss %.4g to %.4g", number + 1, total, said.min(), said.max())
    return params


def probabilities(heads: Heads, params: Params, rows: Rows, batch_size: int) -> np.ndarray:
    """`[G, R, C]` of each head for each of the videos, the mean over their crops."""

    @jax.jit
    def answer(params: Params, x: Array) -> Array:
        def one(head: Params) -> Array:
            crops = jnp.moveaxis(x, 1, 0).astype(jnp.float32)
            logits = jax.lax.map(lambda crop: heads.answer(head, crop), crops)
            return jax.nn.softmax(logits).mean(axis=0)

        return heads.each(one, params)

    found = []
    for first in range(0, len(rows.used), batch_size):
        some = rows.used[first : first + batch_size]
        padded = np.pad(some, (0, batch_size - len(some)), mode="edge")
        answers = answer(params, heads.put(np.asarray(rows.features[padded])))
        found.append(np.asarray(answers)[:, : len(some)])
    return np.concatenate(found, axis=1)
