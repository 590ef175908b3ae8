"""Official PyTorch weights to and from our parameter trees, by the table in `official`.

`python -m mvm.convert SRC DST` converts files and folders.
"""

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
    autoencoder = _is_autoencoder(flat)
    prefix = encoder_prefix(weights)
    _check_positions(weights, prefix)
    if autoencoder and not prefix:
        raise ConvertError(
            "a fine-tune file (patch_embed.proj.weight, no encoder.*) has no decoder and cannot "
            "fill an autoencoder: load it into a classifier, or pass a pre-train file"
        )

    def misfit(key: str, wanted: str) -> ConvertError:
        shape = weights[key].shape if key in weights else "absent"
        return ConvertError(
            f"{key} is {shape} in the file, wanted {wanted}: the file is of another model; see "
            f"model.size, model.tubelet and what else the configuration says of it"
        )

    tubelet = _tubelet(weights[f"{prefix}patch_embed.proj.weight"].shape, flat)
    # The encoder must be complete, and so must a decoder or sampler of which there is any part.
    whole: tuple[str, ...] = ("encoder/embed/", "encoder/blocks/", "encoder/positions/")
    if any(key.startswith("decoder.") for key in weights):
        whole += ("decoder/",)
    if any(key.startswith("encoder.get_token_probs.") for key in weights):
        whole += ("sampler/",)
    filled: dict[str, np.ndarray] = {}
    matched: list[str] = []
    missing: list[str] = []
    placed = _placed(flat, autoencoder, prefix)
    for rule, keys in placed:
        leaf = flat[rule.ours]
        shape = leaf.shape[1:] if _is_stacked(rule.ours) else leaf.shape
        wanted = rule.way.to_official(np.broadcast_to(np.int8(0), shape), tubelet).shape
        wrong = [key for key in keys if key not in weights or weights[key].shape != wanted]
        if not wrong:
            arrays = [rule.way.to_ours(weights[key]) for key in keys]
            value = np.stack(arrays) if _is_stacked(rule.ours) else arrays[0]
            filled[rule.ours] = np.array(value, leaf.dtype, order="C")
            matched += keys
        elif wrong[0] not in weights and not rule.ours.startswith(whole):
            missing.append(rule.ours)
        elif rule.ours.startswith("head/") and weights[wrong[0]].shape[1:] == wanted[1:]:
            classes = weights[wrong[0]].shape[0]
            missing.append(f"{rule.ours} (has {classes} classes, {wanted[0]} wanted)")
        else:
            raise misfit(wrong[0], str(wanted))

    if "head/kernel" in filled and "fc_norm.weight" not in weights and "norm.weight" in weights:
        raise ConvertError(
            "a head on the first token (norm.*, no fc_norm.*) instead of the mean over tokens: "
            "fine-tune with mean pooling, or load the encoder alone, for another number of classes"
        )

    # Leaves without an official name come after those of the table.
    named = {rule.ours for rule, _ in placed}
    missing += [path for path in flat if path not in named]
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
        ConvertError: a leaf has no official name, or the embedding is not of that tubelet size.
    """
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    autoencoder = _is_autoencoder(flat)
    placed = _placed(flat, autoencoder, "encoder." if autoencoder else "")
    unnamed = set(flat).difference(rule.ours for rule, _ in placed)
    unnamed |= {p for p in flat if p.startswith("sampler/blocks/") and len(flat[p]) > 1}
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
) -> list[tuple[Rule, tuple[str, ...]]]:
    """The rules whose leaf exists, each with its official keys: one per layer of a stack."""

    stack = flat.get("decoder/blocks/norm1/scale")
    last = 0 if stack is None else stack.shape[0]
    placed = []
    for rule in AUTOENCODER if autoencoder else CLASSIFIER:
        if rule.ours not in flat:
            continue
        key = _official(rule, prefix)
        depth = range(flat[rule.ours].shape[0]) if _is_stacked(rule.ours) else (None,)
        placed.append((rule, tuple(key.format(i=i, last=last) for i in depth)))
    return placed


def _official(rule: Rule, prefix: str) -> str:
    """The official key in a file that calls the encoder `prefix`."""
    return prefix + rule.official.removeprefix("encoder.") if rule in ENCODER else rule.official


def _check_positions(weights: Mapping[str, np.ndarray], prefix: str) -> None:
    """Looks at tables of positions in the file: only the fixed one may be left unread."""
    for key in (f"{prefix}pos_embed", "decoder.pos_embed"):
        if key not in weights:
            continue
        table = weights[key].reshape(-1, weights[key].shape[-1])
        if not np.allclose(table, positions.sinusoid(*table.shape), atol=1e-3):
            raise ConvertError(
                f"{key} {weights[key].shape} is a learned table of positions, which no model here "
                f"has: they add the fixed sinusoid, or learned positions in space plus time"
            )


def _is_stacked(path: str) -> bool:
    return "/blocks/" in path


def _is_autoencoder(flat: Mapping[str, Any]) -> bool:
    return any(
        path.startswith(("decoder/", "encoder_to_decoder/", "encoder/norm/")) for path in flat
    )


def _tubelet(kernel: tuple[int, ...], flat: Mapping[str, Any]) -> tuple[int, ...]:
    """The file's `(p_t, p_h, p_w)` if the model can have it, else a likely one of the model's."""
    pixels = flat["encoder/embed/kernel"].shape[0] // 3
    fits = len(kernel) == 5 and math.prod(kernel[2:]) == pixels
    side = math.isqrt(pixels // 2)
    return kernel[2:] if fits else (2, side, side) if 2 * side**2 == pixels else (pixels, 1, 1)
