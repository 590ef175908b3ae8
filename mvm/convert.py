"""Official PyTorch weights to and from our parameter trees, by the table in `official`."""

import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from mvm.official import AUTOENCODER, CLASSIFIER, ENCODER, Rule
from mvm.torch_files import ConvertError, Tensor, Unreadable, Weights, opened

__all__ = ["ConvertError", "Report", "from_params", "official_weights", "to_params"]


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


def official_weights(path: str | os.PathLike[str]) -> Weights:
    """The model's weights in an official file, as float32 by official key.

    They are the dict under `model`, else under `module` (DeepSpeed), else the root. The prefixes
    that wrappers leave (`module.`, `backbone.`, `_orig_mod.`) are taken off; `encoder.` is kept.

    Args:
        path: as for `torch_files.read_torch`.

    Raises:
        ConvertError: as `torch_files.read_torch`, or no weights in the file: names the path and
            the reason.
    """
    with opened(path) as (tree, load):
        root = tree if isinstance(tree, dict) else {}
        for found in (root.get("model"), root.get("module"), root):
            if isinstance(found, dict) and any(isinstance(v, Tensor) for v in found.values()):
                break
        else:
            raise ConvertError(
                "no tensors under 'model', 'module' or at the root: "
                "save model.state_dict() in PyTorch and pass that file"
            )
        weights: Weights = {}
        for key, tensor in found.items():
            if isinstance(tensor, Unreadable):
                raise ConvertError(f"{key} is not a plain dense tensor; save it as one in PyTorch")
            if not isinstance(tensor, Tensor):
                continue
            name = re.sub(r"^((module|backbone|_orig_mod)\.)+", "", str(key))
            if name in weights:
                raise ConvertError(f"two keys are called {name} once wrapper prefixes are removed")
            weights[name] = load(tensor).astype(np.float32)
        return weights


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
    if "encoder/embed/kernel" not in flat:
        raise ConvertError(f"no encoder/embed/kernel in the model's tree ({', '.join(like)})")
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
    # The encoder must be complete, and so must a decoder of which the file has any part.
    whole: tuple[str, ...] = ("encoder/embed/", "encoder/blocks/")
    if any(key.startswith("decoder.") for key in weights):
        whole += ("decoder/",)
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
            missing.append(f"{rule.ours} ({classes} classes in the file, {wanted[0]} wanted)")
        else:
            raise misfit(wrong[0], str(wanted))

    # Leaves without an official name, such as AdaMAE's sampler, come after those of the table.
    named = {rule.ours for rule, _ in placed}
    missing += [path for path in flat if path not in named]
    read = set(matched)
    unused = [key for key in weights if key not in read]
    stacks = (f"{prefix}blocks.", *(("decoder.blocks.",) if autoencoder else ()))
    for key in unused:
        if key.startswith(stacks):
            raise misfit(key, "nothing (the model has no such block or no such part of one)")
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
) -> list[tuple[Rule, tuple[str, ...]]]:
    """The rules whose leaf exists, each with its official keys: one per layer of a stack."""
    stack = flat.get("decoder/blocks/norm1/scale")
    last = 0 if stack is None else stack.shape[0]
    placed = []
    for rule in AUTOENCODER if autoencoder else CLASSIFIER:
        if rule.ours not in flat:
            continue
        key = rule.official
        if rule in ENCODER:
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
        f"({', '.join(list(weights)[:3]) or 'none'}): "
        "not the official names of VideoMAE, EVEREST or VideoMAE V2"
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
