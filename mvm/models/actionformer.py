"""ActionFormer (arXiv 2202.07925): detections from a pyramid over features of a long video.

A step of level 0 is a row of features, level l has every 2^l-th. Behind a video's end convolutions
give zeros and LayerNorms their bias, which the next convolution sees.
"""

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from mvm.models import positions, vit
from mvm.models.compute import Run, again, gathered
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


def _taps(x: Steps, size: int, stride: int = 1, fill: float = 0.0) -> list[Array]:
    """The steps around every `stride`-th one, `size` arrays `[B, T / stride, C]`."""
    half = size // 2
    padded = jnp.pad(x, ((0, 0), (half, half), (0, 0)), constant_values=fill)
    return [padded[:, i : i + x.shape[1] : stride] for i in range(size)]


class _Conv(nnx.Module):
    """A convolution over time, as one product of each step with its neighbours."""

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        run: Run,
        rngs: nnx.Rngs,
        size: int = 3,
        bias: bool = True,
    ):
        self.dtype = run.dtype
        self.kernel = nnx.Param(_UNIFORM(rngs.params(), (size, fan_in, fan_out)))
        self.bias = nnx.Param(jnp.zeros(fan_out)) if bias else None

    def __call__(self, x: Steps) -> Steps:
        kernel = self.kernel[...].astype(self.dtype)
        taps = _taps(x.astype(self.dtype), len(kernel))
        y = jnp.concatenate(taps, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


class _Attention(nnx.Module):
    """Self-attention within a window, of queries, keys and values that saw their neighbours."""

    def __init__(self, size: Size, run: Run, *, rngs: nnx.Rngs):
        c = size.width
        self.heads, self.dtype = size.heads, run.dtype
        # Of queries, keys and values: [3 taps, 3, C], a norm [3, C] and a product [3, C, C].
        self.near_kernel = nnx.Param(_UNIFORM(rngs.params(), (3, 1, 3 * c)).reshape(3, 3, c))
        self.norm = vit.norm(
            c, epsilon=1e-5, dtype=run.dtype, use_scale=False, use_bias=False, rngs=rngs
        )
        self.norm_scale = nnx.Param(jnp.ones((3, c)))
        self.norm_bias = nnx.Param(jnp.zeros((3, c)))
        kernels = [_UNIFORM(rngs.params(), (c, c)) for _ in range(3)]
        self.qkv_kernel, self.qkv_bias = nnx.Param(jnp.stack(kernels)), nnx.Param(jnp.zeros((3, c)))
        self.proj = _Conv(c, c, run, rngs, size=1)

    def __call__(self, x: Steps, valid: Valid, window: int, stride: int) -> Steps:
        """`x` `[B, T, C]`, `valid` and what is returned `[B, T / stride, ...]`."""
        of = lambda param: param[...].astype(self.dtype)  # noqa: E731
        taps = [tap[:, :, None] for tap in _taps(x, 3, stride)]
        y = sum(tap * weight for tap, weight in zip(taps, of(self.near_kernel)))
        y = self.norm(y * valid[..., None, None]) * of(self.norm_scale) + of(self.norm_bias)
        y = jnp.einsum("btkc,kcd->btkd", y, of(self.qkv_kernel)) + of(self.qkv_bias)
        q, k, v = jnp.moveaxis(y.reshape(*y.shape[:3], self.heads, -1), 2, 0)
        half = window // 2
        attend = partial(
            jax.nn.dot_product_attention,
            mask=valid[:, None, None, :],
            local_window_size=(half, half) if half else None,
            implementation="xla",
        )
        y = again(attend)(q, k, v)
        return self.proj(y.reshape(*y.shape[:2], -1)) * valid[..., None]


class _Block(nnx.Module):
    """A pre-norm transformer block that may halve the steps, by the maximum of three."""

    def __init__(self, size: Size, run: Run, *, rngs: nnx.Rngs):
        c, self.drop_path = size.width, size.drop_path
        self.norm1 = vit.norm(c, epsilon=1e-5, dtype=run.dtype, rngs=rngs)
        self.attention = _Attention(size, run, rngs=rngs)
        self.norm2 = vit.norm(c, epsilon=1e-5, dtype=run.dtype, rngs=rngs)
        self.fc1 = _Conv(c, 4 * c, run, rngs, size=1)
        self.fc2 = _Conv(4 * c, c, run, rngs, size=1)
        scaled = size.drop_path > 0
        self.gamma1 = nnx.Param(jnp.full(c, _SCALE)) if scaled else None
        self.gamma2 = nnx.Param(jnp.full(c, _SCALE)) if scaled else None

    def __call__(
        self, x: Steps, valid: Valid, key: Key[Array, ""] | None, window: int, stride: int
    ) -> Steps:
        keys = (None, None) if key is None else jax.random.split(key)

        def branch(y: Array, gamma: nnx.Param | None, key: Key[Array, ""] | None) -> Array:
            y = y if gamma is None else y * gamma[...].astype(y.dtype)
            return vit.drop_path(y, self.drop_path, key)

        attended = self.attention(self.norm1(x), valid, window, stride)
        if stride > 1:
            x = functools.reduce(jnp.maximum, _taps(x, 3, stride, -jnp.inf))
        y = x * valid[..., None] + branch(attended, self.gamma1, keys[0])
        hidden = again(lambda y: jax.nn.gelu(self.fc1(self.norm2(y)), approximate=False))(y)
        return y + branch(self.fc2(hidden) * valid[..., None], self.gamma2, keys[1])


class _Convs(nnx.Module):
    """Two convolutions, each with LayerNorm and ReLU."""

    def __init__(self, fan_in: int, width: int, run: Run, *, rngs: nnx.Rngs):
        self.conv1 = _Conv(fan_in, width, run, rngs, bias=False)
        self.norm1 = vit.norm(width, epsilon=1e-5, dtype=run.dtype, rngs=rngs)
        self.conv2 = _Conv(width, width, run, rngs, bias=False)
        self.norm2 = vit.norm(width, epsilon=1e-5, dtype=run.dtype, rngs=rngs)

    def __call__(self, x: Steps, valid: Valid, there: np.ndarray | bool = True) -> Steps:
        """What is not `there` `[T, 1]` stays 0, as if it were outside."""
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            x = jnp.where(there, jax.nn.relu(norm(conv(x) * valid[..., None])), 0)
        return x


class _Head(nnx.Module):
    """What is said of each step."""

    def __init__(self, width: int, outputs: int, run: Run, *, rngs: nnx.Rngs):
        self.convs = _Convs(width, width, run, rngs=rngs)
        self.last = _Conv(width, outputs, Run(), rngs)

    def __call__(self, x: Steps, valid: Valid, there: np.ndarray) -> Steps:
        return self.last(self.convs(x, valid, there)) * valid[..., None]


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

        def stack(count: int, make: Callable[[nnx.Rngs], nnx.Module]) -> Any:
            """As many modules as one, each parameter with a leading axis."""
            split = nnx.split_rngs(splits=count)
            return split(nnx.vmap(make, in_axes=(0,), out_axes=0))(rngs)

        self.embed = _Convs(size.features, c, run, rngs=rngs)
        self.blocks = stack(len(_blocks(size)), lambda rngs: _Block(size, run, rngs=rngs))
        self.norms = stack(levels, lambda rngs: vit.norm(c, epsilon=1e-5, rngs=rngs))
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
        levels: list[tuple[Array, Array, np.ndarray]] = []
        for number, (window, stride) in enumerate(_blocks(self.size)):
            valid = valid[:, ::stride]
            block_key = None if key is None else jax.random.fold_in(key, number)
            block = gathered(_part(self.blocks, number), self.run)
            x = block(x, valid, block_key, window, stride).astype(x.dtype)
            if (level := number - _STEM + 1) >= 0:
                # All levels become one sequence for the heads, with a step between that is 0.
                y = jnp.pad(_part(self.norms, level)(x), ((0, 0), (0, 1), (0, 0)))
                place = np.where(np.arange(y.shape[1]) < x.shape[1], level, -1)
                levels.append((y, jnp.pad(valid, ((0, 0), (0, 1))), place))
        y, valid = (jnp.concatenate(part, axis=1) for part in list(zip(*levels))[:2])
        place = np.concatenate([place for *_, place in levels])
        there = place >= 0
        offsets = self.offsets(y, valid, there[:, None])[:, there]
        offsets = jax.nn.relu(offsets * self.scales[...][place[there]][:, None])
        return Detections(
            self.classes(y, valid, there[:, None])[:, there], offsets, valid[:, there]
        )

    def _positions(self, num_steps: int) -> Float[Array, "T C"]:
        """Of longer videos than those of training, interpolated."""
        table = jnp.asarray(positions.sinusoid(self.size.length, self.size.width))
        table = table / math.sqrt(self.size.width)
        if num_steps > self.size.length:
            shape = (num_steps, self.size.width)
            table = jax.image.resize(table, shape, "linear", antialias=False)
        return table[:num_steps]


def _part(stack: Any, number: int) -> Any:
    """One module of a stack."""
    return jax.tree.map(lambda leaf: leaf[number], stack)


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
