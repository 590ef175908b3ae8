"""The vision transformer of VideoMAE: one pre-norm block, a scanned stack, a table of sizes."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from mvm.models.attention import attend
from mvm.models.compute import Run as Run
from mvm.models.compute import again, gathered, rematerialise
from mvm.models.lora import LowRank


class Size(NamedTuple):
    """What a transformer is made of."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    """Hidden width of an MLP over the width, rounded down."""
    cosine: bool = False
    """Cosine attention (Swin V2, arXiv 2111.09883): queries and keys of length 1 and a learned
    log-temperature per head, at most log 100."""
    layer_scale: float = 0.0
    """Initial factor on each branch (CaiT, arXiv 2103.17239); 0 means there is none."""
    epsilon: float = 1e-6
    """Of the LayerNorms."""
    qkv_bias: bool = True
    k_bias: bool = False
    """Of keys, too: changes no result, but others have it."""
    dropout: float = 0.0
    """Rate on what attention and MLP return."""
    lora_rank: int = 0
    """Of what is learned beside the matrices of attention, see `lora`; 0 means nothing is."""
    lora_scale: float = 1.0


ENCODERS = {
    "Ti": Size(192, 12, 3),
    "S": Size(384, 12, 6),
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),
    "H": Size(1280, 32, 16),
    "g": Size(1408, 40, 16, 48 / 11),
}
"""Sizes of VideoMAE (arXiv 2203.12602) and VideoMAE V2 (g); Ti added for small experiments."""

DECODERS = {
    "Ti": (96, 3),
    "S": (192, 3),
    "B": (384, 6),
    "L": (512, 8),
    "H": (640, 8),
    "g": (512, 8),
}
"""Width and heads of the decoder that belongs to an encoder; VideoMAE V2 has 512 for H."""

_HOTTEST = 4.6052
"""Largest log-temperature of cosine attention, log 100 as the released code rounds it."""

norm = partial(nnx.LayerNorm, epsilon=1e-6)


def unit_length(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Vectors divided by their length, computed in float32; at least 1e-12."""
    y = x.astype(jnp.float32)
    square = jnp.sum(y * y, axis=-1, keepdims=True)
    return (y * jax.lax.rsqrt(jnp.maximum(square, 1e-24))).astype(x.dtype)


def linear(fan_in: int, fan_out: int, init: str, run: Run, **kwargs: Any) -> nnx.Linear:
    """A linear layer in the compute dtype, with the initial weights of the released models.

    `init` is "xavier" (pre-training), "normal" (fine-tuning: truncated normal, std 0.02) or "torch"
    (PyTorch's default: uniform in +-1/sqrt(fan_in), the bias too).
    """
    kernel = {
        "xavier": nnx.initializers.xavier_uniform(),
        "normal": nnx.initializers.truncated_normal(0.02, lower=-100.0, upper=100.0),
        "torch": nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    }[init]

    def bias(key: Any, shape: Any, dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) / math.sqrt(fan_in)

    if init != "torch":
        bias = nnx.initializers.zeros
    return nnx.Linear(
        fan_in, fan_out, kernel_init=kernel, bias_init=bias, dtype=run.dtype, **kwargs
    )


class Attention(nnx.Module):
    """Multi-head self-attention; queries and values may have a bias, keys rarely do."""

    def __init__(self, size: Size, init: str, run: Run, *, rngs: nnx.Rngs):
        d = size.width
        self.heads, self.dtype = size.heads, run.dtype
        self.by = run.attention
        self.qkv = linear(d, 3 * d, init, run, use_bias=False, rngs=rngs)
        self.q_bias = nnx.Param(jnp.zeros(d)) if size.qkv_bias else None
        self.v_bias = nnx.Param(jnp.zeros(d)) if size.qkv_bias else None
        self.k_bias = nnx.Param(jnp.zeros(d)) if size.k_bias else None
        self.scale = nnx.Param(jnp.ones(size.heads) * math.log(10.0)) if size.cosine else None
        self.proj = linear(d, d, init, run, rngs=rngs)
        low = (size.lora_rank, size.lora_scale, run)
        self.qkv_lora = LowRank(d, 3 * d, *low, rngs=rngs) if size.lora_rank else None
        self.proj_lora = LowRank(d, d, *low, rngs=rngs) if size.lora_rank else None

    def __call__(
        self,
        x: Float[Array, "B N D"],
        num_queries: int | None = None,
        before: Callable[[Array], Array] = lambda x: x,
    ) -> Float[Array, "B Q D"]:
        """Attends over all N tokens; only the last `num_queries` of them ask (None: all).

        `before` is applied to the tokens first and rematerialised in the backward pass.
        """
        b, n, d = x.shape

        def project(x: Array) -> tuple[Array, Array, Array]:
            kernel, x = self.qkv.kernel[...].astype(self.dtype), before(x).astype(self.dtype)
            if num_queries is None:
                y = x @ kernel if self.qkv_lora is None else x @ kernel + self.qkv_lora(x)
                q, k, v = jnp.split(y, 3, axis=-1)
            else:
                assert self.qkv_lora is None  # Encoders have it, where all tokens ask.
                q = x[:, n - num_queries :] @ kernel[:, :d]
                k, v = jnp.split(x @ kernel[:, d:], 2, axis=-1)
            if self.q_bias is not None and self.v_bias is not None:
                q = q + self.q_bias[...].astype(self.dtype)
                v = v + self.v_bias[...].astype(self.dtype)
            if self.k_bias is not None:
                k = k + self.k_bias[...].astype(self.dtype)
            return q, k, v

        q, k, v = (y.reshape(b, y.shape[1], self.heads, -1) for y in again(project)(x))
        temperature = None
        if self.scale is not None:
            heat = jnp.exp(jnp.minimum(self.scale[...], _HOTTEST))
            q, k = unit_length(q) * heat[:, None].astype(self.dtype), unit_length(k)
            temperature = 1.0
        y = attend(self.by, q, k, v, temperature).reshape(b, -1, d)
        return self.proj(y) if self.proj_lora is None else self.proj(y) + self.proj_lora(y)


