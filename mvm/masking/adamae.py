"""AdaMAE's adaptive masking (arXiv 2211.09120): a network learns which tokens are worth showing."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mvm.masking import sampling
from mvm.models import vit
from mvm.models.sampler import Sampler
from mvm.types import Mask, Strategy

_WEIGHT = 1e-4  # Of the network's loss, as released.

# What a categorical distribution of the released code clamps its probabilities by, float32.
_EPSILON = 2.0**-23


def draw(scores: Float[Array, "B N"], gumbel: Float[Array, "B N"], num_visible: int) -> Mask:
    """Shows the tokens of largest `scores + gumbel`; all others are targets.

    With Gumbel noise this is a sequential draw in proportion to `exp(scores)`, log-probabilities,
    without replacement and without a share per slot.
    """
    order = sampling.largest(scores + gumbel, scores.shape[-1])
    return sampling.visible_first(order, num_visible)


@dataclass(frozen=True)
class AdaMae(Strategy):
    """Draws `int((1 - mask_ratio) * N)` visible tokens by the probability a network gives them."""

    mask_ratio: float = 0.95
    """Fraction of tokens hidden; all of them are targets."""
    needs_tokens = True

    def counts(self) -> tuple[int, int]:
        """78 and 1490 of 1568 tokens at 0.95, 156 and 1412 at 0.9."""
        num_visible = sampling.remaining(self.grid.n, self.mask_ratio)
        return num_visible, self.grid.n - num_visible

    def sample(self, key: Array, tokens: Array, scores: Array | None = None) -> Mask:
        """Draws by the network's log-probabilities, which are required."""
        assert scores is not None, "adamae draws by the scores of its network; none were passed"
        gumbel = sampling.gumbel(key, tokens.shape[0], self.grid.n)
        return draw(scores, gumbel, self.num_visible)

    def network(self, width: int, run: vit.Run, *, rngs: nnx.Rngs) -> Sampler:
        return Sampler(self.grid.n, width, run, rngs=rngs)

    def loss(
        self, scores: Float[Array, "B N"], error: Float[Array, "B M"], mask: Mask
    ) -> Float[Array, ""]:
        """`-1e-4 mean_{i in target} log p_i e_i`, given how badly each target was reconstructed.

        This is a cross entropy with the error map e, without gradient, as soft label. Its gradient
        for the logit of token j is `(p_j sum_i e_i - [j in target] e_j) / M`, so p learns to be
        proportional to the error a token has when it is hidden.

        `scores` are log-probabilities, normalised over N, by which `mask` was drawn; they are
        clamped to `[log eps, log(1 - eps)]`, eps = 2^-23, beyond which there is no gradient, as in
        the released code. `error` is the mean squared error per pixel.
        """
        log_p = jnp.clip(scores, jnp.log(_EPSILON), jnp.log1p(-_EPSILON))
        signal = jax.lax.stop_gradient(error) * jnp.take_along_axis(log_p, mask.target, axis=-1)
        return -_WEIGHT * signal.mean()
