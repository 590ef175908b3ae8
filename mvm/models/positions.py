"""Positions of tokens: a fixed table, of the token's index or of each axis, or learned ones."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from mvm.types import Grid


def sinusoid(num_tokens: int, width: int) -> np.ndarray:
    """The table of VideoMAE, `[N, D]` float32, over the flattened token index p.

    angle(p, j) = p / 10000^(2 floor(j / 2) / D), its sine on even j and its cosine on odd j,
    computed in float64.
    """
    rate = 10000.0 ** (-2.0 * (np.arange(width) // 2) / width)
    angle = np.arange(num_tokens)[:, None] * rate
    return np.where(np.arange(width) % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)


def sincos_3d(grid: Grid, width: int) -> np.ndarray:
    """A table of time, rows and columns apart, a third of the channels each, `[N, D]` float32.

    Of the d channels of an axis the sines of p / 10^(2 j / d), j < d / 2, then their cosines; those
    left over are 0. V-JEPA (arXiv 2404.08471) has 10000 for 10.
    """
    d = 2 * (width // 6)

    def axis(p: np.ndarray) -> np.ndarray:
        angle = p[:, None] * 10.0 ** (-2.0 * np.arange(d // 2) / d)
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    parts = [axis(p) for p in np.indices(grid).reshape(3, -1)]
    return np.pad(np.concatenate(parts, axis=1), ((0, 0), (0, width - 3 * d))).astype(np.float32)


def _bicubic(size: int, new: int) -> np.ndarray:
    """How an axis of `new` samples is made of one of `size`, `[new, size]`, as torch's bicubic.

    Keys' kernel with a = -0.75; what lies outside repeats the edge. jax.image has a = -0.5.
    """
    at = (np.arange(new) + 0.5) * size / new - 0.5
    taps = np.floor(at)[:, None] + np.arange(-1, 3)
    far = np.abs(at[:, None] - taps)
    inner, outer = (1.25 * far - 2.25) * far**2 + 1, -0.75 * (far - 1) * (far - 2) ** 2
    weights, taps = np.where(far <= 1, inner, outer), taps.clip(0, size - 1).astype(int)
    matrix = np.zeros((new, size))
    np.add.at(matrix, (np.arange(new)[:, None], taps), weights)
    return matrix.astype(np.float32)


def resized(table: Float[Array, "N D"], trained: Grid, grid: Grid) -> Float[Array, "n D"]:
    """A table over the grid `trained`, interpolated to another: cubic in space, linear in time."""
    rows, columns = _bicubic(trained.h, grid.h), _bicubic(trained.w, grid.w)
    x = table.reshape(*trained, -1)
    x = jnp.einsum("yh,xw,thwd->tyxd", rows, columns, x, precision="highest")
    x = jax.image.resize(x, (*grid, table.shape[-1]), "linear", antialias=False)
    return x.reshape(grid.n, -1)


class Positions(nnx.Module):
    """Of kind "sinusoid", "sincos_3d" or "separable", interpolated from the grid `trained`.

    None builds them for a clip's own. The last are learned, per place plus per slot, as mae_st's
    (arXiv 2205.09113).
    """

    def __init__(self, width: int, trained: Grid | None, kind: str, *, rngs: nnx.Rngs):
        self.width, self.trained, self.kind = width, trained, kind
        if kind == "separable":
            assert trained is not None
            places = trained.h * trained.w
            self.time = nnx.Param(0.02 * jax.random.normal(rngs.params(), (trained.t, width)))
            self.space = nnx.Param(0.02 * jax.random.normal(rngs.params(), (places, width)))

    def table(self, grid: Grid) -> Float[Array, "N D"]:
        """The position of every token of a grid."""
        trained = self.trained or grid
        if self.kind == "separable":
            table = (self.time[...][:, None] + self.space[...][None]).reshape(trained.n, -1)
        elif self.kind == "sincos_3d":
            table = jnp.asarray(sincos_3d(trained, self.width))
        else:
            table = jnp.asarray(sinusoid(trained.n, self.width))
        return table if grid == trained else resized(table, trained, grid)

    def __call__(
        self, x: Float[Array, "B K D"], grid: Grid, index: Int[Array, "..."]
    ) -> Float[Array, "B K D"]:
        """Adds to each token the position of its own index in the grid."""
        return x + self.table(grid)[index].astype(x.dtype)
