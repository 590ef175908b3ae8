"""ActionFormer (arXiv 2202.07925): detections from a pyramid over features of a long video.

A step of level 0 is a row of features, level l has every 2^l-th. Behind a video's end convolutions
give zeros and LayerNorms their bias, which the next convolution sees.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from mvm.models import positions, vit
from mvm.models.compute import Run, again
from mvm.models.pyramid import Detections

Steps = Float[Array, "B T C"]
Valid = Bool[Array, "B T"]

_UNIFORM = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default
_SCALE = 1e-4
"""Initial factor on each branch of a block."""
_STEM = 2
"""Blocks of level 0; each further level has one."""


class Size(NamedTuple):
    """What the network is made of."""

    features: int
    """D, columns of the features."""
    width: int
    heads: int
    windows: tuple[int, ...]
    """By level, the steps that a step attends to, itself in their middle; 0 = all."""
    length: int
    """Steps of a training sample: of the positions, where there are any."""
    positions: bool = False
    """Whether VideoMAE's table, divided by sqrt(C), is added to the embedded features."""
    drop_path: float = 0.0


def _blocks(size: Size) -> list[tuple[int, int]]:
    """Window and stride of each."""
    return [(size.windows[0], 1)] * _STEM + [(window, 2) for window in size.windows[1:]]


