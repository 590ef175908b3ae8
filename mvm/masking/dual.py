"""Dual masking (VideoMAE V2, arXiv 2303.16727): the decoder, too, answers for a part only."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from mvm.masking import sampling
from mvm.masking.tube import Tube
from mvm.types import Grid, Mask, UserError

_DECODER = 2**32 - 1  # A child of the key that no clip of a batch folds in.


def running_cell(phase: Int[Array, "B"], grid: Grid, decoder_ratio: float) -> Int[Array, "B M"]:
    """Tokens the decoder answers for, ascending.

    Number a cell's tokens i = 0..3 row by row and let m of four be left out. In slot f token i
    is left out if `(i + phase + f + 1) mod 4 < m`, in all cells alike. So every token is left out
    in m of any four consecutive slots, and each of the four phases (0 to 3) is one fixed map.
    `decoder_ratio` is m / 4; the grid has even height and width.
    """
    f, y, x = jnp.indices(grid).reshape(3, -1)
    turn = (2 * (y % 2) + x % 2 + f + 1 + phase[:, None]) % 4
    answered = (turn >= 4 * decoder_ratio).astype(jnp.int32)
    return sampling.largest(answered, grid.n - int(decoder_ratio * grid.n))  # Ties: ascending.


def join(visible: Int[Array, "B V"], target: Int[Array, "B M"], grid: Grid) -> Mask:
    """A mask whose targets count only where the encoder does not see them; both ascending."""
    hidden = jnp.ones((visible.shape[0], grid.n), jnp.float32)
    hidden = jax.vmap(lambda row, index: row.at[index].set(0.0))(hidden, visible)
    return Mask(visible, target, jnp.take_along_axis(hidden, target, axis=-1))


@dataclass(frozen=True)
class Dual(Tube):
    """Hides tubes from the encoder and has running cells choose what is reconstructed.

    The choice does not look at the tubes: a target may be visible as well. The decoder then answers
    for it, too, but its weight is 0. The paper divides the loss by the number of decoded tokens
    (784), its code by that of those that count (704). Here, too, the weights say what counts.
    """

    decoder_ratio: float = 0.5
    """Fraction of tokens that is not reconstructed: one, two or three quarters."""

    def counts(self) -> tuple[int, int]:
        """160 and 784 of 8x14x14 tokens, 208 and 1024 of 8x16x16.

        704 and 920 of those targets count in every draw: where t is a multiple of 4, running cells
        meet the tubes equally often whatever their phase.
        """
        if self.decoder_ratio not in (0.25, 0.5, 0.75):
            raise UserError(
                f"mask.decoder_ratio={self.decoder_ratio} is no count of a running cell's four "
                f"tokens; choose 0.25, 0.5 or 0.75"
            )
        if self.grid.h % 2 or self.grid.w % 2:
            raise UserError(
                f"a grid of {self.grid.h}x{self.grid.w} tokens does not divide into running cells "
                f"of 2x2; change data.image_size"
            )
        return super().counts()[0], self.grid.n - int(self.decoder_ratio * self.grid.n)

    def sample(self, key: Array, tokens: Array, scores: Array | None = None) -> Mask:
        """Draws the tubes as `Tube` does with this key, and one of four phases of the cells."""
        tubes = Tube(self.grid, self.mask_ratio).sample(key, tokens)
        draws = sampling.uniform(jax.random.fold_in(key, _DECODER), tokens.shape[0], 1)[:, 0]
        phase = (4 * draws).astype(jnp.int32)
        target = running_cell(phase, self.grid, self.decoder_ratio)
        return join(tubes.visible, target, self.grid)
