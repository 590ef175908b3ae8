"""EVEREST's motion-aware token selection (Hwang et al., ICML 2024, arXiv 2211.10636)."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from mvm.masking import sampling
from mvm.types import Grid, Mask, Strategy


def motion(tokens: Float[Array, "B N D"], grid: Grid) -> Float[Array, "B N"]:
    """How far each token moves away from the token before it in time, float32.

    scores[t, j] = || tokens[t, j] - tokens[t - 1, j] ||_2 for slots t >= 1. The first slot has
    none before it and takes the scores of the second.

    Args:
        tokens: patch embeddings without positions. The embedding is linear, so its bias cancels.
        grid: the token grid.
    """
    slots = tokens.astype(jnp.float32).reshape(tokens.shape[0], grid.t, grid.h * grid.w, -1)
    distance = jnp.linalg.norm(slots[:, 1:] - slots[:, :-1], axis=-1)
    return jnp.concatenate([distance[:, :1], distance], axis=1).reshape(-1, grid.n)


def partition(
    scores: Float[Array, "B N"],
    noise: Float[Array, "B K"],
    num_visible: int,
) -> Mask:
    """Keeps the K highest scores and makes the `num_visible` of smallest noise among them visible.

    Args:
        scores: motion per token; equal scores go to the lower index.
        noise: one value per kept token, in order of descending score.
        num_visible: V; the other K - V kept tokens are targets, the rest takes no part at all.
    """
    kept = sampling.largest(scores, noise.shape[-1])
    order = jnp.take_along_axis(kept, sampling.smallest(noise, noise.shape[-1]), axis=-1)
    return sampling.split(order, num_visible)


@dataclass(frozen=True)
class Everest(Strategy):
    """Selects the moving tokens and splits them at random into visible ones and targets.

    With `1 - mask_ratio == keep_ratio` all selected tokens are visible and nothing is left to
    chance: that is the selection of fine-tuning and evaluation.

    Note:
        The released code sorts with an unstable argsort. Slot 0 always ties with slot 1, so its
        order among ties is undefined; here the lower index goes first.
    """

    keep_ratio: float = 0.3
    """Fraction of tokens judged informative (the paper's rho_pre)."""
    mask_ratio: float = 0.9
    """Fraction of all tokens that is not visible."""
    needs_tokens = True

    def counts(self) -> tuple[int, int]:
        """156 and 314 of 1568 tokens; 940 and 0 at keep_ratio .6, mask_ratio .4."""
        num_kept = sampling.num_kept(self.grid.n, 1 - self.keep_ratio)
        num_visible = sampling.num_kept(self.grid.n, self.mask_ratio)
        return num_visible, num_kept - num_visible

    def sample(self, key: Array, tokens: Array, scores: Array | None = None) -> Mask:
        """Ranks tokens by their motion, on a grid of at least two slots."""
        if scores is None:
            scores = motion(tokens, self.grid)
        noise = sampling.uniform(key, tokens.shape[0], sum(self.counts()))
        return partition(scores, noise, self.num_visible)
