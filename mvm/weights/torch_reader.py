"""Files of PyTorch and safetensors as NumPy arrays; no pickled code is ever executed."""

import collections
import io
import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
from etils import epath

from mvm.types import UserError

Weights = dict[str, np.ndarray]


class ConvertError(UserError):
    """A file cannot be read as weights, or its weights do not fit; one line says which and why."""


PLACES = ("model", "module", "state_dict", "model_state", "model_state_dict")
"""Keys that the official codes, DeepSpeed, Lightning and others save weights under."""

_DTYPES: dict[str, Any] = {
    **dict(DoubleStorage="f8", FloatStorage="f4", HalfStorage="f2", LongStorage="i8"),
    **dict(IntStorage="i4", ShortStorage="i2", CharStorage="i1", ByteStorage="u1"),
    **dict(BoolStorage="?", BFloat16Storage=ml_dtypes.bfloat16),
    **dict(F64="f8", F32="f4", F16="f2", I64="i8", I32="i4", I16="i2", I8="i1", U8="u1"),
    **dict(BOOL="?", BF16=ml_dtypes.bfloat16),
}


def load(path: str | os.PathLike[str]) -> tuple[Weights, str]:
    """The weights in a file of `torch.save` (PyTorch 1.6 or later) or of safetensors.

    They are the first dict of tensors under one of `PLACES`, at the root or under `model_ema`:
    float32 arrays by the file's keys; beside them, what `files.write` says of them, if it wrote it.
    """
    file = epath.Path(path)
    try:
        with file.open("rb") as stream:
            head = stream.read(9)
            stream.seek(0)
            if head.startswith(b"PK\x03\x04"):
                with zipfile.ZipFile(stream) as archive:
                    return _read_zip(archive)
            if head[8:] == b"{":
                return _read_safetensors(stream.read())
        raise ConvertError(
            "neither a file of torch.save (PyTorch 1.6 or later) nor of safetensors; download it "
            "again, or load and save it in a newer PyTorch"
        )
    except (ConvertError, OSError) as error:
        raise ConvertError(f"{file}: {getattr(error, 'strerror', None) or error}") from error
    except Exception as error:  # Whatever libraries raise for damaged files.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConvertError(f"{file}: damaged or cut off, download it again ({reason})") from error


def _read_safetensors(data: bytes) -> tuple[Weights, str]:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    weights = {
        name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]])
        .reshape(entry["shape"])
        .astype(np.float32)
        for name, entry in sorted(safetensors.deserialize(data))  # They come in no order.
        if entry["dtype"] in _DTYPES
    }
    return weights, header.get("__metadata__", {}).get("mvm", "")


def _read_zip(archive: zipfile.ZipFile) -> tuple[Weights, str]:
    """An archive of `data.pkl`, which describes tensors, and a file for each storage."""
    roots = [n.removesuffix("data.pkl") for n in archive.namelist() if n.endswith("/data.pkl")]
    if not roots:
        raise ConvertError("a zip archive without data.pkl: torch.save did not write it")
    order = f"{roots[0]}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise ConvertError("written on a big-endian machine; load and save it on another")
    tree = _Unpickler(io.BytesIO(archive.read(f"{roots[0]}data.pkl"))).load()
    # Neighbouring tensors may share a storage; it is read once.
    read = lru_cache(maxsize=1)(lambda key: archive.read(f"{roots[0]}data/{key}"))
    root = tree if isinstance(tree, dict) else {}
    weights = {str(key): tensor.of(read(tensor.key)) for key, tensor in _state_dict(root).items()}
    return weights, str(root.get("mvm", ""))


class _Tensor(NamedTuple):
    """Where a tensor is: optimiser moments are never read."""

    dtype: np.dtype
    key: str
    """Of its storage."""
    offset: int
    """In elements, as the strides."""
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, storage: bytes) -> np.ndarray:
        """The tensor; ValueError if it is not within its storage."""
        if 0 in self.size:
            return np.zeros(self.size, np.float32)
        # By Python's numbers: those of NumPy may overflow.
        steps = zip(self.size, self.stride, strict=True)
        end = self.offset + 1 + sum((n - 1) * step for n, step in steps)
        width = self.dtype.itemsize
        if min((self.offset, *self.size, *self.stride)) < 0 or end * width > len(storage):
            raise ValueError(f"a tensor outside its storage {self.key}")
        strides = [step * width for step in self.stride]
        view = np.ndarray(self.size, self.dtype, storage, self.offset * width, strides)
        return view.astype(np.float32)


def _state_dict(root: Mapping[Any, Any]) -> dict[Any, _Tensor]:
    for found in (*(root.get(place) for place in PLACES), root, root.get("model_ema")):
        items = found.items() if isinstance(found, dict) else ()
        if tensors := {key: value for key, value in items if isinstance(value, _Tensor)}:
            return tensors
    raise ConvertError(
        f"no tensors under {', '.join(map(repr, PLACES))}, 'model_ema' or at the root, which has "
        f"{', '.join(map(ascii, root))[:99] or 'no keys'}; in PyTorch save {{'model': "
        f"model.state_dict()}}"
    )


class _Unknown:
    """An object of a class that is not imported: made of anything, it holds nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Unknown":
        return object.__new__(cls)

    def __call__(self, *_: Any) -> "_Unknown":
        return self

    __setstate__ = __setitem__ = append = extend = add = __call__


class _Unpickler(pickle.Unpickler):
    """Makes tensors, dicts, lists and constants; of what else a file names, nothing is called."""

    def find_class(self, module: str, name: str) -> Any:
        """In place of a class or function."""
        match module, name:
            case "collections", "OrderedDict":
                return collections.OrderedDict
            case "torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2":
                return self._tensor
            case "torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state":
                return self._parameter
            case "builtins" | "__builtin__", "getattr":  # Of a class within a class.
                return lambda *_: _Unknown
        return type(name, (_Unknown,), {})

    def persistent_load(self, pid: Any) -> Any:
        """A storage: ("storage", class of that name, key, place, number of elements)."""
        return pid

    def _tensor(self, storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Any:
        kind = storage[1].__name__
        # The last of (requires_grad, hooks, metadata) tells of negation still to be done.
        if kind in _DTYPES and not any(rest[2:]):
            return _Tensor(np.dtype(_DTYPES[kind]), storage[2], offset, size, stride)
        return None

    def _parameter(self, tensor: Any, *_: Any) -> Any:
        return tensor
