"""Softmax attention, written for the device it runs on; every way gives the same function."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mvm.models.compute import again

_MANY = 512
"""Tokens from which "auto" leaves attention to cudnn; below, XLA's memory does not matter."""

_VERY_MANY = 1024
"""Tokens from which "cpu" takes the heads one by one: all their probabilities at once fill no cache
and, kept for the backward pass, more memory than all else together."""


def attend(
    by: str,
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B N H D"],
    v: Float[Array, "B N H D"],
    scale: float | None = None,
    spread: Callable[[Callable[..., Array]], Callable[..., Array]] = lambda kernel: kernel,
) -> Float[Array, "B Q H D"]:
    """Weighs the values of all tokens by the softmax of their keys' products with each query.

    Args:
        by: "xla", "cpu", "cudnn", "splash", or "auto": cudnn where there are many tokens, else xla.
        q: queries.
        k: keys.
        v: values.
        scale: of the products; None means 1 / sqrt(D).
        spread: see `Run.spread`; splash alone asks for it.
    """
    if by == "splash":
        from mvm.models import splash  # Importing it takes 0.3 s.

        return spread(partial(splash.attend, scale=scale))(q, k, v)
    if by == "cpu":
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        if k.shape[1] >= _VERY_MANY:
            return _head_by_head(q, k, v, scale)
        return again(partial(_all_heads, scale=scale))(q, k, v)
    # The shapes that cudnn knows on every GPU.
    fits = k.shape[1] >= _MANY and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    fused = by == "cudnn" or (by == "auto" and fits)
    attention = partial(jax.nn.dot_product_attention, scale=scale)
    if fused:
        return attention(q, k, v, implementation="cudnn")
    return again(partial(attention, implementation="xla"))(q, k, v)


def _all_heads(q: Array, k: Array, v: Array, scale: float) -> Array:
    """What `jax.nn` computes, in a layout from which XLA on CPU copies nothing."""
    q, k, v = (x.swapaxes(1, 2) for x in (q * scale, k, v))
    logits = jnp.einsum("bhqd,bhnd->bhqn", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqn,bhnd->bhqd", weights, v).swapaxes(1, 2)


def _head_by_head(q: Array, k: Array, v: Array, scale: float) -> Array:
    """One head at a time; the backward pass computes the weights again (arXiv 2205.14135)."""
    q, k, v = (jnp.moveaxis(x, 2, 0) for x in (q * scale, k, v))
    return jnp.moveaxis(_heads(q, k, v), 0, 2)


@jax.custom_vjp
def _heads(
    q: Float[Array, "H B Q D"], k: Float[Array, "H B N D"], v: Float[Array, "H B N D"]
) -> Float[Array, "H B Q D"]:
    return _forward(q, k, v)[0]


def _products(a: Array, b: Array) -> Float[Array, "B Q N"]:
    return jnp.einsum("bqd,bnd->bqn", a, b, preferred_element_type=jnp.float32)


def _forward(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    def head(qkv: Any) -> tuple[Array, Array]:
        q, k, v = qkv
        logits = _products(q, k)
        top = jnp.max(logits, axis=-1, keepdims=True)
        weights = jnp.exp(logits - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = jnp.einsum("bqn,bnd->bqd", weights.astype(v.dtype), v)
        return (out / total).astype(v.dtype), top + jnp.log(total)

    out, norm = jax.lax.map(head, (q, k, v))
    return out, (q, k, v, out, norm)


def _backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    def head(parts: Any) -> tuple[Array, Array, Array]:
        q, k, v, out, norm, g = parts
        weights = jnp.exp(_products(q, k) - norm)
        mean = jnp.sum(g * out, axis=-1, keepdims=True, dtype=jnp.float32)
        logits_g = (weights * (_products(g, v) - mean)).astype(q.dtype)
        weights = weights.astype(q.dtype)
        return (
            jnp.einsum("bqn,bnd->bqd", logits_g, k),
            jnp.einsum("bqn,bqd->bnd", logits_g, q),
            jnp.einsum("bqn,bqd->bnd", weights, g),
        )

    return jax.lax.map(head, (*saved, gradient))


_heads.defvjp(_forward, _backward)
