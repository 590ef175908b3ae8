"""Attention by the splash kernel that JAX ships for TPUs (flash attention, arXiv 2205.14135).

Off by default: compiled for TPU and followed step by step on a CPU, never run on a TPU.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as kernels
from jaxtyping import Array, Float

_LANE = 128
"""Blocks are multiples of it."""

_MOST_QUERIES, _MOST_TOKENS, _MOST_SCORES = 512, 2048, 512**2
"""Of a block, and computed at a time: 1 MB in float32, of which the backward pass holds several."""


def attend(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B N H D"],
    v: Float[Array, "B N H D"],
    scale: float | None = None,
    interpret: bool = False,
) -> Float[Array, "B Q H D"]:
    """As `attention.attend`, without ever writing the logits; `interpret` runs it on any device."""
    mesh, kernel = jax.sharding.get_abstract_mesh(), partial(_attend, scale, interpret)
    if mesh.size > 1:  # XLA cannot partition the kernel: each device takes its own clips.
        where = jax.sharding.PartitionSpec(mesh.axis_names)
        # Pallas kernels do not say how their results vary over the mesh.
        kernel = jax.shard_map(kernel, in_specs=where, out_specs=where, check_vma=False)
    return kernel(q, k, v)


def _attend(scale: float | None, interpret: bool, q: Array, k: Array, v: Array) -> Array:
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    queries, tokens, heads = q.shape[1], k.shape[1], q.shape[2]
    block_q, block_k = _block(queries, _MOST_QUERIES), _block(tokens, _MOST_TOKENS)
    at_once = _part(block_k, _MOST_SCORES // block_q)
    q, k, v = (_padded(q * scale, block_q), _padded(k, block_k), _padded(v, block_k))
    kernel = kernels.make_splash_mha_single_device(
        kernels.MultiHeadMask([kernels.FullMask((q.shape[2], k.shape[2]))] * heads),
        block_sizes=kernels.BlockSizes(
            block_q=block_q,
            block_kv=block_k,
            block_kv_compute=at_once,
            block_q_dkv=block_q,
            block_kv_dkv=block_k,
            block_kv_dkv_compute=at_once,
            use_fused_bwd_kernel=True,
        ),
        interpret=interpret,
    )
    segments = None
    if k.shape[2] > tokens:  # Padding is a segment of its own, at which no query looks.
        padding = (jnp.arange(k.shape[2]) >= tokens).astype(jnp.int32)
        segments = kernels.SegmentIds(jnp.zeros(q.shape[2], jnp.int32), padding)
    out = jax.vmap(kernel, in_axes=(0, 0, 0, None))(q, k, v, segments)
    return out[:, :, :queries].swapaxes(1, 2)


def _block(length: int, most: int) -> int:
    """The size up to `most` whose blocks cover `length` with the least padding; if many, the most.

    >>> _block(1568, 512), _block(1568, 2048), _block(160, 512)
    (128, 1664, 256)
    """
    return min(range(most, 0, -_LANE), key=lambda size: -length % size)


def _part(block: int, most: int) -> int:
    """The largest part that divides a block."""
    return next(size for size in range(block, 0, -_LANE) if block % size == 0 and size <= most)


def _padded(x: Float[Array, "B N H D"], block: int) -> Float[Array, "B H n D"]:
    """Heads first, and zeros up to a whole number of blocks."""
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, -x.shape[1] % block), (0, 0)))
