"""AdaMAE's adaptive masking (arXiv 2211.09120): a network learns which tokens are worth showing."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from mvm.masking import sampling
from mvm.models import vit
from mvm.types import Mask, Strategy

_WEIGHT = 1e-4  # Of the network's loss, as released.
_HEADS, _DROPOUT = 8, 0.1

# What a categorical distribution of the released code clamps its probabilities by, float32.
_EPSILON = 2.0**-23


def draw(scores: Float[Array, "B N"], gumbel: Float[Array, "B N"], num_visible: int) -> Mask:
    """Shows the tokens of largest `scores + gumbel`; all others are targets.

    With Gumbel noise this is a sequential draw in proportion to `exp(scores)`, log-probabilities,
    without replacement and without a share per slot.
    """
    order = sampling.largest(scores + gumbel, scores.shape[-1])
    return sampling.visible_first(order, num_visible)


class Sampler(nnx.Module):
    """Tokens to log-probabilities: learned positions, one block, a linear head, softmax.

    As released, the block has a LayerNorm epsilon of 1e-5, no bias on queries and values, and
    dropout on what attention and MLP return; positions begin at zero and are decayed, and its loss
    moves the patch embedding, too.
    """

    def __init__(self, num_tokens: int, width: int, run: vit.Run, *, rngs: nnx.Rngs):
        self.run = run
        self.positions = nnx.Param(jnp.zeros((num_tokens, width)))
        size = vit.Size(width, 1, _HEADS, epsilon=1e-5, qkv_bias=False, dropout=_DROPOUT)
        self.blocks = vit.stack(1, size, "xavier", run, rngs)
        self.head = vit.linear(width, 1, "xavier", vit.Run(), rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "B N D"], key: Key[Array, ""] | None
    ) -> Float[Array, "B N"]:
        """Log-probabilities over all tokens of a clip, float32; `key` is for dropout."""
        x = (tokens + self.positions[...]).astype(self.run.dtype)
        x = vit.apply_stack(self.blocks, x, self.run, key=key)
        logits = self.head(x.astype(jnp.float32))[..., 0]
        return jax.nn.log_softmax(jnp.nan_to_num(logits))


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