class Mlp(nnx.Module):
    """Two linear layers around an exact (erf) GELU."""

    def __init__(self, size: Size, init: str, run: Run, *, rngs: nnx.Rngs):
        hidden = int(size.width * size.mlp_ratio)
        self.fc1 = linear(size.width, hidden, init, run, rngs=rngs)
        self.fc2 = linear(hidden, size.width, init, run, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B N D"], before: Callable[[Array], Array] = lambda x: x
    ) -> Float[Array, "B N D"]:
        """The backward pass rematerialises `before(x)` and GELU."""
        hidden = again(lambda x: self.fc1(before(x)))(x)
        return again(lambda y: self.fc2(jax.nn.gelu(y, approximate=False)))(hidden)


def drop_path(
    x: Float[Array, "B N D"], rate: Float[Array, ""] | float, key: Key[Array, ""] | None
) -> Float[Array, "B N D"]:
    """Drops the whole branch of a clip with probability `rate`, else scales it by 1/(1 - rate)."""
    if key is None:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0], 1, 1))
    return x * (keep / (1.0 - rate)).astype(x.dtype)


def dropout(x: Array, rate: float, key: Key[Array, ""] | None) -> Array:
    """Drops single values with probability `rate` and scales the others by 1/(1 - rate)."""
    if key is None or not rate:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0)


class Block(nnx.Module):
    """x += attention(norm(x)); x += mlp(norm(x)); each branch scaled and dropped if asked for."""

    def __init__(self, size: Size, init: str, run: Run, *, rngs: nnx.Rngs):
        self.dropout = size.dropout
        self.norm1 = norm(size.width, epsilon=size.epsilon, dtype=run.dtype, rngs=rngs)
        self.attention = Attention(size, init, run, rngs=rngs)
        self.norm2 = norm(size.width, epsilon=size.epsilon, dtype=run.dtype, rngs=rngs)
        self.mlp = Mlp(size, init, run, rngs=rngs)
        gamma = jnp.full(size.width, size.layer_scale, jnp.float32)
        self.gamma1 = nnx.Param(gamma) if size.layer_scale else None
        self.gamma2 = nnx.Param(gamma) if size.layer_scale else None

    def __call__(
        self,
        x: Float[Array, "B N D"],
        drop_rate: Float[Array, ""] | float = 0.0,
        key: Key[Array, ""] | None = None,
        num_queries: int | None = None,
    ) -> Float[Array, "B Q D"]:
        """Transforms all tokens, or only the last `num_queries` of them, given all the others."""
        keys = (None, None) if key is None else jax.random.split(key)

        def branch(y: Array, gamma: Any, key: Key[Array, ""] | None) -> Array:
            if self.dropout and key is not None:
                key, values_key = jax.random.split(key)
                y = dropout(y, self.dropout, values_key)
            y = y if gamma is None else y * gamma[...].astype(y.dtype)
            return drop_path(y, drop_rate, key)

        kept = x if num_queries is None else x[:, x.shape[1] - num_queries :]
        y = kept + branch(self.attention(x, num_queries, self.norm1), self.gamma1, keys[0])
        return y + branch(self.mlp(y, self.norm2), self.gamma2, keys[1])


def stack(depth: int, size: Size, init: str, run: Run, rngs: nnx.Rngs) -> Block:
    """`depth` blocks as one module whose every parameter has a leading layer axis."""

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

    The drop-path rate grows linearly from 0 in the first layer to `drop_rate` in the last; without
    a key nothing is dropped.
    """
    depth = blocks.attention.proj.kernel.shape[0]
    rates = jnp.linspace(0.0, drop_rate, depth)
    random = drop_rate > 0 or blocks.dropout > 0
    keys = jax.random.split(key, depth) if key is not None and random else None

    def body(x: Array, layer: Any) -> tuple[Array, None]:
        block, rate, layer_key = layer
        return gathered(block, run)(x, rate, layer_key).astype(x.dtype), None

    body = rematerialise(body, run, scanned=depth > 1)
    return jax.lax.scan(body, x, (blocks, rates, keys))[0]
