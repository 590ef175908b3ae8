"""Frame masking (an ablation of VideoMAE, arXiv 2203.12602): whole slots of time are hidden."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mvm.masking import sampling
from mvm.types import Grid, Mask

NEEDS_TOKENS = False


def counts(grid: Grid, *, mask_ratio: float = 0.875) -> tuple[int, int]:
    """(visible, target): 196 and 1372 of 8x14x14 tokens at 0.875, that is one slot of eight."""
    masked = int(mask_ratio * grid.t)
    return (grid.t - masked) * grid.h * grid.w, masked * grid.h * grid.w


def sample(
    key: Key[Array, ""],
    tokens: Float[Array, "B N D"],
    grid: Grid,
    scores: Float[Array, "B N"] | None = None,
    *,
    mask_ratio: float = 0.875,
) -> Mask:
    """Hides `int(mask_ratio * t)` slots of the clip; all hidden tokens are targets.

    Args:
        key: one key for the batch; each clip folds in its row.
        tokens: only the batch size is read.
        grid: the token grid.
        scores: not used.
        mask_ratio: fraction of slots hidden.
    """
    num_visible, _ = counts(grid, mask_ratio=mask_ratio)
    slots = sampling.smallest(sampling.uniform(key, tokens.shape[0], grid.t), grid.t)
    places = jnp.arange(grid.h * grid.w)
    order = (slots[:, :, None] * places.size + places).reshape(-1, grid.n)
    return sampling.mask_of(order[:, :num_visible], order[:, num_visible:])