def _conv(
    fan_in: int, fan_out: int, run: Run, rngs: nnx.Rngs, size: int = 3, **more: Any
) -> nnx.Conv:
    pad = [(size // 2, size // 2)]
    make = partial(nnx.Conv, kernel_init=_UNIFORM, padding=pad, dtype=run.dtype, rngs=rngs)
    return make(fan_in, fan_out, (size,), **more)


class _Attention(nnx.Module):
    """Self-attention within a window, of queries, keys and values that saw their neighbours."""

    def __init__(self, size: Size, window: int, stride: int, run: Run, *, rngs: nnx.Rngs):
        c = size.width
        self.heads, self.window, self.stride = size.heads, window, stride
        near = partial(_conv, c, c, run, rngs, feature_group_count=c, use_bias=False)
        for name in ("query", "key", "value"):
            setattr(self, f"{name}_conv", near(strides=stride))
            setattr(self, f"{name}_norm", vit.norm(c, epsilon=1e-5, dtype=run.dtype, rngs=rngs))
            setattr(self, name, _conv(c, c, run, rngs, size=1))
        self.proj = _conv(c, c, run, rngs, size=1)

    def __call__(self, x: Steps, valid: Valid) -> Steps:
        """`x` `[B, T, C]`, `valid` and what is returned `[B, T / stride, ...]`."""

        def project(name: str) -> Array:
            y = getattr(self, f"{name}_conv")(x) * valid[..., None]
            y = getattr(self, name)(getattr(self, f"{name}_norm")(y))
            return y.reshape(*y.shape[:2], self.heads, -1)

        half = self.window // 2
        attend = partial(
            jax.nn.dot_product_attention,
            mask=valid[:, None, None, :],
            local_window_size=(half, half) if half else None,
            implementation="xla",
        )
        y = again(attend)(*map(project, ("query", "key", "value")))
        return self.proj(y.reshape(x.shape[0], valid.shape[1], -1)) * valid[..., None]


class _Block(nnx.Module):
    """A pre-norm transformer block that may halve the steps, by the maximum of three."""

    def __init__(self, size: Size, window: int, stride: int, run: Run, *, rngs: nnx.Rngs):
        c = size.width
        self.stride, self.drop_path = stride, size.drop_path
        self.norm1 = vit.norm(c, epsilon=1e-5, dtype=run.dtype, rngs=rngs)
        self.attention = _Attention(size, window, stride, run, rngs=rngs)
        self.norm2 = vit.norm(c, epsilon=1e-5, dtype=run.dtype, rngs=rngs)
        self.fc1 = _conv(c, 4 * c, run, rngs, size=1)
        self.fc2 = _conv(4 * c, c, run, rngs, size=1)
        scaled = size.drop_path > 0
        self.gamma1 = nnx.Param(jnp.full(c, _SCALE)) if scaled else None
        self.gamma2 = nnx.Param(jnp.full(c, _SCALE)) if scaled else None

    def __call__(self, x: Steps, valid: Valid, key: Key[Array, ""] | None) -> Steps:
        keys = (None, None) if key is None else jax.random.split(key)

        def branch(y: Array, gamma: nnx.Param | None, key: Key[Array, ""] | None) -> Array:
            y = y if gamma is None else y * gamma[...].astype(y.dtype)
            return vit.drop_path(y, self.drop_path, key)

        kept = x
        if self.stride > 1:
            kept = nnx.max_pool(x, (3,), strides=(self.stride,), padding=((1, 1),))
        attended = self.attention(self.norm1(x), valid)
        y = kept * valid[..., None] + branch(attended, self.gamma1, keys[0])
        hidden = again(lambda y: jax.nn.gelu(self.fc1(self.norm2(y)), approximate=False))(y)
        return y + branch(self.fc2(hidden) * valid[..., None], self.gamma2, keys[1])


class _Convs(nnx.Module):
    """Two convolutions, each with LayerNorm and ReLU."""

    def __init__(self, fan_in: int, width: int, run: Run, *, rngs: nnx.Rngs):
        self.conv1 = _conv(fan_in, width, run, rngs, use_bias=False)
        self.norm1 = vit.norm(width, epsilon=1e-5, dtype=run.dtype, rngs=rngs)
        self.conv2 = _conv(width, width, run, rngs, use_bias=False)
        self.norm2 = vit.norm(width, epsilon=1e-5, dtype=run.dtype, rngs=rngs)

    def __call__(self, x: Steps, valid: Valid) -> Steps:
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            x = jax.nn.relu(norm(conv(x) * valid[..., None]))
        return x


class _Head(nnx.Module):
    """What is said of each step, of all levels by the same weights."""

    def __init__(self, width: int, outputs: int, run: Run, *, rngs: nnx.Rngs):
        self.convs = _Convs(width, width, run, rngs=rngs)
        self.last = _conv(width, outputs, Run(), rngs)

    def __call__(self, x: Steps, valid: Valid) -> Steps:
        return self.last(self.convs(x, valid)) * valid[..., None]


class ActionFormer(nnx.Module):
    """Classes and distances of what happens at each step of each level.

    Args:
        size: of the network.
        num_classes: C.
        run: how it computes.
    """

    def __init__(self, size: Size, num_classes: int, run: Run, *, rngs: nnx.Rngs):
        self.size, self.run = size, run
        c, levels = size.width, len(size.windows)
        self.embed = _Convs(size.features, c, run, rngs=rngs)
        for number, (window, stride) in enumerate(_blocks(size)):
            setattr(self, f"block{number}", _Block(size, window, stride, run, rngs=rngs))
        for level in range(levels):
            setattr(self, f"norm{level}", vit.norm(c, epsilon=1e-5, rngs=rngs))
        self.classes = _Head(c, num_classes, run, rngs=rngs)
        # So that every class has a probability of 0.01 at first.
        prior = jnp.full(num_classes, -math.log(99.0))
        self.classes.last.bias = nnx.Param(prior)
        self.offsets = _Head(c, 2, run, rngs=rngs)
        self.scales = nnx.Param(jnp.ones(levels))

    def __call__(
        self, features: Float[Array, "B T D"], valid: Valid, key: Key[Array, ""] | None = None
    ) -> Detections:
        """Detections of a batch; without a key nothing is dropped.

        Args:
            features: rows of a video, zeros behind its end; T is a multiple of the last stride.
            valid: which rows are of the video.
            key: for drop path.
        """
        x = self.embed(features.astype(self.run.dtype), valid)
        if self.size.positions:
            x = x + (self._positions(x.shape[1])[None] * valid[..., None]).astype(x.dtype)
        found: list[tuple[Array, Array, Array]] = []
        for number, (_, stride) in enumerate(_blocks(self.size)):
            valid = valid[:, ::stride]
            block_key = None if key is None else jax.random.fold_in(key, number)
            x = getattr(self, f"block{number}")(x, valid, block_key)
            if (level := number - _STEM + 1) < 0:
                continue
            y = getattr(self, f"norm{level}")(x)
            offsets = jax.nn.relu(self.offsets(y, valid) * self.scales[level])
            found.append((self.classes(y, valid), offsets, valid))
        return Detections(*(jnp.concatenate(parts, axis=1) for parts in zip(*found)))

    def _positions(self, num_steps: int) -> Float[Array, "T C"]:
        """Of longer videos than those of training, interpolated."""
        table = jnp.asarray(positions.sinusoid(self.size.length, self.size.width))
        table = table / math.sqrt(self.size.width)
        if num_steps > self.size.length:
            shape = (num_steps, self.size.width)
            table = jax.image.resize(table, shape, "linear", antialias=False)
        return table[:num_steps]


def macs(size: Size, num_classes: int, executed: bool = False) -> dict[str, int]:
    """Multiply-accumulates of one sample of `size.length` steps, by part.

    `executed`: attention is computed over all steps and masked.
    """
    c, n = size.width, size.length
    found = {"embed": 3 * n * c * (size.features + c), "blocks": 0, "heads": 0}
    for number, (window, stride) in enumerate(_blocks(size)):
        n //= stride
        seen = n if executed or not window else min(window, n)
        found["blocks"] += n * c * (12 * c + 9 + 2 * seen)
        if number >= _STEM - 1:
            found["heads"] += 3 * n * c * (4 * c + num_classes + 2)
    return found
