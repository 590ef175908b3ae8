"""Uniform masking: every token is as likely to be hidden as any other."""

from jaxtyping import Array, Float, Key

from mvm.masking import sampling
from mvm.types import Grid, Mask

NEEDS_TOKENS = False


def counts(grid: Grid, *, mask_ratio: float = 0.9) -> tuple[int, int]:
    """(visible, target): 157 and 1411 of 1568 tokens at 0.9, as the released random mask."""
    masked = int(mask_ratio * grid.n)
    return grid.n - masked, masked


def sample(
    key: Key[Array, ""],
    tokens: Float[Array, "B N D"],
    grid: Grid,
    scores: Float[Array, "B N"] | None = None,
    *,
    mask_ratio: float = 0.9,
) -> Mask:
    """Hides `int(mask_ratio * N)` tokens anywhere in the clip; all of them are targets.

    Args:
        key: one key for the batch; each clip folds in its row.
        tokens: only the batch size is read.
        grid: the token grid.
        scores: not used.
        mask_ratio: fraction of tokens hidden.
    """
    num_visible, _ = counts(grid, mask_ratio=mask_ratio)
    order = sampling.smallest(sampling.uniform(key, tokens.shape[0], grid.n), grid.n)
    return sampling.mask_of(order[:, :num_visible], order[:, num_visible:])
