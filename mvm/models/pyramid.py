"""Points of a pyramid over time: what each is to detect, and the segments that it detects.

A step is one of level 0, level l has every 2^l-th (ActionFormer, arXiv 2202.07925).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

_RADIUS = 1.5
"""Strides: the largest distance of a point from the middle of what it detects."""
_SAME = 1e-3
"""Steps by which segments may differ in length that share a point."""


class Points(NamedTuple):
    """Where detections are made: the steps of all levels, level by level."""

    time: np.ndarray
    """`[P]`, in steps of level 0."""
    low: np.ndarray
    high: np.ndarray
    """`[P]`: what is detected there has its further end at a distance within these, included."""
    stride: np.ndarray
    """`[P]`, steps of level 0 to the next point."""


class Detections(NamedTuple):
    """What is said of every point, float32."""

    logits: Float[Array, "B P C"]
    offsets: Float[Array, "B P 2"]
    """Distances to start and end, at least 0, in strides of the level."""
    valid: Bool[Array, "B P"]
    """Whether the point is inside of the video."""


def points(num_steps: int, levels: int) -> Points:
    """The points of `num_steps` of level 0: ranges 0-4, 4-8, 8-16, ... and the last without end."""
    low = [0.0, *(4.0 * 2**level for level in range(levels - 1))]
    high = [*low[1:], 1e4]
    each = []
    for level in range(levels):
        time = np.arange(0, num_steps, 2**level, dtype=np.float32)
        each.append((time, *(np.full_like(time, x) for x in (low[level], high[level], 2**level))))
    return Points(*map(np.concatenate, zip(*each)))


def assign(
    at: Points,
    segments: Float[Array, "B M 2"],
    classes: Int[Array, "B M"],
    num_classes: int,
    radius: float = _RADIUS,
) -> tuple[Float[Array, "B P C"], Float[Array, "B P 2"]]:
    """What each point is to detect: its classes, and the distances to start and end in strides.

    Of the segments around a point, whose middle is near and whose further end is in the level's
    range, the shortest counts, with the classes of all that are as short. Classes below 0 are none.
    """
    time, stride = (jnp.asarray(x)[:, None] for x in (at.time, at.stride))
    start, end = segments[:, None, :, 0], segments[:, None, :, 1]
    middle, sides = 0.5 * (start + end), jnp.stack([time - start, end - time], axis=-1)
    inside = jnp.minimum(
        time - jnp.maximum(start, middle - radius * stride),
        jnp.minimum(end, middle + radius * stride) - time,
    )
    further = sides.max(axis=-1)
    fits = (further >= at.low[:, None]) & (further <= at.high[:, None])
    fits &= (inside > 0) & (classes >= 0)[:, None]
    length = jnp.where(fits, end - start, jnp.inf)
    shortest = length.min(axis=-1, keepdims=True)
    shared = fits & (length <= shortest + _SAME)
    hot = jax.nn.one_hot(classes, num_classes)
    target = jnp.minimum(jnp.einsum("bpm,bmc->bpc", shared.astype(hot.dtype), hot), 1)
    winner = length.argmin(axis=-1)[..., None, None]
    return target, jnp.take_along_axis(sides, winner, axis=2)[:, :, 0] / stride


def decode(found: Detections, num_steps: int, levels: int, best: int) -> dict[str, Array]:
    """The best segments of each level, by descending score, zeros where a level has no more.

    Returns:
        "segment" `[B, levels * best, 2]` in steps, "score" and "class" `[B, levels * best]`.
    """
    at = points(num_steps, levels)
    probability = jax.nn.sigmoid(found.logits) * found.valid[..., None]
    out: dict[str, list[Array]] = {"segment": [], "score": [], "class": []}
    for level in range(levels):
        (mine,) = np.nonzero(at.stride == 2**level)
        flat = probability[:, mine].reshape(len(probability), -1)
        count = min(best, flat.shape[1])
        score, index = jax.lax.top_k(flat, count)
        point = jnp.asarray(mine)[index // probability.shape[-1]]
        sides = jnp.take_along_axis(found.offsets, point[..., None], axis=1) * 2**level
        segment = jnp.asarray(at.time)[point][..., None] + sides * jnp.array([-1.0, 1.0])
        row = {"segment": segment, "score": score, "class": index % probability.shape[-1]}
        for name, rows in row.items():
            padding = [(0, 0), (0, best - count)] + [(0, 0)] * (rows.ndim - 2)
            out[name].append(jnp.pad(rows, padding))
    return {name: jnp.concatenate(parts, axis=1) for name, parts in out.items()}
