"""Heads on kept features, trained together: one for each learning rate and weight decay."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from mvm.types import Params, UserError

log = logging.getLogger(__name__)

Answer = Callable[[Params, Array], Float[Array, "B C"]]
"""Logits of a head for features `[B, ...]`."""
Take = Callable[[np.ndarray], np.ndarray]
"""Features of videos by number, `[B, K, ...]`, K crops."""


def grid(rates: str, decays: str) -> np.ndarray:
    """Every rate with every decay, `[G, 2]`; UserError for what is no list of numbers."""
    try:
        pairs = [(float(r), float(d)) for r in rates.split(",") for d in decays.split(",")]
    except ValueError:
        pairs = [(-1.0, -1.0)]
    if not all(0 <= number < np.inf for pair in pairs for number in pair):
        raise UserError(
            f"options.rates={rates!r}, options.decays={decays!r}; give numbers such as 1e-3,3e-4"
        )
    return np.array(pairs)


def fit(
    answer: Answer,
    first: Params,
    take: Take,
    label: np.ndarray,
    which: np.ndarray,
    *,
    epochs: float,
    batch_size: int,
    seed: int,
    put: Callable[[Any], Any] = jax.device_put,
) -> Params:
    """Trains a head for each of `which`, on the same batches from the same first weights.

    AdamW on all parameters, rates falling to 0 by a cosine, as V-JEPA 2 (arXiv 2506.09985); the
    first crop of each video.

    Args:
        answer, first: what a head is, and the parameters that each starts from.
        take, label: the videos, `[R]` labels.
        which: `[G, 2]`, see `grid`.
        epochs, batch_size, seed: passes over the videos, videos of a step, of their order.
        put: brings a batch to the devices.

    Returns:
        Trained parameters, `[G, ...]` each.
    """
    per_epoch = max(len(label) // batch_size, 1)
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
        x, y = put((take(chosen)[:, 0], label[chosen]))
        params, moments, loss = step(params, moments, np.float32(number), x, y)
        if (number + 1) % max(total // 10, 1) == 0:
            said = np.asarray(loss)
            log.info("step %d/%d  loss %.4g to %.4g", number + 1, total, said.min(), said.max())
    return params


def probabilities(
    answer: Answer,
    params: Params,
    take: Take,
    count: int,
    batch_size: int,
    put: Callable[[Any], Any],
) -> np.ndarray:
    """`[G, R, C]` of each head for each of R videos, the mean over their crops."""

    @jax.jit
    def each(params: Params, x: Array) -> Array:
        def one(head: Params) -> Array:
            crops = jnp.moveaxis(x, 1, 0).astype(jnp.float32)
            logits = jax.lax.map(lambda crop: answer(head, crop), crops)
            return jax.nn.softmax(logits).mean(axis=0)

        return jax.lax.map(one, params)

    found = []
    for first in range(0, count, batch_size):
        some = np.arange(first, first + batch_size).clip(max=count - 1)
        found.append(np.asarray(each(params, put(take(some)))))
    return np.concatenate(found, axis=1)[:, :count]
