"""What a model costs: multiply-accumulates of its matrix products, in closed form.

Counts hold for one clip and one forward pass; each task names its parts (`Task.macs`). Norms,
softmax, GELU, gathers, the distances of the motion score and the pixel arithmetic are left out, as
is usual; they are not matrix products. One multiply-accumulate (MAC) is two floating-point
operations.
"""

from collections.abc import Collection, Mapping
from typing import Any


def block_macs(size: Any, num_tokens: int, num_queries: int | None = None) -> int:
    """MACs of one transformer block, 12 n D^2 + 2 n^2 D for an MLP four times as wide.

    Of the n tokens `num_queries` ask and go through the MLP; None means all.
    """
    n, q, d = num_tokens, num_tokens if num_queries is None else num_queries, size.width
    query_and_projection, key_and_value, attention = 2 * q * d * d, 2 * n * d * d, 2 * q * n * d
    mlp = 2 * q * d * int(d * size.mlp_ratio)
    return query_and_projection + key_and_value + attention + mlp


def train_flops(
    macs: Mapping[str, int],
    untrained: Collection[str] = ("select",),
    through: Collection[str] = (),
) -> int:
    """Floating-point operations of one clip in a training step, 6 per MAC.

    Two per MAC forward, and twice that backward: once for the gradient of the weights or of the
    one factor, once for that of the other. Parts without a backward pass (`Task.untrained`) count
    2; those that a gradient passes `through`, whose weights have none, 4, which leaves out a part
    of attention's own. Left out: the optimiser's update, whatever the backward pass rematerialises,
    and all that the MACs leave out. The patch embedding is counted like the rest, although the
    gradient of its pixels (2 of its 6) is never computed.
    """
    factor = dict.fromkeys(through, 4) | dict.fromkeys(untrained, 2)
    return sum(factor.get(part, 6) * count for part, count in macs.items())
