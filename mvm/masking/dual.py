"""Dual masking (VideoMAE V2, arXiv 2303.16727): the decoder, too, answers for a part only."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mvm.masking import frame, sampling, tube, uniform
from mvm.types import Grid, Mask, UserError

NEEDS_TOKENS = False

_DECODER = 2**32 - 1  # A child of the key that no clip of a batch folds in.


def counts(
    grid: Grid,
    *,
    mask_ratio: float = 0.9,
    decoder_mask: str = "running_cell",
    decoder_ratio: float = 0.5,
) -> tuple[int, int]:
    """(visible, target): 160 and 784 of 8x14x14 tokens, 208 and 1024 of 8x16x16.

    704 and 920 of those targets count in every draw: where t is a multiple of 4, running cells
    meet the tubes equally often whatever their phase.

    Raises:
        UserError: for an unknown `decoder_mask`; for running cells on a grid of odd height or
            width, or with a ratio that is not one, two or three quarters.
    """
    num_visible, num_hidden = tube.counts(grid, mask_ratio=mask_ratio)
    if decoder_mask == "none":
        return num_visible, num_hidden
    if decoder_mask == "frame":
        return num_visible, frame.counts(grid, mask_ratio=decoder_ratio)[0]
    if decoder_mask == "random":
        return num_visible, uniform.counts(grid, mask_ratio=decoder_ratio)[0]
    if decoder_mask != "running_cell":
        raise UserError(
            f"mask.decoder_mask={decoder_mask!r} is unknown; "
            "give running_cell, frame, random or none"
        )
    if decoder_ratio not in (0.25, 0.5, 0.75):
        raise UserError(
            f"mask.decoder_ratio={decoder_ratio} is no count of a running cell's four tokens; "
            "give 0.25, 0.5 or 0.75"
        )
    if grid.h % 2 or grid.w % 2:
        raise UserError(
            f"a grid of {grid.h}x{grid.w} tokens does not divide into running cells of 2x2; "
            "change data.image_size or mask.decoder_mask"
        )
    return num_visible, grid.n - int(decoder_ratio * grid.n)


def running_cell(phase: Int[Array, "B"], grid: Grid, decoder_ratio: float) -> Int[Array, "B M"]:
    """Tokens the decoder answers for, ascending.

    Number a cell's tokens i = 0..3 row by row and let m of four be left out. In slot f token i
    is left out if `(i + phase + f + 1) mod 4 < m`, in all cells alike. So every token is left out
    in m of any four consecutive slots, and each of the four phases is one fixed map.

    Args:
        phase: 0 to 3 per clip.
        grid: the token grid; even height and width.
        decoder_ratio: m / 4, the fraction left out.
    """
    f, y, x = jnp.indices(grid).reshape(3, -1)
    turn = (2 * (y % 2) + x % 2 + f + 1 + phase[:, None]) % 4
    return sampling.true_at(turn >= 4 * decoder_ratio, grid.n - int(decoder_ratio * grid.n))


def join(visible: Int[Array, "B V"], target: Int[Array, "B M"], grid: Grid) -> Mask:
    """A mask whose targets count only where the encoder does not see them; both ascending."""
    hidden = jnp.ones((visible.shape[0], grid.n), jnp.float32)
    hidden = jax.vmap(lambda row, index: row.at[index].set(0.0))(hidden, visible)
    return Mask(visible, target, jnp.take_along_axis(hidden, target, axis=-1))


def sample(
    key: Key[Array, ""],
    tokens: Float[Array, "B N D"],
    grid: Grid,
    scores: Float[Array, "B N"] | None = None,
    *,
    mask_ratio: float = 0.9,
    decoder_mask: str = "running_cell",
    decoder_ratio: float = 0.5,
) -> Mask:
    """Hides tubes from the encoder and has a second mask choose what is reconstructed.

    The choice does not look at the first mask: a target may be visible as well. The decoder then
    answers for it, too, but its weight is 0.

    Args:
        key: one key for the batch; each clip folds in its row. The tubes are those that
            `tube.sample` draws with it.
        tokens: only the batch size is read.
        grid: the token grid.
        scores: not used.
        mask_ratio: fraction of places hidden from the encoder.
        decoder_mask: what is reconstructed: "running_cell"; the paper's ablations "frame" (whole
            slots) and "random" (any tokens); "none" (all that is hidden, as in VideoMAE).
        decoder_ratio: fraction of tokens that is not reconstructed; "none" does not read it.

    Raises:
        UserError: see `counts`.

    Note:
        The paper divides the loss by the number of decoded tokens (784), its code by that of
        those that count (704). Here, too, the weights say what counts.
    """
    counts(grid, mask_ratio=mask_ratio, decoder_mask=decoder_mask, decoder_ratio=decoder_ratio)
    hidden = tube.sample(key, tokens, grid, mask_ratio=mask_ratio)
    key = jax.random.fold_in(key, _DECODER)
    if decoder_mask == "none":
        return hidden
    if decoder_mask == "frame":
        target = frame.sample(key, tokens, grid, mask_ratio=decoder_ratio).visible
    elif decoder_mask == "random":
        target = uniform.sample(key, tokens, grid, mask_ratio=decoder_ratio).visible
    else:
        draws = sampling.uniform(key, tokens.shape[0], 1)[:, 0]
        target = running_cell((4 * draws).astype(jnp.int32), grid, decoder_ratio)
    return join(hidden.visible, target, grid)
