"""ActionFormer (arXiv 2202.07925): a pyramid over features of a long video, and its points.

A step of level 0 is a row of features, level l has every 2^l-th. Behind a video's end convolutions
give zeros and LayerNorms their bias, which the next convolution sees.
"""

import functools
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mvm.models import vit
from mvm.models.positions import Positions
from mvm.types import Grid

Steps = Float[Array, "B T C"]
Valid = Bool[Array, "B T 1"]
Points = Float[np.ndarray, "P 4"]
Detections = tuple[Float[Array, "B P C"], Float[Array, "B P 2"], Bool[Array, "B P"]]
"""Of every point: logits; distances to start and end, in strides; whether it is in the video."""

_SCALE = 1e-4  # Initial factor on each branch of a block.
_STEM = 2  # Blocks of level 0; each further level has one.
_RADIUS = 1.5  # Strides from the middle of a segment to the points that detect it, at most.
_SAME = 1e-3  # Steps by which segments may differ in length that share a point.

_init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default
_linear = partial(nnx.Linear, kernel_init=_init)
_conv = partial(nnx.Conv, kernel_size=3, padding=1, kernel_init=_init)
_norm = partial(vit.norm, epsilon=1e-5)


class Size(NamedTuple):
    """What the network is made of."""

    features: int  # Columns, D.
    width: int
    heads: int
    windows: tuple[int, ...]  # By level, the steps that one attends to, itself amid; 0 = all.
    positions: int = 0  # Steps of VideoMAE's table, added over sqrt(C) to the features; 0 = none.
    drop_path: float = 0.0

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """Window and stride of each."""
        return [(self.windows[0], 1)] * _STEM + [(window, 2) for window in self.windows[1:]]


def _taps(x: Steps, stride: int, fill: float = 0.0) -> list[Array]:
    """Each `stride`-th step between its neighbours, three arrays `[B, T / stride, C]`.

    Their weighted sum is a depthwise convolution, on CPU 5 to 28 times as quick as XLA's.
    """
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)), constant_values=fill)
    return [padded[:, i : i + x.shape[1] : stride] for i in range(3)]


class _Projection(nnx.Module):
    """Queries, keys or values of steps that saw their neighbours."""

    def __init__(self, c: int, rngs: nnx.Rngs, **own: Any):
        self.near_kernel = nnx.Param(_init(rngs.params(), (3, 1, c)))
        self.norm, self.linear = _norm(c, rngs=rngs, **own), _linear(c, c, rngs=rngs, **own)

    def __call__(self, taps: list[Array], valid: Valid) -> Steps:
        near = self.near_kernel[...].astype(taps[0].dtype)
        return self.linear(self.norm(sum(map(jnp.multiply, taps, near)) * valid))


class _Block(nnx.Module):
    """A pre-norm transformer block that may halve the steps, by the maximum of three."""

    def __init__(self, size: Size, window: int, stride: int, **own: Any):
        c, self.heads, self.drop_path = size.width, size.heads, size.drop_path
        self.half, self.stride = window // 2, stride
        self.norm1, self.norm2 = _norm(c, **own), _norm(c, **own)
        self.query, self.key, self.value = (_Projection(c, **own) for _ in range(3))
        self.proj, self.fc1 = _linear(c, c, **own), _linear(c, 4 * c, **own)
        self.fc2 = _linear(4 * c, c, **own)
        self.gamma1, self.gamma2 = (nnx.Param(jnp.full(c, _SCALE, jnp.float32)) for _ in range(2))

    def __call__(self, x: Steps, valid: Valid, keys: Any) -> Steps:
        """`x` `[B, T, C]`, `valid` and what is returned `[B, T / stride, ...]`."""
        taps, shape = _taps(self.norm1(x), self.stride), (*valid.shape[:2], self.heads, -1)
        q, k, v = (part(taps, valid).reshape(shape) for part in (self.query, self.key, self.value))
        window = (self.half, self.half) if self.half else None
        mask = valid[:, None, None, :, 0]
        y = jax.nn.dot_product_attention(q, k, v, mask=mask, local_window_size=window)
        y = self.proj(y.reshape(*shape[:2], -1)) * valid * self.gamma1[...]
        if self.stride > 1:
            x = functools.reduce(jnp.maximum, _taps(x, self.stride, -jnp.inf))
        x = x * valid + vit.drop_path(y, self.drop_path, keys[0])
        y = self.fc2(jax.nn.gelu(self.fc1(self.norm2(x)), approximate=False)) * valid
        return x + vit.drop_path(y * self.gamma2[...], self.drop_path, keys[1])


class _Convs(nnx.Module):
    """Two convolutions, each with LayerNorm and ReLU."""

    def __init__(self, fan_in: int, c: int, **own: Any):
        self.conv1 = _conv(fan_in, c, use_bias=False, **own)
        self.conv2 = _conv(c, c, use_bias=False, **own)
        self.norm1, self.norm2 = _norm(c, **own), _norm(c, **own)

    def __call__(self, x: Steps, valid: Valid) -> Steps:
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            x = jax.nn.relu(norm(conv(x) * valid))
        return x


class _Head(_Convs):
    """What is said of each step."""

    def __init__(self, c: int, outputs: int, bias: float, **own: Any):
        super().__init__(c, c, **own)
        start = nnx.initializers.constant(bias)
        self.last = _conv(c, outputs, bias_init=start, **own | {"dtype": jnp.float32})

    def __call__(self, x: Steps, valid: Valid) -> Steps:
        return self.last(super().__call__(x, valid)) * valid


