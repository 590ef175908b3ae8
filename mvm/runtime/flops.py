"""What a model costs: multiply-accumulates of its matrix products, in closed form.

Both counts hold for one clip and one forward pass. Norms, softmax, GELU, gathers, the distances
of the motion score and the pixel arithmetic are left out, as is usual; they are not matrix
products. One multiply-accumulate (MAC) is two floating-point operations.
"""

import math
from collections.abc import Mapping

import jax

from mvm import tasks
from mvm.models import vit
from mvm.optim import path_of


def block_macs(size: vit.Size, num_tokens: int, num_queries: int | None = None) -> int:
    """MACs of one transformer block, 12 n D^2 + 2 n^2 D for an MLP four times as wide.

    Args:
        size: width D and MLP ratio.
        num_tokens: n, tokens that keys and values are made of.
        num_queries: tokens that ask and go through the MLP; None means all.
    """
    n, q, d = num_tokens, num_tokens if num_queries is None else num_queries, size.width
    query_and_projection, key_and_value, attention = 2 * q * d * d, 2 * n * d * d, 2 * q * n * d
    mlp = 2 * q * d * int(d * size.mlp_ratio)
    return query_and_projection + key_and_value + attention + mlp


def forward_macs(task: tasks.Task, num_classes: int = 0) -> dict[str, int]:
    """MACs of the model as published: what GFLOPs tables call its cost.

    It counts the definition of the model and not how it is computed here: all N tokens (of all
    candidate frames) are embedded whatever the mask, motion scores and samplers reuse those
    embeddings, and every decoder block works on all visible and target tokens. That makes models
    comparable with published tables and with other code, and it is the numerator of MFU. See
    `executed_macs` for our own work.

    Args:
        task: the model and its mask.
        num_classes: C of a classifier; 0 means an autoencoder.

    Returns:
        MACs by part: "embed", "select" (0 here), "sampler", "encoder", "encoder_to_decoder",
        "decoder", "head".
    """
    visible, target = _tokens(task)
    out = _shared(task, num_classes, embedded=task.num_candidates, scored=0)
    if not num_classes:
        out["decoder"] = task.decoder.depth * block_macs(task.decoder, visible + target)
    return out


def executed_macs(task: tasks.Task, num_classes: int = 0) -> dict[str, int]:
    """MACs of the matrix products that our forward pass really does.

    It differs from `forward_macs` in what is saved, and in the one thing that is done twice: only
    visible tokens are embedded for the encoder; a strategy that looks at tokens embeds all of
    them beforehand ("select"); and the last decoder block asks for the targets alone.

    Args:
        task: the model and its mask.
        num_classes: C of a classifier; 0 means an autoencoder.

    Returns:
        MACs by part, under the names of `forward_macs`.
    """
    visible, target = _tokens(task)
    strategy, scored = task.strategy, 0
    learns = strategy is not None and strategy.network is not None
    if strategy is not None and strategy.needs_tokens and not learns:
        scored += task.grid.n
    if task.num_candidates > task.grid.n:
        scored += task.num_candidates
    # The sampler's loss goes back into the embedding of all tokens, which is more than a score.
    embedded = visible + (task.grid.n if learns else 0)
    out = _shared(task, num_classes, embedded=embedded, scored=scored)
    if not num_classes:
        n, size = visible + target, task.decoder
        out["decoder"] = (size.depth - 1) * block_macs(size, n) + block_macs(size, n, target)
    return out


def train_flops(macs: Mapping[str, int]) -> int:
    """Floating-point operations of one clip in a training step, 6 per MAC.

    Two per MAC forward, and twice that backward: once for the gradient of the weights or of the
    one factor, once for that of the other. The part "select" counts 2 per MAC, because the motion
    score has no backward pass. Left out: the optimiser's update, whatever the backward pass
    rematerialises, and all that the MACs leave out. The patch embedding is counted like the rest,
    although the gradient of its pixels (2 of its 6) is never computed.

    Args:
        macs: from `forward_macs` or `executed_macs`.
    """
    return sum((2 if part == "select" else 6) * count for part, count in macs.items())


def _tokens(task: tasks.Task) -> tuple[int, int]:
    """(visible, target)."""
    s = task.strategy
    return (s.num_visible, s.num_target) if s else (task.grid.n, 0)


def _sampler(task: tasks.Task) -> int:
    """MACs of AdaMAE's sampler, which works on all tokens of a clip; 0 without one."""
    total, n = 0, task.grid.n
    for path, leaf in jax.tree_util.tree_leaves_with_path(task.abstract.get("sampler", {})):
        name = path_of(path)
        if name.endswith("kernel"):
            total += n * math.prod(leaf.shape)
        if name.endswith("qkv/kernel"):
            layers, width, _ = leaf.shape
            total += layers * 2 * n * n * width
    return total


def _shared(task: tasks.Task, num_classes: int, *, embedded: int, scored: int) -> dict[str, int]:
    """Every part but the decoder, in which the two counts agree given their embedded tokens."""
    visible, target = _tokens(task)
    width, pixels = task.encoder.width, task.tubelet.pixels
    predicted = 0 if num_classes else task.abstract["decoder"]["head"]["bias"].size
    head = width * num_classes if num_classes else target * task.decoder.width * predicted
    return {
        "embed": embedded * pixels * width,
        "select": scored * pixels * width,
        "sampler": _sampler(task),
        "encoder": task.encoder.depth * block_macs(task.encoder, visible),
        "encoder_to_decoder": 0 if num_classes else visible * width * task.decoder.width,
        "decoder": 0,
        "head": head,
    }
