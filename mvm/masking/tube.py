"""Tube masking (VideoMAE, arXiv 2203.12602): the same places are hidden at every time."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array

from mvm.masking import sampling
from mvm.types import Mask, Strategy


@dataclass(frozen=True)
class Tube(Strategy):
    """Hides `int(mask_ratio * h * w)` places in all t slots; all hidden tokens are targets."""

    mask_ratio: float = 0.9
    """Fraction of places hidden."""

    def counts(self) -> tuple[int, int]:
        """160 and 1408 of 8x14x14 tokens at 0.9; the floor is taken per slot."""
        places = self.grid.h * self.grid.w
        masked = int(self.mask_ratio * places)
        return self.grid.t * (places - masked), self.grid.t * masked

    def sample(self, key: Array, tokens: Array, scores: Array | None = None) -> Mask:
        """Draws places, then repeats them along time."""
        places = self.grid.h * self.grid.w
        order = sampling.shuffled(key, tokens.shape[0], places)
        slots = jnp.arange(self.grid.t)[:, None] * places
        order = (order[:, None, :] + slots).transpose(0, 2, 1).reshape(-1, self.grid.n)
        return sampling.visible_first(order, self.num_visible)
