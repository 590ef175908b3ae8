"""Files of PyTorch and safetensors as NumPy arrays; no pickled code is ever executed."""

import functools
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
from etils import epath

from mvm.types import UserError

Weights = dict[str, np.ndarray]


class ConvertError(UserError):
    """A file cannot be read as weights, or its weights do not fit; one line says which and why."""


PLACES = ("model", "module", "state_dict", "model_state", "model_state_dict")
"""Keys that the official codes, DeepSpeed, Lightning, MMAction2 and others save weights under."""

_DTYPES: dict[str, Any] = {
    **dict(DoubleStorage="f8", FloatStorage="f4", HalfStorage="f2", LongStorage="i8"),
    **dict(IntStorage="i4", ShortStorage="i2", CharStorage="i1", ByteStorage="u1"),
    **dict(BoolStorage="?", BFloat16Storage=ml_dtypes.bfloat16),
    **dict(F64="f8", F32="f4", F16="f2", I64="i8", I32="i4", I16="i2", I8="i1", U8="u1"),
    **dict(BOOL="?", BF16=ml_dtypes.bfloat16),
}
_DAMAGE = (
    *(zipfile.BadZipFile, safetensors.SafetensorError, pickle.UnpicklingError, EOFError),
    *(ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError),
)
"""What libraries raise for damaged files."""


class _Tensor(NamedTuple):
    read: Callable[[], np.ndarray]
    """Deferred: optimiser moments are never read."""


def load(path: str | os.PathLike[str]) -> Weights:
    """The weights in a file of `torch.save` (PyTorch 1.6 or later) or of safetensors.

    They are the first dict of tensors under one of `PLACES`, at the root or under `model_ema`.

    Returns:
        float32 arrays by the file's keys.

    Raises:
        ConvertError: the file is absent, damaged, of another kind, or holds no weights.
    """
    file = epath.Path(path)
    try:
        with file.open("rb") as stream:
            tensors = _state_dict(_read(stream))
            return {str(key): t.read().astype(np.float32) for key, t in tensors.items()}
    except OSError as error:
        raise ConvertError(f"{file}: cannot be read ({error.strerror or error})") from error
    except ConvertError as error:
        raise ConvertError(f"{file}: {error}") from error
    except _DAMAGE as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConvertError(f"{file}: damaged or cut off, download it again ({reason})") from error


def _read(stream: IO[bytes]) -> object:
    head = stream.read(9)
    stream.seek(0)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(stream)
    if head[8:] == b"{":
        return _read_safetensors(stream.read())
    raise ConvertError(
        "neither a file of torch.save (PyTorch 1.6 or later) nor of safetensors; download it "
        "again, or load and save it in a newer PyTorch"
    )


def _state_dict(tree: object) -> dict[Any, _Tensor]:
    root = tree if isinstance(tree, dict) else {}
    for found in (*(root.get(place) for place in PLACES), root, root.get("model_ema")):
        items = found.items() if isinstance(found, dict) else ()
        if tensors := {key: value for key, value in items if isinstance(value, _Tensor)}:
            return tensors
    raise ConvertError(
        f"no tensors under {', '.join(map(repr, PLACES))}, 'model_ema' or at the root, which has "
        f"{', '.join(map(repr, root)) or 'no keys'}; in PyTorch save {{'model': "
        f"model.state_dict()}}"
    )


def _read_safetensors(data: bytes) -> dict[str, _Tensor]:
    def array(entry: Any) -> np.ndarray:
        return np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])

    found = sorted(dict(safetensors.deserialize(data)).items())  # They come in no order.
    return {name: _Tensor(functools.partial(array, entry)) for name, entry in found}


def _read_zip(stream: IO[bytes]) -> object:
    """A zip archive of `data.pkl`, which describes tensors, and a file for each storage."""
    archive = zipfile.ZipFile(stream)
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if not names:
        raise ConvertError("a zip archive without data.pkl: torch.save did not write it")
    folder = names[0].removesuffix("data.pkl")
    # Neighbouring tensors may share a storage; it is read once.
    read = functools.lru_cache(maxsize=1)(lambda key: archive.read(f"{folder}data/{key}"))
    return _Unpickler(archive.read(names[0]), read).load()


class _Unpickler(pickle.Unpickler):
    """Makes tensors, dicts, lists and constants; all that a pickle calls is found here.

    Whatever class or function a file names, only those that `find_class` returns can be called:
    nothing is imported.
    """

    def __init__(self, data: bytes, read: Callable[[str], bytes]):
        super().__init__(io.BytesIO(data))
        self._storage = read

    def find_class(self, module: str, name: str) -> Any:
        match f"{module}.{name}":
            case "collections.OrderedDict":
                return OrderedDict
            case "torch._utils._rebuild_tensor_v2":
                return self._tensor
            case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state":
                return lambda parameter, *rest: parameter
        return name if module == "torch" and name in _DTYPES else _Other

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        _, kind, key, *_ = pid
        return kind, key

    def _tensor(self, storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> _Tensor:
        """A view of a storage, in elements; NumPy refuses one that is not within it."""
        kind, key = storage

        def view() -> np.ndarray:
            dtype = np.dtype(_DTYPES[kind])
            steps = [step * dtype.itemsize for step in stride]
            return np.ndarray(size, dtype, self._storage(key), offset * dtype.itemsize, steps)

        return _Tensor(view)


class _Other:
    """Stands for any other class or function: takes everything and keeps nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Other":
        return object.__new__(cls)

    def _ignore(self, *args: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _ignore
