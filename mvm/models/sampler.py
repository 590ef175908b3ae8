"""AdaMAE's sampler (arXiv 2211.09120): where in a clip is it worth looking?"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from mvm.models import vit

_HEADS, _DROPOUT = 8, 0.1


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
