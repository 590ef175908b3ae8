"""Official PyTorch weights to and from our parameter trees.

VideoMAE (arXiv 2203.12602), EVEREST (arXiv 2211.10636), AdaMAE (arXiv 2211.09120) and VideoMAE V2
(arXiv 2303.16727) share their names.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mvm.models import positions
from mvm.models.lora import is_low_rank
from mvm.weights.describe import encoder_prefix
from mvm.weights.torch_reader import ConvertError, Weights

# Ours and the official words, replaced in this order. `{i}` numbers the layers of a stack, `{last}`
# is the number of layers before this one.
_WORDS = {
    "sampler/positions": "encoder.pos_embed_probs",
    "sampler/blocks/": "encoder.get_token_probs.{i}.",
    "sampler/head/": "encoder.get_token_probs.1/",
    "decoder/last/": "decoder.blocks.{last}.",
    "/blocks/": ".blocks.{i}.",
    "/embed/": ".patch_embed.proj/",
    # Learned positions; none of the four projects has them, so the words are mae_st's.
    "/positions/time": ".pos_embed_temporal",
    "/positions/space": ".pos_embed_spatial",
    "attention/scale": "attn.scale",
    "attention/": "attn.",
    "gamma": "gamma_",
    "/kernel": ".weight",
    "/scale": ".weight",
    "/": ".",
}
_AUTOENCODER = ("encoder/", "sampler/", "encoder_to_decoder/", "mask_token", "decoder/")
_CLASSIFIER = ("encoder/", "fc_norm/", "head/kernel", "head/bias")


class Report(NamedTuple):
    """What became of every key of a file and every leaf of a model."""

    matched: tuple[str, ...]
    """Official keys that were read."""
    missing: tuple[str, ...]
    """Our leaves that the file could not fill, some with a reason in parentheses."""
    unused: tuple[str, ...]
    """Official keys that have no place in the model."""

    def __str__(self) -> str:
        text = f"{len(self.matched)} keys read"
        for word, names in (("missing", self.missing), ("unused", self.unused)):
            short = dict.fromkeys(
                re.sub(r"(blocks|last|probs\.0)[./].*", r"\1.*", n) for n in names
            )
            text += f"; {len(names)} {word}: {', '.join(short)}" if names else ""
        return text


def to_params(weights: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> tuple[dict, Report]:
    """The leaves of a model that official weights can fill.

    A pre-train file also fills the encoder of a classifier; as in the released codes, its last norm
    does not become `fc_norm`. A head for another number of classes or on the first token instead
    of the mean is left out and reported as missing. All that the encoder holds must be used:
    dropping it would change the function. The result is a nested subset of `like`.
    """
    flat = flatten_dict(like, sep="/")
    autoencoder, prefix = _is_autoencoder(flat), encoder_prefix(weights)
    for key in (f"{prefix}pos_embed", "decoder.pos_embed"):
        table = weights.get(key)
        if table is not None and (
            table.ndim < 2
            or not np.allclose(table, positions.sinusoid(*table.shape[-2:]), atol=1e-3)
        ):
            raise ConvertError(f"{key} is a learned table of positions; models here add a sinusoid")

    def misfit(key: str, wanted: Any) -> ConvertError:
        shape = weights[key].shape if key in weights else "absent"
        return ConvertError(
            f"{key} is {shape} in the file, wanted {wanted}: the file is of another model; see "
            f"model.size, model.tubelet and the other keys of model"
        )

    embedding = f"{prefix}patch_embed.proj.weight"
    pixels, width = flat["encoder/embed/kernel"].shape
    tubelet = weights[embedding].shape[2:]
    if weights[embedding].shape[:2] != (width, 3) or 3 * math.prod(tubelet) != pixels:
        raise misfit(embedding, f"({width}, 3, ...) of {pixels} numbers a tubelet")
    # The encoder must be complete, and so must a decoder or sampler of which there is any part.
    whole: tuple[str, ...] = ("encoder/embed/", "encoder/blocks/", "encoder/positions/")
    for theirs, ours in (("decoder.", "decoder/"), ("encoder.get_token_probs.", "sampler/")):
        if any(key.startswith(theirs) for key in weights):
            whole += (ours,)
    of_first_token = "norm.weight" in weights and "fc_norm.weight" not in weights
    of_first_token &= "encoder/norm/scale" not in flat  # Else it is a detector's, of boxes.
    filled: dict[str, np.ndarray] = {}
    matched: list[str] = []
    missing: list[str] = []
    for path, leaf in sorted(flat.items()):
        keys = _official_keys(path, flat, prefix)
        shape = leaf.shape[1:] if "/blocks/" in path else leaf.shape
        wanted = _to_official(path, np.broadcast_to(np.int8(0), shape), tubelet).shape
        wrong = [key for key in keys if key not in weights or weights[key].shape != wanted]
        absent = wrong and wrong[0] not in weights and not path.startswith(whole)
        if not keys or absent or (path.startswith("head/") and of_first_token):
            missing.append(path)
        elif not wrong:
            value = np.stack([_to_ours(weights[key]).reshape(shape) for key in keys])
            filled[path] = np.array(value.reshape(leaf.shape), leaf.dtype, order="C")
            matched += keys
        elif path.startswith("head/") and weights[wrong[0]].shape[1:] == wanted[1:]:
            missing.append(f"{path} (has {len(weights[wrong[0]])} classes, {wanted[0]} wanted)")
        else:
            raise misfit(wrong[0], wanted)

    unused = [key for key in weights if key not in matched]
    must: tuple[str, ...] = (f"{prefix}blocks.", f"{prefix}pos_embed_temporal")
    must += ("decoder.blocks.", "decoder.pos_embed_temporal") if autoencoder else ()
    must += ("encoder.get_token_probs.",) if "sampler/positions" in flat else ()
    for key in unused:
        if key.startswith(must):
            raise misfit(key, "nothing (the model has no such block or no such part of one)")
    return unflatten_dict(filled, sep="/"), Report(tuple(matched), tuple(missing), tuple(unused))


def from_params(params: Mapping[str, Any], tubelet: tuple[int, ...] = (2, 16, 16)) -> Weights:
    """The inverse of `to_params`: official names, shapes and values, bit for bit.

    A part of a parameter tree will do. With a decoder or the norm before it the pre-train names are
    written, without the fine-tune names.
    """
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    prefix = "encoder." if _is_autoencoder(flat) else ""
    weights: Weights = {}
    for path, leaf in flat.items():
        if not (keys := _official_keys(path, flat, prefix)):
            raise ConvertError(f"{path} has no official name: take it out before converting")
        for key, value in zip(keys, leaf if "/blocks/" in path else [leaf]):
            weights[key] = np.array(_to_official(path, value, tubelet), order="C")
    return weights


def _official_keys(path: str, flat: Mapping[str, Any], prefix: str) -> list[str]:
    """The official keys of a leaf, one per layer of a stack; none if it has no place there."""
    known = _AUTOENCODER if _is_autoencoder(flat) else _CLASSIFIER
    if not path.startswith(known) or is_low_rank(path):
        return []
    key = path
    for ours, official in _WORDS.items():
        key = key.replace(ours, official)
    if path.startswith("encoder/"):  # A fine-tune file drops the leading "encoder.".
        key = prefix + key.removeprefix("encoder.")
    stack = flat.get("decoder/blocks/norm1/scale")
    last = stack.shape[0] if stack is not None else 0
    layers = flat[path].shape[0] if "/blocks/" in path else 1
    return [key.format(i=i, last=last) for i in range(layers)]


def _to_official(path: str, x: np.ndarray, tubelet: tuple[int, ...]) -> np.ndarray:
    """One layer's array in the official layout."""
    if path == "encoder/embed/kernel":  # `[P, D]`, a tubelet's numbers in the order (t, h, w, c).
        return x.reshape(*tubelet, 3, x.shape[-1]).transpose(4, 3, 0, 1, 2)
    if path.endswith("kernel"):
        return x.T
    if "positions" in path:
        return x[None]
    if path.endswith("attention/scale"):
        return x[:, None, None]
    return x[None, None] if path == "mask_token" else x


def _to_ours(x: np.ndarray) -> np.ndarray:
    """The inverse, up to axes of length 1 and those of a tubelet."""
    return x.transpose(2, 3, 4, 1, 0) if x.ndim == 5 else x.T if x.ndim == 2 else x


def _is_autoencoder(flat: Mapping[str, Any]) -> bool:
    if any(path.startswith("head/") for path in flat):
        return False  # The encoder of a probe or detector ends in a norm, too.
    return any(
        path.startswith(("decoder/", "encoder_to_decoder/", "encoder/norm/")) for path in flat
    )
