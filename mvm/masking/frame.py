"""Frame masking (an ablation of VideoMAE, arXiv 2203.12602): whole slots of time are hidden."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array

from mvm.masking import sampling
from mvm.types import Mask, Strategy


@dataclass(frozen=True)
class Frame(Strategy):
    """Hides `int(mask_ratio * t)` slots of the clip; all hidden tokens are targets."""

    mask_ratio: float = 0.875
    """Fraction of slots hidden."""

    def counts(self) -> tuple[int, int]:
        """196 and 1372 of 8x14x14 tokens at 0.875, that is one slot of eight."""
        places, masked = self.grid.h * self.grid.w, int(self.mask_ratio * self.grid.t)
        return (self.grid.t - masked) * places, masked * places

    def sample(self, key: Array, tokens: Array, scores: Array | None = None) -> Mask:
        places, slots = self.grid.h * self.grid.w, self.grid.t
        order = sampling.shuffled(key, tokens.shape[0], slots)
        order = (order[:, :, None] * places + jnp.arange(places)).reshape(-1, self.grid.n)
        return sampling.visible_first(order, self.num_visible)
