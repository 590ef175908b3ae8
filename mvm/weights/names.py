"""The names and layouts of official PyTorch weights against ours, as one table for both directions.

VideoMAE (arXiv 2203.12602), EVEREST (arXiv 2211.10636), AdaMAE (arXiv 2211.09120) and VideoMAE V2
(arXiv 2303.16727) share these names.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Way(NamedTuple):
    """How one array changes between the layouts; `tubelet` is the (t, h, w) of its pixels."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_official: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def _conv_to_ours(kernel: np.ndarray) -> np.ndarray:
    """`[D, 3, p_t, p_h, p_w]` -> `[P, D]`, rows in the order (t, h, w, c) of a flat tubelet."""
    return kernel.transpose(2, 3, 4, 1, 0).reshape(-1, kernel.shape[0])


def _conv_to_official(kernel: np.ndarray, tubelet: tuple[int, ...]) -> np.ndarray:
    return kernel.reshape(*tubelet, 3, kernel.shape[-1]).transpose(4, 3, 0, 1, 2)


_SAME = Way(lambda x: x, lambda x, tubelet: x)
_LINEAR = Way(lambda x: x.T, lambda x, tubelet: x.T)
_CONV = Way(_conv_to_ours, _conv_to_official)
_TOKEN = Way(lambda x: x.reshape(-1), lambda x, tubelet: x.reshape(1, 1, -1))
_TABLE = Way(lambda x: x.reshape(-1, x.shape[-1]), lambda x, tubelet: x[None])
_PER_HEAD = Way(lambda x: x.reshape(-1), lambda x, tubelet: x.reshape(-1, 1, 1))


class Rule(NamedTuple):
    """One leaf of ours, its official key, and the way between them.

    `{i}` numbers the layers of a stack, `{last}` is the number of layers before this one.
    """

    ours: str
    official: str
    way: Way


def _norm(ours: str, official: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{ours}/scale", f"{official}.weight", _SAME),
        Rule(f"{ours}/bias", f"{official}.bias", _SAME),
    )


def _linear(ours: str, official: str, way: Way = _LINEAR) -> tuple[Rule, ...]:
    return (
        Rule(f"{ours}/kernel", f"{official}.weight", way),
        Rule(f"{ours}/bias", f"{official}.bias", _SAME),
    )


def _block(ours: str, official: str) -> tuple[Rule, ...]:
    return (
        # Layer scale and cosine attention are options of VideoMAE V2.
        Rule(f"{ours}/gamma1", f"{official}.gamma_1", _SAME),
        Rule(f"{ours}/gamma2", f"{official}.gamma_2", _SAME),
        *_norm(f"{ours}/norm1", f"{official}.norm1"),
        Rule(f"{ours}/attention/scale", f"{official}.attn.scale", _PER_HEAD),
        # Rows q | k | v, each head-major, become columns in the same order; k has no bias.
        Rule(f"{ours}/attention/qkv/kernel", f"{official}.attn.qkv.weight", _LINEAR),
        Rule(f"{ours}/attention/q_bias", f"{official}.attn.q_bias", _SAME),
        Rule(f"{ours}/attention/v_bias", f"{official}.attn.v_bias", _SAME),
        *_linear(f"{ours}/attention/proj", f"{official}.attn.proj"),
        *_norm(f"{ours}/norm2", f"{official}.norm2"),
        *_linear(f"{ours}/mlp/fc1", f"{official}.mlp.fc1"),
        *_linear(f"{ours}/mlp/fc2", f"{official}.mlp.fc2"),
    )


def _positions(ours: str, official: str) -> tuple[Rule, ...]:
    """Learned positions; none of the four projects has them, so the words are mae_st's."""
    return (
        Rule(f"{ours}/positions/time", f"{official}.pos_embed_temporal", _TABLE),
        Rule(f"{ours}/positions/space", f"{official}.pos_embed_spatial", _TABLE),
    )


# AdaMAE released one block and a linear layer, without a bias on queries and values.
_SAMPLER = (
    Rule("sampler/positions", "encoder.pos_embed_probs", _TABLE),
    *_block("sampler/blocks", "encoder.get_token_probs.{i}"),
    *_linear("sampler/head", "encoder.get_token_probs.1"),
)

# Official keys are those of a pre-train file; a fine-tune file drops the leading "encoder.".
ENCODER = (
    *_positions("encoder", "encoder"),
    *_linear("encoder/embed", "encoder.patch_embed.proj", _CONV),
    *_block("encoder/blocks", "encoder.blocks.{i}"),
)
AUTOENCODER = (
    *ENCODER,
    *_norm("encoder/norm", "encoder.norm"),
    *_SAMPLER,
    Rule("encoder_to_decoder/kernel", "encoder_to_decoder.weight", _LINEAR),
    Rule("mask_token", "mask_token", _TOKEN),
    *_positions("decoder", "decoder"),
    *_block("decoder/blocks", "decoder.blocks.{i}"),
    *_block("decoder/last", "decoder.blocks.{last}"),
    *_norm("decoder/norm", "decoder.norm"),
    # The target's order is (t, h, w, c) in the official code too: nothing to permute here.
    *_linear("decoder/head", "decoder.head"),
)
CLASSIFIER = (*ENCODER, *_norm("fc_norm", "fc_norm"), *_linear("head", "head"))
# MMAction2's words in a classifier's names, and the official ones.
MMACTION2 = {
    "patch_embed.projection.": "patch_embed.proj.",
    ".mlp.layers.0.0.": ".mlp.fc1.",
    ".mlp.layers.1.": ".mlp.fc2.",
    "cls_head.fc_cls.": "head.",
}
