"""EVEREST's information-intensive frame selection (arXiv 2211.10636): the eventful slots of a clip.

It chooses slots of time before any masking and is no masking strategy itself.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mvm.masking import everest, sampling
from mvm.types import Grid

# So unlikely that noise never lifts a slot without informative tokens above one that has any.
_UNINFORMATIVE = 1e-10


def informative(
    tokens: Float[Array, "B N D"], grid: Grid, keep_ratio: float
) -> Int[Array, "B slots"]:
    """How many tokens of each slot are among the most moving ones, `keep_ratio` of the whole clip.

    Tokens are patch embeddings of all candidates, without positions, of at least two slots.
    """
    moving = sampling.largest(
        everest.motion(tokens, grid), sampling.remaining(grid.n, 1 - keep_ratio)
    )
    return jax.nn.one_hot(moving // (grid.h * grid.w), grid.t, dtype=jnp.int32).sum(axis=1)


def draw(
    count: Int[Array, "B slots"], gumbel: Float[Array, "B slots"] | None, num_slots: int
) -> Int[Array, "B kept"]:
    """Slots drawn without replacement in proportion to their counts, in the order of time.

    Those with none are drawn, evenly, only when no other slot is left. Without noise the largest
    counts are taken, of equal ones the earlier.
    """
    if gumbel is None:
        return jnp.sort(sampling.largest(count, num_slots))
    weight = jnp.log(jnp.maximum(count.astype(jnp.float32), _UNINFORMATIVE))
    return jnp.sort(sampling.largest(weight + gumbel, num_slots))


def select(
    key: Key[Array, ""] | None,
    tokens: Float[Array, "B N D"],
    grid: Grid,
    num_slots: int,
    keep_ratio: float,
) -> Int[Array, "B kept"]:
    """Draws the slots of a clip that are worth looking at, ascending; without a key, the best ones.

    The paper's released code has no frame selection. Left open there and decided here: tokens are
    ranked over the whole candidate clip, drawn slots keep the order of time, and slots without an
    informative token come last. As in the paper's scores, the first slot takes those of the second.
    """
    noise = None if key is None else sampling.gumbel(key, tokens.shape[0], grid.t)
    return draw(informative(tokens, grid, keep_ratio), noise, num_slots)
