"""Tubes that bend towards motion, inspired by MGMAE (arXiv 2308.10794) but without optical flow.

Each place draws one random number for the whole clip, as in tube masking; in each slot the places
compete by that number and by how much they move there. Where nothing moves these are straight
tubes; where the motion wanders over the frame, the visible tokens wander with it. MGMAE instead
draws cells in the middle frame and carries them along a dense optical flow (RAFT) through the
clip, so that its cells stay on the same piece of an object and begin anywhere.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mvm.masking import everest, sampling, tube
from mvm.types import Grid, Mask

NEEDS_TOKENS = True

_STILL = 1e-6  # Motion below this counts as this: places that stand still compete by chance alone.


def counts(grid: Grid, *, mask_ratio: float = 0.9) -> tuple[int, int]:
    """(visible, target): 160 and 1408 of 8x14x14 tokens at 0.9, 20 visible in every slot.

    Note:
        As in tube masking here; MGMAE shows `int(196 * 0.1)` = 19 tokens per slot.
    """
    return tube.counts(grid, mask_ratio=mask_ratio)


def partition(
    scores: Float[Array, "B N"], gumbel: Float[Array, "B S"], grid: Grid, num_shown: int
) -> Mask:
    """Shows the `num_shown` places of each slot with the largest `log(scores) + gumbel`.

    In each slot alone this is a draw without replacement in proportion to the motion there. The
    noise that slots share makes them agree as far as their motion does.

    Args:
        scores: motion per token.
        gumbel: noise per place, S = h * w.
        grid: the token grid.
        num_shown: visible tokens of every slot.
    """
    places = grid.h * grid.w
    weight = jnp.log(jnp.maximum(scores, _STILL)).reshape(-1, grid.t, places)
    order = sampling.largest((weight + gumbel[:, None]).reshape(-1, places), places)
    token = order.reshape(-1, grid.t, places) + places * jnp.arange(grid.t)[:, None]
    token = token.transpose(0, 2, 1).reshape(-1, grid.n)  # by rank, then by slot
    return sampling.mask_of(token[:, : grid.t * num_shown], token[:, grid.t * num_shown :])


def sample(
    key: Key[Array, ""],
    tokens: Float[Array, "B N D"],
    grid: Grid,
    scores: Float[Array, "B N"] | None = None,
    *,
    mask_ratio: float = 0.9,
) -> Mask:
    """Hides `int(mask_ratio * h * w)` tokens of every slot; all hidden tokens are targets.

    Args:
        key: one key for the batch; each clip folds in its row.
        tokens: patch embeddings before positions are added.
        grid: the token grid; at least two slots.
        scores: motion per token, if known already; `everest.motion` otherwise.
        mask_ratio: fraction of each slot's tokens hidden.
    """
    places = grid.h * grid.w
    if scores is None:
        scores = everest.motion(tokens, grid)
    gumbel = sampling.gumbel(key, tokens.shape[0], places)
    return partition(scores, gumbel, grid, places - int(mask_ratio * places))
