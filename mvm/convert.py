"""Official PyTorch weights to and from our parameter trees; no pickled code is ever executed.

VideoMAE (arXiv 2203.12602), EVEREST (arXiv 2211.10636) and VideoMAE V2 (arXiv 2303.16727) share
one naming of their weights. `_AUTOENCODER` and `_CLASSIFIER` below hold it, for both directions.
"""

import collections
import contextlib
import functools
import io
import json
import math
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, NamedTuple

import numpy as np

Weights = dict[str, np.ndarray]


class ConvertError(ValueError):
    """A file cannot be read as weights, or its weights do not fit; one line says which and why."""


class Report(NamedTuple):
    """What became of every key of a file and every leaf of a model.

    Attributes:
        matched: official keys that were read.
        missing: our leaves that the file could not fill, some with a reason in parentheses.
        unused: official keys that have no place in the model.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        lists = (("missing", self.missing), ("unused", self.unused))
        return f"{len(self.matched)} keys read" + "".join(
            f"; {len(names)} {word}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
            for word, names in lists
            if names
        )


# --- names and layouts ---------------------------------------------------------------------------


class _Way(NamedTuple):
    """How one array changes between the layouts; `tubelet` is the (t, h, w) of its pixels."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_official: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def _conv_to_ours(kernel: np.ndarray) -> np.ndarray:
    """`[D, 3, p_t, p_h, p_w]` -> `[P, D]`, rows in the order (t, h, w, c) of a flat tubelet."""
    return kernel.transpose(2, 3, 4, 1, 0).reshape(-1, kernel.shape[0])


def _conv_to_official(kernel: np.ndarray, tubelet: tuple[int, ...]) -> np.ndarray:
    return kernel.reshape(*tubelet, 3, kernel.shape[-1]).transpose(4, 3, 0, 1, 2)


_SAME = _Way(lambda x: x, lambda x, tubelet: x)
_LINEAR = _Way(lambda x: x.T, lambda x, tubelet: x.T)
_CONV = _Way(_conv_to_ours, _conv_to_official)
_TOKEN = _Way(lambda x: x.reshape(-1), lambda x, tubelet: x.reshape(1, 1, -1))


class _Rule(NamedTuple):
    ours: str
    official: str
    way: _Way


def _norm(ours: str, official: str) -> tuple[_Rule, ...]:
    return (
        _Rule(f"{ours}/scale", f"{official}.weight", _SAME),
        _Rule(f"{ours}/bias", f"{official}.bias", _SAME),
    )


def _linear(ours: str, official: str, way: _Way = _LINEAR) -> tuple[_Rule, ...]:
    return (
        _Rule(f"{ours}/kernel", f"{official}.weight", way),
        _Rule(f"{ours}/bias", f"{official}.bias", _SAME),
    )


def _block(ours: str, official: str) -> tuple[_Rule, ...]:
    return (
        *_norm(f"{ours}/norm1", f"{official}.norm1"),
        # Rows q | k | v, each head-major, become columns in the same order; k has no bias.
        _Rule(f"{ours}/attention/qkv/kernel", f"{official}.attn.qkv.weight", _LINEAR),
        _Rule(f"{ours}/attention/q_bias", f"{official}.attn.q_bias", _SAME),
        _Rule(f"{ours}/attention/v_bias", f"{official}.attn.v_bias", _SAME),
        *_linear(f"{ours}/attention/proj", f"{official}.attn.proj"),
        *_norm(f"{ours}/norm2", f"{official}.norm2"),
        *_linear(f"{ours}/mlp/fc1", f"{official}.mlp.fc1"),
        *_linear(f"{ours}/mlp/fc2", f"{official}.mlp.fc2"),
    )


# Official keys are those of a pre-train file; a fine-tune file drops the leading "encoder.".
_ENCODER = (
    *_linear("encoder/embed", "encoder.patch_embed.proj", _CONV),
    *_block("encoder/blocks", "encoder.blocks.{i}"),
)
_AUTOENCODER = (
    *_ENCODER,
    *_norm("encoder/norm", "encoder.norm"),
    _Rule("encoder_to_decoder/kernel", "encoder_to_decoder.weight", _LINEAR),
    _Rule("mask_token", "mask_token", _TOKEN),
    *_block("decoder/blocks", "decoder.blocks.{i}"),
    *_block("decoder/last", "decoder.blocks.{last}"),
    *_norm("decoder/norm", "decoder.norm"),
    # The target's order is (t, h, w, c) in the official code too: nothing to permute here.
    *_linear("decoder/head", "decoder.head"),
)
_CLASSIFIER = (*_ENCODER, *_norm("fc_norm", "fc_norm"), *_linear("head", "head"))


