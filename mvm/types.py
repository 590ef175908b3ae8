"""The words the whole code base shares: grids, masks and masking strategies."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

Params = dict[str, Any]
"""Nested dict of float32 arrays; a leaf's path, joined by "/", is its name everywhere."""

Metrics = dict[str, Any]
"""Scalars by name."""

State = dict[str, Any]
"""Of training: `step` int32, `params`, `opt`, `key` uint32 (raw PRNG key) and, where a task or run
has them, `frozen` (parameters that are not trained) and `ema` (a moving average of `params`)."""


class UserError(ValueError):
    """A mistake in a configuration, a list or a file: one line that names it and the cure."""


class Grid(NamedTuple):
    """Counts of tubelets along time, height and width; tokens are numbered t-major."""

    t: int
    h: int
    w: int

    @property
    def n(self) -> int:
        """N, the number of tokens."""
        return self.t * self.h * self.w


class Tubelet(NamedTuple):
    """Size of one token's pixel block in frames and pixels."""

    t: int
    h: int
    w: int

    def grid(self, num_frames: int, height: int, width: int) -> Grid:
        """The grid of a clip `[num_frames, height, width, 3]`.

        Raises:
            UserError: if the tubelet does not divide the clip; the message shows both.
        """
        clip = (num_frames, height, width)
        if any(size % block for size, block in zip(clip, self)) or not all(clip):
            raise UserError(
                f"a clip of {num_frames} frames of {height}x{width} px is not divisible into "
                f"tubelets of {self.t}x{self.h}x{self.w}; change data.num_frames, "
                f"data.image_size or model.tubelet"
            )
        return Grid(*(size // block for size, block in zip(clip, self)))

    @property
    def pixels(self) -> int:
        """P, the length of one flattened RGB tubelet."""
        return math.prod(self) * 3


class Mask(NamedTuple):
    """Which tokens the encoder sees and which the decoder reconstructs."""

    visible: Int[Array, "B V"]
    """Ascending token indices the encoder sees."""
    target: Int[Array, "B M"]
    """Ascending token indices the decoder reconstructs; M may be 0."""
    weight: Float[Array, "B M"]
    """1 where the loss counts, 0 where a target is also visible."""


class Strategy(NamedTuple):
    """A masking strategy with its hyper-parameters and counts resolved for one grid."""

    name: str
    sample: Callable[..., Mask]
    """`sample(key, tokens, grid, scores=None) -> Mask`, pure, static shapes."""
    needs_tokens: bool
    """Whether `tokens` must be embeddings `[B, N, D]`; otherwise only its batch size is read."""
    num_visible: int
    num_target: int
    network: Callable[..., Any] | None = None
    """`network(grid, width, run, rngs=rngs)` builds the sampler whose log-probabilities
    `[B, N]` become `scores`, for a strategy that learns where to look (AdaMAE)."""
    loss: Callable[..., Array] | None = None
    """`loss(scores, error, mask) -> scalar`: what that network minimises, given the error
    `[B, M]` of each target; added to the loss of reconstruction."""
