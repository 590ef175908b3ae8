"""Uniform masking: every token is as likely to be hidden as any other."""

from dataclasses import dataclass

from jaxtyping import Array

from mvm.masking import sampling
from mvm.types import Mask, Strategy


@dataclass(frozen=True)
class Uniform(Strategy):
    """Hides `int(mask_ratio * N)` tokens anywhere in the clip; all of them are targets."""

    mask_ratio: float = 0.9
    """Fraction of tokens hidden."""

    def counts(self) -> tuple[int, int]:
        """157 and 1411 of 1568 tokens at 0.9, as the released random mask."""
        masked = int(self.mask_ratio * self.grid.n)
        return self.grid.n - masked, masked

    def sample(self, key: Array, tokens: Array, scores: Array | None = None) -> Mask:
        order = sampling.shuffled(key, tokens.shape[0], self.grid.n)
        return sampling.visible_first(order, self.num_visible)
