"""AdaMAE's sampler (arXiv 2211.09120): where in a clip is it worth looking?"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from mvm.models import vit


class Sampler(nnx.Module):
    """Tokens to log-probabilities: learned positions, blocks or an MLP, a linear head, softmax.

    Args:
        num_tokens: N, as many as positions are learned.
        width: D of the tokens.
        kind: "block" (attention and MLP) or "mlp" (token by token).
        size: of the blocks; a width other than D puts a linear layer in front.
        detach: whether the loss of the sampler leaves the patch embedding alone.
        temperature: the logits are divided by it.
        run: how to compute.
        rngs: for the initial weights.

    Note:
        As released, blocks have a LayerNorm epsilon of 1e-5, no bias on queries and values, and
        dropout on what attention and MLP return; positions begin at zero and are decayed.
    """

    def __init__(
        self,
        num_tokens: int,
        width: int,
        kind: str,
        size: vit.Size,
        detach: bool,
        temperature: float,
        run: vit.Run,
        *,
        rngs: nnx.Rngs,
    ):
        self.run, self.detach, self.temperature = run, detach, temperature
        self.positions = nnx.Param(jnp.zeros((num_tokens, width)))
        fits = size.width == width
        self.project = None if fits else vit.linear(width, size.width, "xavier", run, rngs=rngs)
        blocks = kind == "block"
        self.blocks = vit.stack(size.depth, size, "xavier", run, rngs) if blocks else None
        self.mlp = None if blocks else vit.Mlp(size, "xavier", run, rngs=rngs)
        self.head = vit.linear(size.width, 1, "xavier", vit.Run(), rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "B N D"], key: Key[Array, ""] | None
    ) -> Float[Array, "B N"]:
        """Log-probabilities over all tokens of a clip, float32; `key` is for dropout."""
        x = jax.lax.stop_gradient(tokens) if self.detach else tokens
        x = (x + self.positions[...]).astype(self.run.dtype)
        x = x if self.project is None else self.project(x)
        if self.blocks is not None:
            x = vit.apply_stack(self.blocks, x, self.run, key=key)
        if self.mlp is not None:
            x = self.mlp(x)
        logits = self.head(x.astype(jnp.float32))[..., 0] / self.temperature
        return jax.nn.log_softmax(jnp.nan_to_num(logits))
