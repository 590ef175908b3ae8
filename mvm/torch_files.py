"""Files of PyTorch and safetensors as NumPy arrays; no pickled code is ever executed."""

import collections
import contextlib
import functools
import io
import json
import math
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from etils import epath

from mvm.types import UserError

Weights = dict[str, np.ndarray]


class ConvertError(UserError):
    """A file cannot be read as weights, or its weights do not fit; one line says which and why."""


_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
_FOLDER_FILES = ("mp_rank_00_model_states.pt", "model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"
_DTYPES = {
    **dict(DoubleStorage="float64", FloatStorage="float32", HalfStorage="float16"),
    **dict(BFloat16Storage="bfloat16", LongStorage="int64", IntStorage="int32"),
    **dict(ShortStorage="int16", CharStorage="int8", ByteStorage="uint8", BoolStorage="bool"),
    **dict(UntypedStorage="uint8"),
    **dict(F64="float64", F32="float32", F16="float16", BF16="bfloat16", I64="int64", I32="int32"),
    **dict(I16="int16", I8="int8", U8="uint8", BOOL="bool"),
}


class _Storage(NamedTuple):
    dtype: str
    key: str
    numel: int


class Tensor(NamedTuple):
    """A view of a storage in elements; read only when asked for, so optimiser moments never are."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


_Read = Callable[[_Storage], bytes]
_Load = Callable[[Tensor], np.ndarray]


def read_torch(path: str | os.PathLike[str]) -> Weights:
    """Every tensor of a PyTorch or safetensors file, without executing pickled code.

    Args:
        path: a file of `torch.save` (zip container, or the format before PyTorch 1.6), a
            `.safetensors` file, a DeepSpeed folder with `mp_rank_00_model_states.pt`, or a
            Hugging Face folder with `model.safetensors` or `pytorch_model.bin`, whole or in parts.

    Returns:
        Arrays in the dtypes of the file by their place in it, joined by "/":
        `model/encoder.norm.weight`, `optimizer/state/0/exp_avg`.

    Raises:
        ConvertError: no such file, damaged, or not such a file: names the path and the reason.
    """
    weights: Weights = {}
    for file in parts(path):
        with opened(file) as (tree, load):
            weights |= {name: load(tensor) for name, tensor in _tensors(tree)}
    return weights


def parts(path: str | os.PathLike[str]) -> list[epath.Path]:
    """The files that hold the weights at `path`: itself, or those in a folder.

    Raises:
        ConvertError: for a folder without weights, or with an index that cannot be read.
    """
    folder = epath.Path(path)
    if not folder.is_dir():
        return [folder]
    for name in _FOLDER_FILES:
        if (folder / name).exists():
            return [folder / name]
        index = folder / (name + _INDEX)
        if not index.exists():
            continue
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConvertError(f"{index}: no index of weights, fetch it again") from error
        if any(not isinstance(part, str) or "/" in part for part in names):
            raise ConvertError(f"{index}: names files outside its folder")
        return [folder / part for part in names]
    raise ConvertError(f"{path}: a folder with none of {', '.join(_FOLDER_FILES)}")


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[object, _Load]]:
    """What one file holds, with `Tensor` or `Unreadable` for tensors, and how to load a `Tensor`.

    Raises:
        ConvertError: as `read_torch`, and for whatever goes wrong before the file is closed.
    """
    file = epath.Path(path)
    try:
        with file.open("rb") as stream:
            head = stream.read(32)
            stream.seek(0)
            if head.startswith(b"PK\x03\x04"):
                tree, read = _read_zip(stream)
            elif _LEGACY_MAGIC in head:
                tree, read = _read_legacy(stream)
            elif head[8:9] == b"{":
                tree, read = _read_safetensors(stream)
            else:
                raise ConvertError("neither a file of torch.save nor a safetensors file")
            # Neighbouring tensors may share a storage; it is read once.
            yield tree, functools.partial(_load, read=functools.lru_cache(maxsize=1)(read))
    except ConvertError as error:
        raise ConvertError(f"{file}: {error}") from error
    except FileNotFoundError as error:
        raise ConvertError(f"{file}: no such file") from error
    except Exception as error:  # damaged bytes make pickle, zipfile and NumPy raise nearly anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConvertError(f"{file}: damaged or truncated, fetch it again ({reason})") from error


def _read_zip(stream: IO[bytes]) -> tuple[object, _Read]:
    archive = zipfile.ZipFile(stream)
    names = archive.namelist()
    pickles = [name for name in names if name.split("/")[-1] == "data.pkl"]
    if not pickles:
        raise ConvertError("a zip archive without data.pkl: torch.save did not write it")
    root = pickles[0].removesuffix("data.pkl")
    order = "little"
    if f"{root}byteorder" in names:
        order = archive.read(f"{root}byteorder").decode()

    def read(storage: _Storage) -> bytes:
        return _native(archive.read(f"{root}data/{storage.key}"), storage, order)

    return _Unpickler(io.BytesIO(archive.read(pickles[0]))).load(), read


def _read_legacy(stream: IO[bytes]) -> tuple[object, _Read]:
    """Before PyTorch 1.6: five pickles (magic, version, system, object, keys), then storages."""
    _, _, system = (_Unpickler(stream).load() for _ in range(3))
    order: Literal["little", "big"] = "little" if system["little_endian"] else "big"
    unpickler = _Unpickler(stream)
    tree = unpickler.load()
    places: dict[str, tuple[int, int]] = {}
    for key in _Unpickler(stream).load():
        numel = int.from_bytes(stream.read(8), order)
        start, size = stream.tell(), numel * _dtype(unpickler.storages[key]).itemsize
        places[key] = start, size
        stream.seek(start + size)

    def read(storage: _Storage) -> bytes:
        start, size = places[storage.key]
        stream.seek(start)
        return _native(stream.read(size), storage, order)

    return tree, read


def _read_safetensors(stream: IO[bytes]) -> tuple[object, _Read]:
    """Eight bytes of header length, a JSON header, then the tensors, C-contiguous."""
    length = int.from_bytes(stream.read(8), "little")
    if length > 100_000_000:
        raise ConvertError("neither a file of torch.save nor a safetensors file")
    header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    tree = {}
    for name, entry in header.items():
        size = tuple(entry["shape"])
        stride = tuple(math.prod(size[axis + 1 :]) for axis in range(len(size)))
        storage = _Storage(_DTYPES.get(entry["dtype"], ""), name, math.prod(size))
        tree[name] = Tensor(storage, 0, size, stride)

    def read(storage: _Storage) -> bytes:
        start, end = header[storage.key]["data_offsets"]
        stream.seek(8 + length + start)
        return _native(stream.read(end - start), storage, "little")

    return tree, read


class _Inert:
    """Stands for any other class or function a file names: takes all, keeps and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __new__(cls, *args: object, **kwargs: object) -> "_Inert":
        return object.__new__(cls)

    def _ignore(self, *args: object) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _ignore


class Unreadable(_Inert):
    """Stands for a tensor that is not plain and dense (sparse, quantized, a subclass)."""


class _Unpickler(pickle.Unpickler):
    """Resolves the few names a dense tensor needs; nothing is ever imported."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return collections.OrderedDict
            case "torch", "Size":
                return tuple
            case "torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2":
                return self._tensor
            case "torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state":
                return self._parameter
            case "torch" | "torch.cuda" | "torch.storage", _ if name in _DTYPES:
                return _DTYPES[name]
        rebuilds = module.startswith("torch") and name.startswith("_rebuild")
        return Unreadable if rebuilds else _Inert

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # a class with its source text, in the old format
            return pid[1]
        kind, dtype, key, _, numel, *view = pid
        if kind != "storage" or any(view):
            raise pickle.UnpicklingError(f"persistent id {kind!r} is not a whole storage")
        self.storages[key] = _Storage(dtype, key, numel)
        return self.storages[key]

    # Methods, not functions of the module: a pickle may try to set attributes of what it names.
    def _tensor(self, storage: _Storage, offset: int, size: Any, stride: Any, *rest: Any) -> Any:
        # The last of (requires_grad, hooks, metadata) tells of negation still to be done.
        plain = len(rest) < 3 or not rest[2]
        return Tensor(storage, offset, size, stride) if plain else Unreadable()

    def _parameter(self, data: Any, *rest: Any) -> Any:
        return data


def _tensors(tree: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield prefix.removesuffix("/"), tree
    elif isinstance(tree, dict):
        for name, value in tree.items():
            yield from _tensors(value, f"{prefix}{name}/")
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from _tensors(value, f"{prefix}{index}/")


def _load(tensor: Tensor, read: _Read) -> np.ndarray:
    dtype = _dtype(tensor.storage)
    if 0 in tensor.size:
        return np.zeros(tensor.size, dtype)
    strides = [step * dtype.itemsize for step in tensor.stride]
    start = tensor.offset * dtype.itemsize
    # NumPy refuses a view that would leave the storage.
    return np.ndarray(tensor.size, dtype, read(tensor.storage), start, strides).copy()


def _dtype(storage: _Storage) -> np.dtype:
    if storage.dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    if storage.dtype not in _DTYPES.values():
        raise ConvertError(f"storage {storage.key} is of no dtype that weights have")
    return np.dtype(storage.dtype)


def _native(data: bytes, storage: _Storage, order: str) -> bytes:
    if order == sys.byteorder:
        return data
    return np.frombuffer(data, f"u{_dtype(storage).itemsize}").byteswap().tobytes()
