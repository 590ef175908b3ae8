"""Files of PyTorch and safetensors as NumPy arrays; no pickled code is ever executed."""

import functools
import math
import os
import pickletools
import zipfile
from collections.abc import Callable, Sequence
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

_DTYPES = {
    **dict(DoubleStorage="f8", FloatStorage="f4", HalfStorage="f2", LongStorage="i8"),
    **dict(IntStorage="i4", ShortStorage="i2", CharStorage="i1", ByteStorage="u1"),
    **dict(BoolStorage="?", BFloat16Storage=ml_dtypes.bfloat16),
    **dict(F64="f8", F32="f4", F16="f2", I64="i8", I32="i4", I16="i2", I8="i1", U8="u1"),
    **dict(BOOL="?", BF16=ml_dtypes.bfloat16),
}
_PICKLE = 4 << 20  # bytes; of a model of 1e9 weights and its optimiser: 0.5 MB
_NAME = 1 << 10  # characters of a name that a pickle joins, again and again from the same parts
# Shared storages are read repeatedly and halves become float32: at most this many times the size
# of the file is read and allocated.
_ROOM = 8
_DAMAGE = (
    *(zipfile.BadZipFile, safetensors.SafetensorError, EOFError, RuntimeError),
    *(ArithmeticError, LookupError, TypeError, ValueError),
)


class _Tensor(NamedTuple):
    numel: int
    read: Callable[[], np.ndarray] | None
    """Deferred: optimiser moments are never read. None if not dense (sparse, quantized)."""


def load(path: str | os.PathLike[str]) -> Weights:
    """The weights in a file of `torch.save` (PyTorch 1.6 or later) or of safetensors.

    They are the first dict of tensors under one of `PLACES`, at the root or under `model_ema`.
    Time and memory are bounded by the size of the file, whatever it says.

    Returns:
        float32 arrays by the file's keys.

    Raises:
        ConvertError: the file is absent, damaged, of another kind, or holds no weights.
    """
    file = epath.Path(path)
    try:
        with file.open("rb") as stream:
            return _load(stream)
    except FileNotFoundError as error:
        raise ConvertError(f"{file}: no such file") from error
    except OSError as error:
        raise ConvertError(f"{file}: cannot be read ({error.strerror or _line(error)})") from error
    except ConvertError as error:
        raise ConvertError(f"{file}: {_line(error)}") from error
    except _DAMAGE as error:
        reason = f"{type(error).__name__}: {_line(error)}"
        raise ConvertError(f"{file}: damaged or cut off, download it again ({reason})") from error


def _load(stream: IO[bytes]) -> Weights:
    head = stream.read(9)
    left = _ROOM * stream.seek(0, os.SEEK_END)
    stream.seek(0)

    def spend(size: int) -> None:
        nonlocal left
        left -= size
        if left < 0:
            raise ConvertError("more numbers than fit into the file; download it again")

    if head.startswith(b"PK\x03\x04"):
        tree = _read_zip(stream, spend)
    elif head[8:] == b"{":
        tree = _read_safetensors(stream.read())
    else:
        raise ConvertError(
            "neither a file of torch.save (PyTorch 1.6 or later) nor of safetensors; download it "
            "again, or load and save it in a newer PyTorch"
        )
    weights: Weights = {}
    for key, tensor in _state_dict(tree).items():
        if isinstance(tensor, _Tensor):
            if tensor.read is None:
                raise ConvertError(f"{key} is not a plain dense tensor; save it as one in PyTorch")
            spend(4 * tensor.numel)
            weights[str(key)] = tensor.read().astype(np.float32)
    return weights


def _state_dict(tree: object) -> dict[Any, Any]:
    def holds(found: object) -> bool:
        return isinstance(found, dict) and any(isinstance(v, _Tensor) for v in found.values())

    root = tree if isinstance(tree, dict) else {}
    for found in (*(root.get(place) for place in PLACES), root, root.get("model_ema")):
        if isinstance(found, dict) and holds(found):
            return found
    others = ", ".join(repr(key) for key, value in root.items() if holds(value))
    raise ConvertError(
        f"no tensors under {', '.join(map(repr, PLACES))}, 'model_ema' or at the root, but under "
        f"{others or 'no other key'}; in PyTorch save {{'model': model.state_dict()}}"
    )


def _read_safetensors(data: bytes) -> dict[str, _Tensor]:
    tree = {}
    for name, entry in sorted(dict(safetensors.deserialize(data)).items()):  # in no order
        tree[name] = _Tensor(0, None)
        if dtype := _DTYPES.get(entry["dtype"]):
            flat = np.frombuffer(entry["data"], dtype)
            tree[name] = _Tensor(flat.size, functools.partial(flat.reshape, entry["shape"]))
    return tree


def _read_zip(stream: IO[bytes], spend: Callable[[int], None]) -> object:
    """A zip archive of `data.pkl`, which describes tensors, and a file for each storage."""
    archive = zipfile.ZipFile(stream)
    names = archive.namelist()
    roots = [name[:-8] for name in names if name.split("/")[-1] == "data.pkl"]
    if not roots:
        raise ConvertError("a zip archive without data.pkl: torch.save did not write it")
    if len(set(names)) < len(names):
        raise ConvertError("a part of it is there twice; download it again")

    def read(name: str, size: int | None = None) -> bytes:
        part = archive.getinfo(roots[0] + name)
        if part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size:
            raise ConvertError("compressed, which torch.save never does; download it again")
        if size not in (None, part.file_size):
            raise ConvertError(f"{part.filename} has {part.file_size} bytes instead of {size}")
        spend(part.file_size)
        return archive.read(part)

    if roots[0] + "byteorder" in names and read("byteorder") != b"little":
        raise ConvertError("written on a big-endian machine; load and save it on another")
    if archive.getinfo(roots[0] + "data.pkl").file_size > _PICKLE:
        raise ConvertError(f"its data.pkl is larger than {_PICKLE >> 20} MB; download it again")
    # Neighbouring tensors may share a storage; it is read once.
    return _unpickled(read("data.pkl"), functools.lru_cache(maxsize=1)(read))


