"""Official PyTorch weights to and from our parameter trees, by the table in `names`."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mvm.models import positions
from mvm.weights.describe import encoder_prefix
from mvm.weights.names import AUTOENCODER, CLASSIFIER, ENCODER, Rule
from mvm.weights.torch_reader import ConvertError, Weights


class Report(NamedTuple):
    """What became of every key of a file and every leaf of a model."""

    matched: tuple[str, ...]
    """Official keys that were read."""
    missing: tuple[str, ...]
    """Our leaves that the file could not fill, some with a reason in parentheses."""
    unused: tuple[str, ...]
    """Official keys that have no place in the model."""

    def __str__(self) -> str:
        lists = (("missing", self.missing), ("unused", self.unused))
        return f"{len(self.matched)} keys read" + "".join(
            f"; {len(names)} {word}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
            for word, names in lists
            if names
        )


def to_params(weights: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> tuple[dict, Report]:
    """The leaves of a model that official weights can fill.

    A pre-train file also fills the encoder of a classifier; as in the released codes, its last norm
    does not become `fc_norm`. A head for another number of classes is left out and reported as
    missing. All that the encoder holds must be used: dropping it would change the function.

    Args:
        weights: arrays by official key.
        like: nested parameters of a model, or their shapes and dtypes.

    Returns:
        The filled leaves as a nested subset of `like`, and a `Report`.

    Raises:
        ConvertError: the keys are not the official ones, the file's function is none of ours (a
            learned table of positions, a head without mean pooling), or the sizes differ: names
            the first key and both shapes.
    """
    flat = flatten_dict(like, sep="/")
    autoencoder, prefix = _is_autoencoder(flat), encoder_prefix(weights)
    if autoencoder and not prefix:
        raise ConvertError(
            "a fine-tune file (patch_embed.proj.weight, no encoder.*) has no decoder and cannot "
            "fill an autoencoder: load it into a classifier, or pass a pre-train file"
        )
    _check_function(weights, prefix, flat)

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
    filled: dict[str, np.ndarray] = {}
    matched: list[str] = []
    missing: list[str] = []
    placed = _placed(flat, prefix)
    for rule, keys in placed:
        leaf, stacked = flat[rule.ours], _is_stacked(rule.ours)
        shape = leaf.shape[1:] if stacked else leaf.shape
        wanted = rule.way.to_official(np.broadcast_to(np.int8(0), shape), tubelet).shape
        wrong = [key for key in keys if key not in weights or weights[key].shape != wanted]
        if not wrong:
            arrays = [rule.way.to_ours(weights[key]) for key in keys]
            value = np.stack(arrays) if stacked else arrays[0]
            filled[rule.ours] = np.array(value, leaf.dtype, order="C")
            matched += keys
        elif wrong[0] not in weights and not rule.ours.startswith(whole):
            missing.append(rule.ours)
        elif rule.ours.startswith("head/") and weights[wrong[0]].shape[1:] == wanted[1:]:
            classes = weights[wrong[0]].shape[0]
            missing.append(f"{rule.ours} (has {classes} classes, {wanted[0]} wanted)")
        else:
            raise misfit(wrong[0], wanted)

    missing += sorted(set(flat) - {rule.ours for rule, _ in placed})  # They have no official name.
    read = set(matched)
    unused = [key for key in weights if key not in read]
    must: tuple[str, ...] = (f"{prefix}blocks.", f"{prefix}pos_embed_temporal")
    must += ("decoder.blocks.", "decoder.pos_embed_temporal") if autoencoder else ()
    must += ("encoder.get_token_probs.",) if "sampler/positions" in flat else ()
    for key in unused:
        if key.startswith(must):
            raise misfit(key, "nothing (the model has no such block or no such part of one)")
    return unflatten_dict(filled, sep="/"), Report(tuple(matched), tuple(missing), tuple(unused))


def from_params(params: Mapping[str, Any], tubelet: tuple[int, ...] = (2, 16, 16)) -> Weights:
    """The inverse of `to_params`: official names, shapes and values, bit for bit.

    Args:
        params: a parameter tree, or a part of one. With a decoder or the norm before it the
            pre-train names are written, without the fine-tune names.
        tubelet: `(p_t, p_h, p_w)` in frames and pixels.

    Raises:
        ConvertError: a leaf has no official name.
    """
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    placed = _placed(flat, "encoder." if _is_autoencoder(flat) else "")
    if unnamed := set(flat).difference(rule.ours for rule, _ in placed):
        raise ConvertError(f"{min(unnamed)} has no official name: take it out before converting")
    weights: Weights = {}
    for rule, keys in placed:
        leaf = flat[rule.ours]
        for key, value in zip(keys, leaf if _is_stacked(rule.ours) else [leaf]):
            weights[key] = np.array(rule.way.to_official(value, tubelet), order="C")
    return weights


def _placed(flat: Mapping[str, Any], prefix: str) -> list[tuple[Rule, tuple[str, ...]]]:
    """The rules whose leaf exists, each with its official keys: one per layer of a stack."""
    stack = flat.get("decoder/blocks/norm1/scale")
    last = 0 if stack is None else stack.shape[0]
    placed = []
    for rule in AUTOENCODER if _is_autoencoder(flat) else CLASSIFIER:
        if rule.ours in flat:
            key = rule.official
            if rule in ENCODER:
                key = prefix + key.removeprefix("encoder.")
            depth = range(flat[rule.ours].shape[0]) if _is_stacked(rule.ours) else (None,)
            placed.append((rule, tuple(key.format(i=i, last=last) for i in depth)))
    return placed


def _check_function(
    weights: Mapping[str, np.ndarray], prefix: str, flat: Mapping[str, Any]
) -> None:
    """Refuses what leaving keys unread would change: learned positions, a head on one token."""
    for key in (f"{prefix}pos_embed", "decoder.pos_embed"):
        if key in weights:
            table = weights[key].reshape(-1, weights[key].shape[-1])
            if not np.allclose(table, positions.sinusoid(*table.shape), atol=1e-3):
                raise ConvertError(
                    f"{key} {weights[key].shape} is a learned table of positions, which no model "
                    f"here has: they add the fixed sinusoid, or learned space plus time"
                )
    head = flat.get("head/bias")
    is_read = head is not None and weights.get("head.bias", np.empty(0)).shape == head.shape
    if is_read and "fc_norm.weight" not in weights and "norm.weight" in weights:
        raise ConvertError(
            "a head on the first token (norm.*, no fc_norm.*) instead of the mean over tokens: "
            "fine-tune with mean pooling, or load the encoder alone, for another number of classes"
        )


def _is_stacked(path: str) -> bool:
    return "/blocks/" in path


def _is_autoencoder(flat: Mapping[str, Any]) -> bool:
    return any(
        path.startswith(("decoder/", "encoder_to_decoder/", "encoder/norm/")) for path in flat
    )
