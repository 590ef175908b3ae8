"""The vision transformer of VideoMAE: one pre-norm block, a scanned stack, a table of sizes."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

Dtype = Any


class Size(NamedTuple):
    """Width, depth and attention heads of a transformer; the MLP is `mlp_ratio` times as wide."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0


ENCODERS = {
    "Ti": Size(192, 12, 3),
    "S": Size(384, 12, 6),
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),
    "H": Size(1280, 32, 16),
}
"""Sizes of VideoMAE (arXiv 2203.12602), Ti added for small experiments."""

DECODER_HEADS = {"Ti": 3, "S": 3, "B": 6, "L": 8, "H": 8}
"""Heads of the decoder that belongs to an encoder; it is half as wide."""


class Run(NamedTuple):
    """How to compute a model, which changes no result beyond rounding."""

    dtype: Dtype = jnp.float32
    """Of matrix products and activations; parameters stay float32."""
    remat: str = "none"
    """What the backward pass recomputes: "none", "dots" (keeps matrix products) or "full"."""
    unroll: int = 1
    """Blocks per iteration of the scan over layers."""
    gather: Callable[[Any], Any] = lambda layer: layer
    """Brings one layer's weights together before use, when they are sharded."""


_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}

norm = partial(nnx.LayerNorm, epsilon=1e-6)


def linear(fan_in: int, fan_out: int, init: str, run: Run, **kwargs: Any) -> nnx.Linear:
    """A linear layer with the weights of the released models.

    Args:
        fan_in: width in.
        fan_out: width out.
        init: "xavier" (pre-training), "normal" (fine-tuning: truncated normal, std 0.02) or
            "torch" (PyTorch's default: uniform in +-1/sqrt(fan_in), the bias too).
        run: gives the compute dtype.
        **kwargs: `rngs`, `use_bias`.
    """
    fan_in_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    kernel = {
        "xavier": nnx.initializers.xavier_uniform(),
        "normal": nnx.initializers.truncated_normal(0.02, lower=-100.0, upper=100.0),
        "torch": fan_in_uniform,
    }[init]
    bias = nnx.initializers.zeros
    if init == "torch":

        def bias(key: Any, shape: Any, dtype: Any = jnp.float32) -> Array:  # type: ignore[misc]
            return jax.random.uniform(key, shape, dtype, -1.0, 1.0) / jnp.sqrt(fan_in)

    return nnx.Linear(
        fan_in, fan_out, kernel_init=kernel, bias_init=bias, dtype=run.dtype, **kwargs
    )


class Attention(nnx.Module):
    """Multi-head self-attention; queries and values have a bias, keys have none."""

    def __init__(self, size: Size, init: str, run: Run, *, rngs: nnx.Rngs):
        d = size.width
        self.heads, self.dtype = size.heads, run.dtype
        self.qkv = linear(d, 3 * d, init, run, use_bias=False, rngs=rngs)
        self.q_bias = nnx.Param(jnp.zeros(d))
        self.v_bias = nnx.Param(jnp.zeros(d))
        self.proj = linear(d, d, init, run, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B N D"], num_queries: int | None = None
    ) -> Float[Array, "B Q D"]:
        """Attends over all N tokens; only the last `num_queries` tokens ask, if it is given."""
        b, n, d = x.shape
        kernel = self.qkv.kernel[...].astype(self.dtype)
        q_bias, v_bias = (p[...].astype(self.dtype) for p in (self.q_bias, self.v_bias))
        x = x.astype(self.dtype)
        if num_queries is None:
            bias = jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias])
            q, k, v = jnp.split(x @ kernel + bias, 3, axis=-1)
        else:
            q = x[:, n - num_queries :] @ kernel[:, :d] + q_bias
            k, v = jnp.split(x @ kernel[:, d:], 2, axis=-1)
            v = v + v_bias
        q, k, v = (y.reshape(b, y.shape[1], self.heads, -1) for y in (q, k, v))
        y = jax.nn.dot_product_attention(q, k, v)
        return self.proj(y.reshape(b, -1, d))


class Mlp(nnx.Module):
    """Two linear layers around an exact (erf) GELU."""

    def __init__(self, size: Size, init: str, run: Run, *, rngs: nnx.Rngs):
        hidden = int(size.width * size.mlp_ratio)
        self.fc1 = linear(size.width, hidden, init, run, rngs=rngs)
        self.fc2 = linear(hidden, size.width, init, run, rngs=rngs)

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


def drop_path(
    x: Float[Array, "B N D"], rate: Float[Array, ""] | float, key: Key[Array, ""] | None
) -> Float[Array, "B N D"]:
    """Drops the whole branch of a clip with probability `rate`, else scales it by 1/(1 - rate)."""
    if key is None:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0], 1, 1))
    return x * (keep / (1.0 - rate)).astype(x.dtype)


class Block(nnx.Module):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, size: Size, init: str, run: Run, *, rngs: nnx.Rngs):
        self.norm1 = norm(size.width, dtype=run.dtype, rngs=rngs)
        self.attention = Attention(size, init, run, rngs=rngs)
        self.norm2 = norm(size.width, dtype=run.dtype, rngs=rngs)
        self.mlp = Mlp(size, init, run, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B N D"],
        drop_rate: Float[Array, ""] | float = 0.0,
        key: Key[Array, ""] | None = None,
        num_queries: int | None = None,
    ) -> Float[Array, "B Q D"]:
        """Transforms all tokens, or only the last `num_queries` of them, given all the others."""
        keys = (None, None) if key is None else jax.random.split(key)
        kept = x if num_queries is None else x[:, x.shape[1] - num_queries :]
        y = kept + drop_path(self.attention(self.norm1(x), num_queries), drop_rate, keys[0])
        return y + drop_path(self.mlp(self.norm2(y)), drop_rate, keys[1])


def rematerialise(function: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """`jax.checkpoint` by the policy's name; "none" leaves the function alone."""
    if remat == "none":
        return function
    return jax.checkpoint(function, prevent_cse=False, policy=_POLICIES[remat])


def stack(depth: int, size: Size, init: str, run: Run, rngs: nnx.Rngs) -> Block:
    """`depth` blocks in one module whose every parameter has a leading layer axis."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def make(rngs: nnx.Rngs) -> Block:
        return Block(size, init, run, rngs=rngs)

    return make(rngs)


def apply_stack(
    blocks: Block,
    x: Float[Array, "B N D"],
    run: Run,
    drop_rate: float = 0.0,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "B N D"]:
    """Runs a stack by `lax.scan` over its layers.

    Args:
        blocks: a module made by `stack`.
        x: tokens.
        run: remat policy, unrolling and the gathering of sharded weights.
        drop_rate: drop-path rate of the last layer; it grows linearly from 0 in the first.
        key: for drop path; None switches it off.
    """
    depth = blocks.attention.q_bias.shape[0]
    rates = jnp.linspace(0.0, drop_rate, depth)
    keys = None if key is None or not drop_rate else jax.random.split(key, depth)

    def body(x: Array, layer: Any) -> tuple[Array, None]:
        block, rate, layer_key = layer
        return run.gather(block)(x, rate, layer_key).astype(x.dtype), None

    body = rematerialise(body, run.remat)
    return jax.lax.scan(body, x, (blocks, rates, keys), unroll=min(run.unroll, depth))[0]