class ActionFormer(nnx.Module):
    """Classes, of which there are C, and distances of what happens at each step of each level."""

    def __init__(self, size: Size, num_classes: int, run: vit.Run, *, rngs: nnx.Rngs):
        c, own = size.width, {"dtype": run.dtype, "rngs": rngs}
        self.embed = _Convs(size.features, c, **own)
        trained = Grid(size.positions, 1, 1)
        self.positions = Positions(c, trained, "sinusoid", rngs=rngs) if size.positions else None
        self.layers = nnx.Dict({str(i): _Block(size, *b, **own) for i, b in enumerate(size.blocks)})
        self.norms = nnx.Dict({str(i): _norm(c, rngs=rngs) for i in range(len(size.windows))})
        # So that every class has a probability of 0.01 at first.
        self.classes = _Head(c, num_classes, -math.log(99.0), **own)
        self.offsets = _Head(c, 2, 0.0, **own)
        self.scales = nnx.Param(jnp.ones(len(size.windows)))

    def __call__(
        self, features: Float[Array, "B T D"], length: Int[Array, "B"], key: Any = None
    ) -> tuple[Detections, Points]:
        """Detections of a batch, and `points`; without a key no path is dropped.

        Features are zeros behind their length; T is a multiple of the last stride.
        """
        steps, depth = features.shape[1], len(self.layers)
        valid = (jnp.arange(steps) < length[:, None])[..., None]
        x = self.embed(features, valid)
        if self.positions:
            table = self.positions.table(Grid(steps, 1, 1)) / math.sqrt(x.shape[-1])
            x = x + table * valid
        keys: Any = [(None, None)] * depth if key is None else jax.random.split(key, (depth, 2))
        levels = []
        for number, (block, both) in enumerate(zip(self.layers.values(), keys)):
            valid = valid[:, :: block.stride]
            x = block(x, valid, both)
            if (level := number - _STEM + 1) >= 0:
                y = self.norms[str(level)](x)
                offsets = jax.nn.relu(self.offsets(y, valid) * self.scales[level])
                levels.append((self.classes(y, valid), offsets, valid[..., 0]))
        logits, offsets, inside = (jnp.concatenate(part, axis=1) for part in zip(*levels))
        return (logits, offsets, inside), points(steps, len(levels))


# --- Points


def points(num_steps: int, levels: int) -> Points:
    """Where detections are made, level by level: (time, low, high, stride), `[P, 4]` in steps.

    What is detected there has its further end at a distance from low to high, both included: 0-4,
    4-8, 8-16, ..., and the last level without end.
    """
    found: list[tuple[float, ...]] = []
    for stride in (2**level for level in range(levels)):
        low, high = 2 * stride * (stride > 1), 4 * stride if 2 * stride < 2**levels else 1e4
        found += [(time, low, high, stride) for time in range(0, num_steps, stride)]
    return np.array(found, np.float32)


def assign(
    at: Points, segments: Float[Array, "B M 3"], num_classes: int, radius: float = _RADIUS
) -> tuple[Float[Array, "B P C"], Float[Array, "B P 2"]]:
    """What each point is to detect: its classes, and the distances to start and end in strides.

    Of the segments (start, end, class) whose middle is near and whose further end is in the level's
    range, the shortest counts, with the classes of all that are as short. Class -1 is none.
    """
    time, low, high, stride = at.T[..., None]
    start, end, label = jnp.moveaxis(segments[:, None], -1, 0)
    middle, sides = 0.5 * (start + end), jnp.stack([time - start, end - time], axis=-1)
    inside = jnp.minimum(
        time - jnp.maximum(start, middle - radius * stride),
        jnp.minimum(end, middle + radius * stride) - time,
    )
    further = sides.max(axis=-1)
    fits = (inside > 0) & (low <= further) & (further <= high) & (label >= 0)
    length = jnp.where(fits, end - start, jnp.inf)
    shared = fits & (length <= length.min(axis=-1, keepdims=True) + _SAME)
    hot = jax.nn.one_hot(label[:, 0].astype(int), num_classes)
    target = jnp.minimum(jnp.einsum("bpm,bmc->bpc", shared.astype(hot.dtype), hot), 1)
    winner = length.argmin(axis=-1)[..., None, None]
    return target, jnp.take_along_axis(sides, winner, axis=2)[:, :, 0] / stride


def decode(found: Detections, at: Points, best: int) -> Float[Array, "B K 4"]:
    """The `best` segments of each level, by descending score: (start, end, score, class), in steps.

    The score is 0 where a level has no more.
    """
    logits, sides, valid = found
    probability, rows = jax.nn.sigmoid(logits) * valid[..., None], []
    for stride in np.unique(at[:, 3]):
        (mine,) = np.nonzero(at[:, 3] == stride)
        flat = probability[:, mine].reshape(len(logits), -1)
        score, index = jax.lax.top_k(jnp.pad(flat, ((0, 0), (0, best))), best)
        point, label = jnp.divmod(index, logits.shape[-1])
        side = jnp.take_along_axis(sides[:, mine], point[..., None], axis=1, mode="clip") * stride
        time = jnp.asarray(at[mine, 0])[point]
        rows.append(jnp.stack([time - side[..., 0], time + side[..., 1], score, label], axis=-1))
    return jnp.concatenate(rows, axis=1)