def to_params(weights: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> tuple[dict, Report]:
    """The leaves of a model that official weights can fill.

    A pre-train file fills an autoencoder, or the encoder of a classifier; a fine-tune file fills a
    classifier. A head for another number of classes is left out and reported as missing. Whatever
    the encoder's blocks hold must be used: dropping it would change the function unnoticed.

    Args:
        weights: arrays by official key, as `official_weights` gives them.
        like: the nested parameter tree of an autoencoder or a classifier; only `.shape` and
            `.dtype` of its leaves are read, so `jax.ShapeDtypeStruct` will do.

    Returns:
        The filled leaves as a nested subset of `like`, in its shapes and dtypes, and a `Report`.

    Raises:
        ConvertError: the keys are not the official ones; a fine-tune file meets an autoencoder; or
            depth, width or tubelet differ: names the first key, both shapes, the likely sizes.
    """
    flat = dict(_flatten(like))
    autoencoder = _is_autoencoder(flat)
    prefix = _encoder_prefix(weights)
    if autoencoder and not prefix:
        raise ConvertError(
            "a fine-tune file (patch_embed.proj.weight, no encoder.*) has no decoder and cannot "
            "fill an autoencoder: load it into a classifier, or pass a pre-train file"
        )

    def misfit(key: str, wanted: str) -> ConvertError:
        shape = weights[key].shape if key in weights else "absent"
        return ConvertError(
            f"{key} is {shape} in the file, wanted {wanted}: the file looks like "
            f"{_size_of_file(weights, prefix)}, the model is {_size_of_model(flat)}"
        )

    tubelet = _tubelet(weights[f"{prefix}patch_embed.proj.weight"].shape, flat)
    filled: dict[str, np.ndarray] = {}
    matched: list[str] = []
    missing: list[str] = []
    for rule, keys in _placed(flat, autoencoder, prefix):
        leaf = flat[rule.ours]
        absent = [key for key in keys if key not in weights]
        if len(absent) == len(keys) and rule not in _ENCODER:
            missing.append(rule.ours)
            continue
        shape = leaf.shape[1:] if _is_stacked(rule.ours) else leaf.shape
        wanted = rule.way.to_official(np.broadcast_to(np.int8(0), shape), tubelet).shape
        if absent:
            raise misfit(absent[0], str(wanted))
        wrong = [key for key in keys if weights[key].shape != wanted]
        if wrong and rule.ours.startswith("head/") and weights[wrong[0]].shape[1:] == wanted[1:]:
            classes = weights[wrong[0]].shape[0]
            missing.append(f"{rule.ours} ({classes} classes in the file, {wanted[0]} wanted)")
            continue
        if wrong:
            raise misfit(wrong[0], str(wanted))
        arrays = [rule.way.to_ours(weights[key]) for key in keys]
        value = np.stack(arrays) if _is_stacked(rule.ours) else np.ascontiguousarray(arrays[0])
        filled[rule.ours] = value.astype(leaf.dtype).reshape(leaf.shape)
        matched += keys

    # Leaves without an official name, such as AdaMAE's sampler, come after those of the table.
    named = {rule.ours for rule, _ in _placed(flat, autoencoder, prefix)}
    missing += [path for path in flat if path not in named]
    unused = sorted(set(weights).difference(matched))
    stacks = (f"{prefix}blocks.", "decoder.blocks.") if autoencoder else (f"{prefix}blocks.",)
    for key in unused:
        if key.startswith(stacks) and any(path.startswith("decoder") for path in filled) >= (
            key.startswith("decoder")
        ):
            raise misfit(key, "nothing (the model has no such block or no such part)")
    return _nest(filled), Report(tuple(matched), tuple(missing), tuple(unused))


def from_params(params: Mapping[str, Any], tubelet: tuple[int, ...] = (2, 16, 16)) -> Weights:
    """The inverse of `to_params`: official names, shapes and values, bit for bit.

    Args:
        params: a parameter tree, or a part of one. With a decoder the pre-train names are
            written, without one the fine-tune names.
        tubelet: `(p_t, p_h, p_w)` in frames and pixels, to give the embedding its shape back.

    Raises:
        ConvertError: a leaf has no official name, or the embedding is not of that tubelet size.
    """
    flat = {path: np.asarray(leaf) for path, leaf in _flatten(params)}
    autoencoder = _is_autoencoder(flat)
    placed = _placed(flat, autoencoder, "encoder." if autoencoder else "")
    unnamed = set(flat).difference(rule.ours for rule, _ in placed)
    if unnamed:
        raise ConvertError(f"{min(unnamed)} has no official name: take it out before converting")
    kernel = flat.get("encoder/embed/kernel")
    if kernel is not None and kernel.shape[0] != 3 * math.prod(tubelet):
        raise ConvertError(
            f"encoder/embed/kernel is {kernel.shape}, not {3 * math.prod(tubelet)} rows: "
            f"pass the tubelet size of this model instead of {tuple(tubelet)}"
        )
    weights: Weights = {}
    for rule, keys in placed:
        leaf = flat[rule.ours]
        for key, value in zip(keys, leaf if _is_stacked(rule.ours) else [leaf]):
            weights[key] = np.array(rule.way.to_official(value, tubelet), order="C")
    return weights


def _placed(
    flat: Mapping[str, Any], autoencoder: bool, prefix: str
) -> list[tuple[_Rule, tuple[str, ...]]]:
    """The rules whose leaf exists, each with its official keys: one per layer of a stack."""
    stack = flat.get("decoder/blocks/norm1/scale")
    last = 0 if stack is None else stack.shape[0]
    placed = []
    for rule in _AUTOENCODER if autoencoder else _CLASSIFIER:
        if rule.ours not in flat:
            continue
        key = rule.official
        if rule in _ENCODER:
            key = prefix + key.removeprefix("encoder.")
        layers = range(flat[rule.ours].shape[0]) if _is_stacked(rule.ours) else (None,)
        placed.append((rule, tuple(key.format(i=i, last=last) for i in layers)))
    return placed


def _is_stacked(path: str) -> bool:
    return "/blocks/" in path


def _is_autoencoder(flat: Mapping[str, Any]) -> bool:
    return any(path.startswith(("decoder/", "encoder_to_decoder/")) for path in flat)


def _encoder_prefix(weights: Mapping[str, np.ndarray]) -> str:
    for prefix in ("encoder.", ""):
        if f"{prefix}patch_embed.proj.weight" in weights:
            return prefix
    raise ConvertError(
        "no [encoder.]patch_embed.proj.weight among the keys "
        f"({', '.join(list(weights)[:3]) or 'none'}): not the official VideoMAE naming"
    )


def _tubelet(kernel: tuple[int, ...], flat: Mapping[str, Any]) -> tuple[int, ...]:
    """The file's `(p_t, p_h, p_w)` if the model can have it, else a likely one of the model's."""
    pixels = flat["encoder/embed/kernel"].shape[0] // 3
    if len(kernel) == 5 and math.prod(kernel[2:]) == pixels:
        return kernel[2:]
    side = math.isqrt(pixels // 2)
    return (2, side, side) if 2 * side * side == pixels else (pixels, 1, 1)


_SIZES = {384: "ViT-S", 768: "ViT-B", 1024: "ViT-L", 1280: "ViT-H", 1408: "ViT-g"}


def _size(width: int, depth: int, decoder_depth: int) -> str:
    decoder = f", decoder of {decoder_depth}" if decoder_depth else ""
    return f"{_SIZES.get(width, 'a ViT')} ({depth} blocks of width {width}{decoder})"


def _size_of_file(weights: Mapping[str, np.ndarray], prefix: str) -> str:
    def depth(stack: str) -> int:
        found = (re.match(rf"{re.escape(stack)}blocks\.(\d+)\.", key) for key in weights)
        return max((int(match[1]) + 1 for match in found if match), default=0)

    width = weights[f"{prefix}patch_embed.proj.weight"].shape[0]
    return _size(width, depth(prefix), depth("decoder."))


def _size_of_model(flat: Mapping[str, Any]) -> str:
    def depth(path: str) -> int:
        return flat[path].shape[0] if path in flat else 0

    decoder = depth("decoder/blocks/norm1/scale") + ("decoder/last/norm1/scale" in flat)
    width = flat["encoder/embed/kernel"].shape[1]
    return _size(width, depth("encoder/blocks/norm1/scale"), decoder)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _nest(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


# --- reading files -------------------------------------------------------------------------------

