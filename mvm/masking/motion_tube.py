"""Tubes that bend towards motion, inspired by MGMAE (arXiv 2308.10794) but without optical flow.

Each place draws one random number for the whole clip, as in tube masking; in each slot the places
compete by that number and by how much they move there. Where nothing moves these are straight
tubes; where the motion wanders over the frame, the visible tokens wander with it. MGMAE instead
draws cells in the middle frame and carries them along a dense optical flow (RAFT) through the
clip, so that its cells stay on the same piece of an object and begin anywhere.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from mvm.masking import everest, sampling
from mvm.masking.tube import Tube
from mvm.types import Grid, Mask

_STILL = 1e-6  # Motion below this counts as this: places that stand still compete by chance alone.


def partition(
    scores: Float[Array, "B N"], gumbel: Float[Array, "B S"], grid: Grid, num_shown: int
) -> Mask:
    """Shows the `num_shown` places of each slot with the largest `log(scores) + gumbel`.

    In each slot alone this is a draw without replacement in proportion to the motion there, the
    scores. The noise of places, S = h * w, that slots share makes them agree as far as their motion
    does.
    """
    places = grid.h * grid.w
    weight = jnp.log(jnp.maximum(scores, _STILL)).reshape(-1, grid.t, places)
    order = sampling.largest((weight + gumbel[:, None]).reshape(-1, places), places)
    token = order.reshape(-1, grid.t, places) + places * jnp.arange(grid.t)[:, None]
    token = token.transpose(0, 2, 1).reshape(-1, grid.n)  # by rank, then by slot
    return sampling.visible_first(token, grid.t * num_shown)


@dataclass(frozen=True)
class MotionTube(Tube):
    """Hides `int(mask_ratio * h * w)` tokens of every slot; all hidden tokens are targets.

    Counts are those of tube masking here; MGMAE shows `int(196 * 0.1)` = 19 tokens per slot.
    """

    needs_tokens = True

    def sample(self, key: Array, tokens: Array, scores: Array | None = None) -> Mask:
        """Draws by `everest.motion`, on a grid of at least two slots."""
        if scores is None:
            scores = everest.motion(tokens, self.grid)
        gumbel = sampling.gumbel(key, tokens.shape[0], self.grid.h * self.grid.w)
        return partition(scores, gumbel, self.grid, self.num_visible // self.grid.t)
