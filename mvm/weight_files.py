"""Files of weights under the official names: what is in one, and how to write one."""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from etils import epath

from mvm import huggingface
from mvm.torch_files import ConvertError, Tensor, Unreadable, Weights, opened, parts


class Source(NamedTuple):
    """What a file or folder of PyTorch weights holds.

    Attributes:
        weights: float32 arrays by official key.
        known: what the shapes of the weights do not tell, by key of `configs/common.py`, from
            Hugging Face's `config.json`; empty for official names. For `describe`.
        labels: names of the classes, from the same file.
    """

    weights: Weights
    known: dict[str, Any]
    labels: tuple[str, ...]


def read(path: str | os.PathLike[str]) -> Source:
    """Weights of the official projects or of Hugging Face, under the official names.

    They are the dict under `model`, else under `module` (DeepSpeed), else the root. The prefixes
    that wrappers leave (`module.`, `model.`, `backbone.`, `_orig_mod.`) are taken off; `encoder.`
    is kept.

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
    if not huggingface.is_named(weights):
        return Source(weights, {}, ())
    folder = epath.Path(path)
    config = huggingface.read_config(folder if folder.is_dir() else folder.parent)
    try:
        official = huggingface.to_official(weights, config)
        return Source(official, huggingface.known(config), huggingface.labels(config))
    except ConvertError as error:
        raise ConvertError(f"{path}: {error}") from error


def official_weights(path: str | os.PathLike[str]) -> Weights:
    """The weights alone of `read`."""
    return read(path).weights


def _state_dict(path: epath.Path) -> Weights:
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
            name = re.sub(r"^((module|model|backbone|_orig_mod)\.)+", "", str(key))
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
