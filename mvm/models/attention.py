"""Softmax attention, by the kernel that suits the device; all kernels are the same function."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mvm.models.compute import again

_CUDNN_FROM = 512
"""Tokens from which "auto" leaves attention to cudnn; below, XLA's memory does not matter."""

_BY_HEAD_FROM = 2**22
"""Weights from which "cpu" takes the heads one by one: all heads at once would not fit the cache
and would dominate memory (docs/benchmarks.md)."""


def attend(
    by: str,
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B N H D"],
    v: Float[Array, "B N H D"],
    scale: float | None = None,
) -> Float[Array, "B Q H D"]:
    """Softmax attention; the backward pass rematerialises its weights.

    `by` is "xla", "cpu", "cudnn", or "auto": cudnn where there are many tokens, else xla. `scale`
    is that of the logits; None means 1 / sqrt(D).
    """
    if by == "cpu":
        return _on_cpu(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale)
    # The shapes that cudnn knows on every GPU.
    fits = k.shape[1] >= _CUDNN_FROM and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    attention = partial(jax.nn.dot_product_attention, scale=scale)
    if by == "cudnn" or (by == "auto" and fits):
        return attention(q, k, v, implementation="cudnn")
    return again(partial(attention, implementation="xla"))(q, k, v)


def _on_cpu(q: Array, k: Array, v: Array, scale: float) -> Array:
    """As `jax.nn` computes it, in a layout from which XLA on CPU copies nothing."""

    def heads(qkv: tuple[Array, Array, Array]) -> Array:
        q, k, v = qkv
        logits = jnp.einsum("...qd,...nd->...qn", q, k, preferred_element_type=jnp.float32)
        return jnp.einsum("...qn,...nd->...qd", jax.nn.softmax(logits).astype(v.dtype), v)

    if q.size // q.shape[-1] * k.shape[1] < _BY_HEAD_FROM:
        q, k, v = (x.swapaxes(1, 2) for x in (q * scale, k, v))
        return again(heads)((q, k, v)).swapaxes(1, 2)
    q, k, v = (jnp.moveaxis(x, 2, 0) for x in (q * scale, k, v))
    return jnp.moveaxis(jax.lax.map(again(heads), (q, k, v)), 0, 2)
