"""Files of weights under the official names: what is in one, and how to write one."""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from etils import epath

from mvm.weights import huggingface
from mvm.weights import names as official
from mvm.weights.torch_reader import ConvertError, Tensor, Unreadable, Weights, opened, parts


class Source(NamedTuple):
    """What a file or folder of PyTorch weights holds."""

    weights: Weights
    """float32, by official key."""
    known: dict[str, Any]
    """What `config.json` of a Hugging Face folder tells beyond, by key of `mvm/config.py`."""
    labels: tuple[str, ...]
    """Names of the classes, from the same file."""


def read(path: str | os.PathLike[str]) -> Source:
    """Weights of the official projects or of Hugging Face, under the official names.

    They are the first dict of tensors under one of `_PLACES`, or the root. Prefixes that wrappers
    leave, such as `module.`, are taken off.

    Args:
        path: a file, a DeepSpeed folder, or for Hugging Face a folder with `config.json` or the
            file of weights in it.

    Raises:
        ConvertError: as `torch_files.opened`, no weights in the file, or a Hugging Face model
            that differs from VideoMAE's: names the path and the reason.
    """
    weights: Weights = {}
    for part in parts(path):
        weights |= _state_dict(part)
    folder = epath.Path(path)
    folder = folder if folder.is_dir() else folder.parent
    try:
        if not huggingface.is_named(weights):
            return Source(weights, *huggingface.of_videomae_v2(folder))
        config = huggingface.read_config(folder)
        renamed = huggingface.to_official(weights, config)
        return Source(renamed, huggingface.known(config), huggingface.labels(config))
    except ConvertError as error:
        raise ConvertError(f"{path}: {error}") from error


def official_weights(path: str | os.PathLike[str]) -> Weights:
    """The weights alone of `read`."""
    return read(path).weights


_PLACES = ("model", "module", "state_dict", "model_state", "model_state_dict")
"""Keys that the official codes, DeepSpeed, Lightning, MMAction2 and others save weights under."""


def _holds(found: object) -> bool:
    return isinstance(found, dict) and any(isinstance(v, Tensor) for v in found.values())


def _state_dict(path: epath.Path) -> Weights:
    with opened(path) as (tree, load):
        root = tree if isinstance(tree, dict) else {}
        dicts = [*(root.get(place) for place in _PLACES), root, root.get("model_ema")]
        found = next(filter(_holds, dicts), None)
        if found is None:
            others = ", ".join(repr(key) for key, value in root.items() if _holds(value))
            raise ConvertError(
                f"no tensors under {', '.join(map(repr, _PLACES))}, 'model_ema' or at the root, "
                f"but under {others or 'no other key'}; in PyTorch save the weights as {{'model': "
                f"model.state_dict()}} and pass that file"
            )
        weights: Weights = {}
        for key, tensor in found.items():
            if isinstance(tensor, Unreadable):
                raise ConvertError(f"{key} is not a plain dense tensor; save it as one in PyTorch")
            if not isinstance(tensor, Tensor):
                continue
            name = re.sub(r"^((module|model|backbone|_orig_mod)\.)+", "", str(key))
            for theirs, name_of_ours in official.MMACTION2.items():
                name = name.replace(theirs, name_of_ours)
            if name in weights:
                raise ConvertError(f"two keys are called {name} once wrapper prefixes are removed")
            weights[name] = load(tensor).astype(np.float32)
        return weights


def write(path: str | os.PathLike[str], weights: Mapping[str, np.ndarray]) -> None:
    """Writes one file: `.safetensors`, or `{"model": weights}` for PyTorch (.pth, .pt, .bin).

    Args:
        path: whose suffix decides.
        weights: float32 arrays by key.

    Raises:
        ConvertError: for another suffix, or if PyTorch is wanted but not installed.
    """
    file = epath.Path(path)
    part = file.with_name(file.name + ".part")  # so that a kill leaves no half file of that name
    if file.suffix == ".safetensors":
        # The library writes other bytes of an array that is not C-contiguous, without a word.
        dense = {key: np.asarray(array, order="C") for key, array in weights.items()}
        part.write_bytes(safetensors.numpy.save(dense, {"format": "pt"}))  # for transformers
        part.replace(file)
        return
    if file.suffix not in (".pth", ".pt", ".bin"):
        raise ConvertError(f"{path}: end its name in .safetensors, .pth, .pt or .bin")
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ConvertError(
            f"{path}: PyTorch is needed to write it; pip install torch, or end it in .safetensors"
        ) from error
    with part.open("wb") as stream:
        torch.save({"model": {k: torch.from_numpy(v.copy()) for k, v in weights.items()}}, stream)
    part.replace(file)
