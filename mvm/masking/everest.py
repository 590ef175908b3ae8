"""EVEREST's motion-aware token selection (Hwang et al., ICML 2024, arXiv 2211.10636)."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from mvm.masking import sampling
from mvm.types import Grid, Mask, Strategy


def motion(tokens: Float[Array, "B N D"], grid: Grid) -> Float[Array, "B N"]:
    """How far each token moves away from the token before it in time, float32.

    motion[t, j] = || tokens[t, j] - tokens[t - 1, j] ||_2 for slots t >= 1. The first slot has
    none before it and takes the motion of the second. Tokens are patch embeddings without
    positions; the embedding is linear, so its bias cancels.
    """
    slots = tokens.astype(jnp.float32).reshape(tokens.shape[0], grid.t, grid.h * grid.w, -1)
    distance = jnp.linalg.norm(slots[:, 1:] - slots[:, :-1], axis=-1)
    return jnp.concatenate([distance[:, :1], distance], axis=1).reshape(-1, grid.n)


def partition(scores: Float[Array, "B N"], noise: Float[Array, "B K"], num_visible: int) -> Mask:
    """Shows `num_visible` of the K tokens of the highest scores: those with the least noise.

    The first noise is that of the token that moves most; of equal scores the lower index goes
    first. The other candidates are targets, all other tokens take no part.
    """
    candidates = sampling.largest(scores, noise.shape[-1])
    shuffled = sampling.largest(-noise, noise.shape[-1])
    order = jnp.take_along_axis(candidates, shuffled, axis=-1)
    return sampling.visible_first(order, num_visible)


@dataclass(frozen=True)
class Everest(Strategy):
    """Selects the moving tokens and splits them at random into visible ones and targets.

    Targets are `keep_ratio + mask_ratio - 1` of all tokens. Where that is 0 all selected tokens are
    visible and nothing is left to chance: the selection of fine-tuning and evaluation.

    The released code sorts with an unstable argsort. Slot 0 always ties with slot 1, so its order
    among ties is undefined; here the lower index goes first.
    """

    keep_ratio: float = 0.3
    """Fraction of tokens judged informative (the paper's rho_pre)."""
    mask_ratio: float = 0.9
    """Fraction of all tokens that is not visible."""
    needs_tokens = True

    def counts(self) -> tuple[int, int]:
        """(visible, target): 156, 314 of 1568 tokens; 940, 0 at keep_ratio .6, mask_ratio .4."""
        num_candidates = sampling.remaining(self.grid.n, 1 - self.keep_ratio)
        num_visible = sampling.remaining(self.grid.n, self.mask_ratio)
        return num_visible, num_candidates - num_visible

    def sample(self, key: Array, tokens: Array, scores: Array | None = None) -> Mask:
        """Ranks tokens by `scores`, else by their motion, on a grid of at least two slots."""
        ranked_by = motion(tokens, self.grid) if scores is None else scores
        noise = sampling.uniform(key, tokens.shape[0], sum(self.counts()))
        return partition(ranked_by, noise, self.num_visible)