class _Name(str):
    """A class or function that a pickle names, as "module name"; nothing is ever imported."""


class _Storage(NamedTuple):
    kind: str
    key: str
    numel: int


_Read = Callable[[str, int], bytes]
_EMPTY: dict[str, Callable[[], Any]] = {
    **{"EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": lambda: None},
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
}


def _unpickled(data: bytes, read: _Read) -> object:
    """The object a pickle describes: constants, dicts, lists, tuples, tensors; None for others.

    Interprets the operations one by one. Python's own unpickler calls what a file names, and one
    operation can make it hash a tuple for hours or fill the memory.

    Args:
        data: a pickle of `torch.save`.
        read: gives the bytes of a storage, by name and size.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []
    memo: dict[Any, Any] = {}
    for code, arg, _ in pickletools.genops(data):
        match code.name:
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "MARK":
                outer.append(stack)
                stack = []
            case "TUPLE" | "FROZENSET":
                items, stack = stack, outer.pop()
                stack.append(tuple(items))
            case "APPENDS" | "SETITEMS" | "ADDITEMS":
                items, stack = stack, outer.pop()
                _add(stack[-1], items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                items = [stack.pop() for _ in range(int(name[-1]))]
                stack.append(tuple(items[::-1]))
            case "APPEND" | "SETITEM" as name:
                items = [stack.pop() for _ in range(1 + (name == "SETITEM"))]
                _add(stack[-1], items[::-1])
            case name if name in _EMPTY:
                stack.append(_EMPTY[name]())
            case "GLOBAL":
                stack.append(_Name(arg))
            case "STACK_GLOBAL":
                names = [stack.pop() for _ in range(2)][::-1]
                if any(not isinstance(name, str) or len(name) > _NAME for name in names):
                    raise ValueError("a name that is none")
                stack.append(_Name(" ".join(names)))
            case "BINPERSID":
                what, kind, key, _, count = stack.pop()
                if (what, type(kind), type(key), type(count)) != ("storage", _Name, str, int):
                    raise ValueError("a persistent id that is no storage")
                stack.append(_Storage(kind.split()[-1], key, count))
            case "REDUCE" | "NEWOBJ":
                args, function = stack.pop(), stack.pop()
                stack.append(_made(function, args, read))
            case "BUILD" | "POP":  # the state of an object, which nobody needs
                stack.pop()
            case "STOP":
                return stack.pop()
            case name if name not in ("PROTO", "FRAME"):
                if arg is None or code.stack_before:
                    raise ValueError(f"{name}, which torch.save does not write")
                stack.append(arg)
    raise ValueError("it has no end")


def _add(target: object, items: list[Any]) -> None:
    if isinstance(target, list):
        target += items
    elif isinstance(target, dict):  # Tuples as keys could take hours to hash.
        target |= {k: v for k, v in zip(items[::2], items[1::2]) if isinstance(k, str | int)}


def _made(function: object, args: Any, read: _Read) -> object:
    """What calling `function` would give, for the few that a state dict needs."""
    if not isinstance(function, _Name):
        return None
    match function:
        case "collections OrderedDict":
            return {}
        case "torch._utils _rebuild_parameter" | "torch._utils _rebuild_parameter_with_state":
            return args[0]
        case "torch._utils _rebuild_tensor" | "torch._utils _rebuild_tensor_v2":
            storage, offset, size, stride, *rest = args
            if not isinstance(storage, _Storage):
                raise ValueError("a tensor without a storage")
            # The last of (requires_grad, hooks, metadata) tells of negation still to be done.
            if storage.kind in _DTYPES and not (len(rest) > 2 and rest[2]):
                return _tensor(storage, offset, size, stride, read)
            return _Tensor(0, None)
    is_tensor = function.startswith("torch") and " _rebuild" in function
    return _Tensor(0, None) if is_tensor else None


def _tensor(
    storage: _Storage, offset: int, size: Sequence[int], stride: Sequence[int], read: _Read
) -> _Tensor:
    """A view of a storage, in elements; ValueError if it is not within it, or larger than it."""
    numbers = (storage.numel, offset, *size, *stride)
    if any(type(n) is not int or not 0 <= n < 1 << 62 for n in numbers) or len(size) > 32:
        raise ValueError("a tensor of no such shape")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count > storage.numel or (count and last >= storage.numel):
        raise ValueError(f"a tensor of {count} numbers outside its storage of {storage.numel}")
    dtype = np.dtype(_DTYPES[storage.kind])

    def view() -> np.ndarray:
        if not count:
            return np.zeros(size, dtype)
        data = read(f"data/{storage.key}", storage.numel * dtype.itemsize)
        steps = [step * dtype.itemsize if n > 1 else 0 for n, step in zip(size, stride)]
        return np.ndarray(size, dtype, data, offset * dtype.itemsize, steps)

    return _Tensor(count, view)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
