"""Tube masking (VideoMAE, arXiv 2203.12602): the same places are hidden at every time."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mvm.masking import sampling
from mvm.types import Grid, Mask

NEEDS_TOKENS = False


def counts(grid: Grid, *, mask_ratio: float = 0.9) -> tuple[int, int]:
    """(visible, target): 160 and 1408 of 8x14x14 tokens at 0.9; the floor is taken per slot."""
    masked = int(mask_ratio * grid.h * grid.w)
    return grid.t * (grid.h * grid.w - masked), grid.t * masked


def sample(
    key: Key[Array, ""],
    tokens: Float[Array, "B N D"],
    grid: Grid,
    scores: Float[Array, "B N"] | None = None,
    *,
    mask_ratio: float = 0.9,
) -> Mask:
    """Hides `int(mask_ratio * h * w)` places in all t slots; all hidden tokens are targets.

    Args:
        key: one key for the batch; each clip folds in its row.
        tokens: only the batch size is read.
        grid: the token grid.
        scores: not used.
        mask_ratio: fraction of places hidden.
    """
    places, slots = grid.h * grid.w, jnp.arange(grid.t)[:, None] * (grid.h * grid.w)
    num_visible = places - int(mask_ratio * places)
    order = sampling.smallest(sampling.uniform(key, tokens.shape[0], places), places)
    order = (order[:, None, :] + slots).transpose(0, 2, 1).reshape(-1, grid.n)
    return sampling.mask_of(order[:, : num_visible * grid.t], order[:, num_visible * grid.t :])
