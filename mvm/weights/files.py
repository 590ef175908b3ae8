"""Weights under the official names: a file or folder of them, and how to write one."""

import json
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from etils import epath

from mvm.weights import describe, huggingface, torch_reader
from mvm.weights.torch_reader import ConvertError, Weights

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
_IN_FOLDERS = ("mp_rank_00_model_states.pt", "model.safetensors", "pytorch_model.bin")
_WRAPPERS = re.compile(r"^((module|model|backbone|_orig_mod)\.)+")
_MMACTION2 = {  # MMAction2's words in a classifier's names, and the official ones.
    "patch_embed.projection.": "patch_embed.proj.",
    ".mlp.layers.0.0.": ".mlp.fc1.",
    ".mlp.layers.1.": ".mlp.fc2.",
    "cls_head.fc_cls.": "head.",
}


class Source(NamedTuple):
    """What a file or folder of weights holds."""

    weights: Weights
    """float32, by official key."""
    known: dict[str, Any]
    """What `config.json` or the file tells beyond their shapes, by key of `mvm/config.py`."""
    classes: tuple[str, ...] = ()
    """Names that the file has."""


def read(path: str | os.PathLike[str]) -> Source:
    """Weights of the official projects, MMAction2 or Hugging Face, under the official names.

    The path is that of a file, a DeepSpeed folder, or for Hugging Face of a folder with
    `config.json` or the file of weights in it.
    """
    file = epath.Path(path)
    if file.is_dir():
        found = [file / name for name in _IN_FOLDERS if (file / name).exists()]
        if not found:
            raise ConvertError(
                f"{file} holds no weights in one file ({', '.join(_IN_FOLDERS)}) and no run with "
                f"a checkpoint"
            )
        file = found[0]
    weights: Weights = {}
    arrays, said = torch_reader.load(file)
    for key, array in arrays.items():
        name = _WRAPPERS.sub("", key)
        for theirs, official in _MMACTION2.items():
            name = name.replace(theirs, official)
        weights[name] = array
    config = huggingface.read_config(path)
    try:
        if huggingface.is_named(weights):
            return Source(huggingface.to_official(weights), huggingface.known(config))
        told = dict(json.loads(said or "{}"))
        known = huggingface.known_of_v2(config) | describe.told(told)
        return Source(weights, known, huggingface.in_order(told.get("classes", ())))
    except (TypeError, ValueError) as error:
        raise ConvertError(f"{path}: {error}") from error


def write(path: str | os.PathLike[str], weights: Weights, told: Mapping[str, Any] = {}) -> None:
    """Writes one file: `.safetensors`, or `{"model": weights}` for PyTorch (.pth, .pt, .bin).

    `told` is what `read` is to know beside them: values of `describe.told`, and "classes".
    """
    file = epath.Path(path)
    # The library writes other bytes of an array that is not C-contiguous, without a word.
    dense = {key: np.array(array, order="C") for key, array in weights.items()}
    more: dict[str, Any] = {"mvm": json.dumps(told)} if told else {}
    part = file.with_name(f"{file.name}.part")  # A kill leaves no half file under the final name.
    if file.suffix == ".safetensors":
        part.write_bytes(safetensors.numpy.save(dense, {"format": "pt", **more}))  # transformers'
    else:
        try:
            import torch
        except ModuleNotFoundError as error:
            raise ConvertError(
                f"{path}: writing it needs PyTorch; pip install torch, or end it in .safetensors"
            ) from error
        with part.open("wb") as stream:
            more["model"] = {k: torch.from_numpy(v) for k, v in dense.items()}
            torch.save(more, stream)
    part.replace(file)
