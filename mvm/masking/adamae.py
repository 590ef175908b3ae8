"""AdaMAE's adaptive masking (arXiv 2211.09120): a network learns which tokens are worth showing."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from mvm.masking import sampling
from mvm.models import sampler, vit
from mvm.types import Grid, Mask, UserError

NEEDS_TOKENS = True  # The network scores the embedding of every token.

# What a categorical distribution of the released code clamps its probabilities by, float32.
_EPSILON = 2.0**-23


def counts(grid: Grid, *, mask_ratio: float = 0.95) -> tuple[int, int]:
    """(visible, target): 78 and 1490 of 1568 tokens at 0.95, 156 and 1412 at 0.9."""
    num_visible = sampling.num_kept(grid.n, mask_ratio)
    return num_visible, grid.n - num_visible


def draw(scores: Float[Array, "B N"], gumbel: Float[Array, "B N"], num_visible: int) -> Mask:
    """Shows the tokens of largest `scores + gumbel`; all others are targets.

    With Gumbel noise this is a sequential draw in proportion to `exp(scores)`, without
    replacement and without a share per slot.

    Args:
        scores: log-probability per token.
        gumbel: noise per token.
        num_visible: V.
    """
    order = sampling.largest(scores + gumbel, scores.shape[-1])
    return sampling.mask_of(order[:, :num_visible], order[:, num_visible:])


def sample(
    key: Key[Array, ""],
    tokens: Float[Array, "B N D"],
    grid: Grid,
    scores: Float[Array, "B N"] | None = None,
    *,
    mask_ratio: float = 0.95,
) -> Mask:
    """Draws `int((1 - mask_ratio) * N)` visible tokens by their probability.

    Args:
        key: one key for the batch; each clip folds in its row.
        tokens: only the batch size is read.
        grid: the token grid.
        scores: log-probability per token, the network's answer for these clips. Required.
        mask_ratio: fraction of tokens hidden.
    """
    assert scores is not None, "adamae draws by the scores of its network; none were passed"
    num_visible, _ = counts(grid, mask_ratio=mask_ratio)
    return draw(scores, sampling.gumbel(key, tokens.shape[0], grid.n), num_visible)


def network(
    grid: Grid,
    width: int,
    run: vit.Run,
    *,
    sampler_kind: str = "block",
    sampler_width: int = 0,
    sampler_depth: int = 1,
    sampler_heads: int = 8,
    sampler_dropout: float = 0.1,
    sampler_detach: bool = False,
    sampler_temperature: float = 1.0,
    rngs: nnx.Rngs,
) -> sampler.Sampler:
    """The network that scores tokens, as released unless told otherwise.

    Args:
        grid: the token grid; the network learns a position for each of its tokens.
        width: D of the tokens.
        run: how to compute.
        sampler_kind: "block" (the released one), or "mlp", which judges each token by itself.
        sampler_width: of the network; 0 takes D. The paper's ablation has 384 beside D = 768.
        sampler_depth: blocks.
        sampler_heads: of their attention.
        sampler_dropout: on what attention and MLP return, in training.
        sampler_detach: whether the loss stops at the tokens; as released it moves the patch
            embedding, too.
        sampler_temperature: the logits are divided by it.
        rngs: for the initial weights.

    Raises:
        UserError: for another kind, or heads that do not divide the width; shows both.
    """
    if sampler_kind not in ("block", "mlp"):
        raise UserError(f"mask.sampler_kind={sampler_kind!r} is unknown; choose block or mlp")
    inner = sampler_width or width
    if sampler_kind == "block" and (sampler_heads < 1 or inner % sampler_heads):
        raise UserError(
            f"mask.sampler_heads={sampler_heads} does not divide the sampler's width {inner}"
        )
    if sampler_depth < 1 or sampler_temperature <= 0:
        raise UserError(
            f"mask.sampler_depth={sampler_depth} and mask.sampler_temperature="
            f"{sampler_temperature} must be positive"
        )
    size = vit.Size(
        inner,
        sampler_depth,
        sampler_heads,
        epsilon=1e-5,
        qkv_bias=False,
        dropout=sampler_dropout,
    )
    return sampler.Sampler(
        grid.n, width, sampler_kind, size, sampler_detach, sampler_temperature, run, rngs=rngs
    )


def loss(
    scores: Float[Array, "B N"],
    error: Float[Array, "B M"],
    mask: Mask,
    *,
    sampler_weight: float = 1e-4,
    sampler_loss: str = "masked",
) -> Float[Array, ""]:
    """What the network minimises, given how badly each target e was reconstructed.

    With log p the scores and e without gradient, averaged over the clips of the batch:

    - "masked": `-mean_{i in target} log p_i e_i`. This is a cross entropy with the error map as
      soft label. Its gradient for the logit of token j is `(p_j sum_i e_i - [j in target] e_j)
      / M`, so p learns to be proportional to the error a token has when it is hidden.
    - "reinforce": `-(mean_{i in visible} log p_i) (E - mean_batch E)`, E the mean of e in a clip.
      The policy gradient that maximises the expected error of what is hidden: a draw that left
      more to reconstruct than the other clips of the batch did becomes likelier, one that left
      less becomes rarer. All visible tokens share the credit, and those that help least are worth
      most: where "masked" shows hard tokens, this may hide them.

    Args:
        scores: log-probability per token, normalised over N.
        error: of each target, mean squared error per pixel.
        mask: what was drawn by these scores.
        sampler_weight: factor on the result.
        sampler_loss: "masked" (as released) or "reinforce".

    Raises:
        UserError: for another `sampler_loss`; shows it and the choices.

    Note:
        Log-probabilities are clamped to `[log eps, log(1 - eps)]`, eps = 2^-23, beyond which
        there is no gradient, as in the released code. "reinforce" takes the mean of the visible
        tokens' log-probabilities for that of the draw; the likelihood of drawing them one after
        another without replacement differs from it. Its baseline contains the clip's own error,
        which scales the gradient by (B - 1) / B and leaves nothing to learn at B = 1; B counts
        the clips of a micro-batch (train.accumulate).
    """
    log_p = jnp.clip(scores, jnp.log(_EPSILON), jnp.log1p(-_EPSILON))
    error = jax.lax.stop_gradient(error)
    if sampler_loss == "masked":
        signal = error * jnp.take_along_axis(log_p, mask.target, axis=-1)
    elif sampler_loss == "reinforce":
        reward = error.mean(axis=-1, keepdims=True)
        signal = (reward - reward.mean()) * jnp.take_along_axis(log_p, mask.visible, axis=-1)
    else:
        raise UserError(f"mask.sampler_loss={sampler_loss!r} is unknown; give masked or reinforce")
    return -sampler_weight * signal.mean()
