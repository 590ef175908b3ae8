"""The attentive pooler of V-JEPA 2 (arXiv 2506.09985): one learned query asks all tokens."""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mvm.models import vit
from mvm.models.attention import attend


class AttentivePooler(nnx.Module):
    """`depth - 1` blocks over the tokens, then a block in which the query attends to them.

    q = q + attention(q, norm(x)); q = q + mlp(norm(q)): the query itself is not normalised, and
    attention has no output projection.
    """

    def __init__(self, size: vit.Size, depth: int, run: vit.Run, *, rngs: nnx.Rngs):
        size = size._replace(
            mlp_ratio=4.0, epsilon=1e-5, cosine=False, layer_scale=0.0, k_bias=True
        )
        d, self.heads, self.run = size.width, size.heads, run
        init = nnx.initializers.truncated_normal(0.02, lower=-100.0, upper=100.0)
        self.query = nnx.Param(init(rngs.params(), (1, 1, d)))
        self.blocks = vit.stack(depth - 1, size, "normal", run, rngs) if depth > 1 else None
        self.norm1 = vit.norm(d, epsilon=size.epsilon, dtype=run.dtype, rngs=rngs)
        self.q = vit.linear(d, d, "normal", run, rngs=rngs)
        self.kv = vit.linear(d, 2 * d, "normal", run, rngs=rngs)
        self.norm2 = vit.norm(d, epsilon=size.epsilon, dtype=run.dtype, rngs=rngs)
        self.mlp = vit.Mlp(size, "normal", run, rngs=rngs)
        # Residual outputs shrink with depth; the last MLP counts as that of the block before it.
        if self.blocks is not None:
            scale = jnp.sqrt(2.0 * jnp.arange(1, depth))[:, None, None]
            for kernel in (self.blocks.attention.proj.kernel, self.blocks.mlp.fc2.kernel):
                kernel[...] = kernel[...] / scale
        last = self.mlp.fc2.kernel
        last[...] = last[...] / math.sqrt(2 * max(depth - 1, 1))

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        if self.blocks is not None:
            x = vit.apply_stack(self.blocks, x, self.run)
        query = jnp.broadcast_to(self.query[...], (len(x), 1, x.shape[-1]))
        q, k, v = (
            y.reshape(*y.shape[:2], self.heads, -1)
            for y in (self.q(query), *jnp.split(self.kv(self.norm1(x)), 2, axis=-1))
        )
        query = query + attend(self.run.attention, q, k, v).reshape(query.shape)
        return (query + self.mlp(self.norm2(query)))[:, 0]
