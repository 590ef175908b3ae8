"""Drawing tokens without replacement, with static counts and one key per clip."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mvm.types import Mask


def remaining(n: int, ratio: float) -> int:
    """How many of n tokens remain without a fraction of them.

    The expression of the released codes, binary rounding included: 79 of 800 at 0.9.
    """
    return int((1 - ratio) * n)


def row_keys(key: Key[Array, ""], batch: int) -> Key[Array, "B"]:
    """One key per clip, so that a clip's mask does not depend on the rest of its batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))


def uniform(key: Key[Array, ""], batch: int, n: int) -> Float[Array, "B n"]:
    """Uniform noise in [0, 1), float32, row by row."""
    return jax.vmap(lambda k: jax.random.uniform(k, (n,)))(row_keys(key, batch))


def gumbel(key: Key[Array, ""], batch: int, n: int) -> Float[Array, "B n"]:
    """Standard Gumbel noise, float32, row by row.

    The k largest entries of `log(weight) + noise` are k draws without replacement, each in
    proportion to the weights that are left (Gumbel-top-k).
    """
    return jax.vmap(lambda k: jax.random.gumbel(k, (n,)))(row_keys(key, batch))


def shuffled(key: Key[Array, ""], batch: int, n: int) -> Int[Array, "B n"]:
    """The numbers 0 to n - 1 in random order, row by row."""
    return largest(-uniform(key, batch, n), n)


def largest(scores: Float[Array, "B n"], k: int) -> Int[Array, "B k"]:
    """Positions of the k largest entries of each row, largest first; ties to the lower index."""
    return jax.lax.top_k(scores, k)[1]


def visible_first(order: Int[Array, "B n"], num_visible: int) -> Mask:
    """A mask that shows the first tokens in `order`; all others are targets that count."""
    # Sorted, so that gathers are monotone and tokens keep their order in the clip.
    visible, target = jnp.sort(order[:, :num_visible]), jnp.sort(order[:, num_visible:])
    return Mask(visible, target, jnp.ones(target.shape, jnp.float32))
