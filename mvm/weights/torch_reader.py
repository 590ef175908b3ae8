"""Files of PyTorch and safetensors as NumPy arrays; no pickled code is ever executed."""

import json
import math
import os
import pickletools
import zipfile
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
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
_PICKLE = 4 << 20  # bytes; of a model of 1e9 weights and its optimiser: 0.5 MB
# Shared storages are read repeatedly and halves become float32: at most this many times the size
# of the file is read and allocated.
_ROOM = 8


class _Tensor(NamedTuple):
    numel: int
    read: Callable[[], np.ndarray]
    """Deferred: optimiser moments are never read."""


def load(path: str | os.PathLike[str]) -> tuple[Weights, str]:
    """The weights in a file of `torch.save` (PyTorch 1.6 or later) or of safetensors.

    They are the first dict of tensors under one of `PLACES`, at the root or under `model_ema`:
    float32 arrays by the file's keys; beside them, what `files.write` says of them, if it wrote it.
    Time and memory are bounded by the size of the file, whatever it says.
    """
    file = epath.Path(path)
    try:
        with file.open("rb") as stream:
            return _load(stream)
    except (ConvertError, OSError) as error:
        raise ConvertError(f"{file}: {getattr(error, 'strerror', None) or error}") from error
    except Exception as error:  # Whatever libraries raise for damaged files.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConvertError(f"{file}: damaged or cut off, download it again ({reason})") from error


def _load(stream: IO[bytes]) -> tuple[Weights, str]:
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
        spend(4 * tensor.numel)
        weights[str(key)] = tensor.read().astype(np.float32)
    return weights, str(tree.get("mvm", "")) if isinstance(tree, dict) else ""


def _state_dict(tree: object) -> dict[Any, _Tensor]:
    root = tree if isinstance(tree, dict) else {}
    for found in (*(root.get(place) for place in PLACES), root, root.get("model_ema")):
        items = found.items() if isinstance(found, dict) else ()
        if tensors := {key: value for key, value in items if isinstance(value, _Tensor)}:
            return tensors
    raise ConvertError(
        f"no tensors under {', '.join(map(repr, PLACES))}, 'model_ema' or at the root, which has "
        f"{', '.join(map(ascii, root))[:99] or 'no keys'}; in PyTorch save {{'model': "
        f"model.state_dict()}}"
    )


def _read_safetensors(data: bytes) -> dict[str, Any]:
    found = sorted(dict(safetensors.deserialize(data)).items())  # They come in no order.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    flat = {
        name: (np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]), entry["shape"])
        for name, entry in found
        if entry["dtype"] in _DTYPES
    }
    tensors = {n: _Tensor(a.size, partial(a.reshape, shape)) for n, (a, shape) in flat.items()}
    return header.get("__metadata__", {}) | tensors


def _read_zip(stream: IO[bytes], spend: Callable[[int], None]) -> object:
    """A zip archive of `data.pkl`, which describes tensors, and a file for each storage."""
    archive = zipfile.ZipFile(stream)
    names = archive.namelist()
    roots = [name[:-8] for name in names if name.split("/")[-1] == "data.pkl"]
    if not roots:
        raise ConvertError("a zip archive without data.pkl: torch.save did not write it")

    def read(name: str) -> bytes:
        part = archive.getinfo(roots[0] + name)
        spend(part.file_size)
        return archive.read(part)

    if roots[0] + "byteorder" in names and read("byteorder") != b"little":
        raise ConvertError("written on a big-endian machine; load and save it on another")
    if archive.getinfo(roots[0] + "data.pkl").file_size > _PICKLE:
        raise ConvertError(f"its data.pkl is larger than {_PICKLE >> 20} MB; download it again")
    # Neighbouring tensors may share a storage; it is read once.
    return _unpickled(read("data.pkl"), lru_cache(maxsize=1)(read))


def _unpickled(data: bytes, read: Callable[[str], bytes]) -> object:
    """The object a pickle describes: constants, dicts, lists, tuples, tensors; None for others.

    Interprets the operations one by one; a class or function is a tuple (module, name), never
    imported. Python's own unpickler calls what a file names, and one operation can make it hash a
    tuple for hours or fill the memory. `read` gives the bytes of a storage by its name.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []
    memo: dict[int, Any] = {}
    operations: Iterable[tuple[Any, Any, Any]] = pickletools.genops(data)
    for code, arg, _ in operations:
        match code.name:
            case "MARK":
                outer.append(stack)
                stack = []
            case "TUPLE" | "FROZENSET":
                items, stack = stack, outer.pop()
                stack.append(tuple(items))
            case "APPENDS" | "SETITEMS" | "ADDITEMS":
                items, stack = stack, outer.pop()
                _add(stack[-1], items)
            case "APPEND" | "SETITEM" as name:
                items = [stack.pop() for _ in range(1 + (name == "SETITEM"))]
                _add(stack[-1], items[::-1])
            case "TUPLE1" | "TUPLE2" | "TUPLE3" | "STACK_GLOBAL" as name:
                items = [stack.pop() for _ in range(2 if name == "STACK_GLOBAL" else int(name[-1]))]
                stack.append(tuple(items[::-1]))
            case "GLOBAL":
                stack.append(tuple(arg.split(" ", 1)))
            case "REDUCE" | "NEWOBJ":
                args, function = stack.pop(), stack.pop()
                stack.append(_made(function, args, read))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                memo[len(memo) if arg is None else arg] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "BUILD" | "POP":  # The state of an object, which nobody needs.
                stack.pop()
            case "STOP":
                return stack.pop()
            case name if name in _EMPTY:
                stack.append(_EMPTY[name]())
            case name if arg is not None and not code.stack_before:
                if name not in ("PROTO", "FRAME"):
                    stack.append(arg)
            case name if name != "BINPERSID":  # The tuple that says which storage stays.
                raise ValueError(f"{name}, which torch.save does not write")
    raise ValueError("it has no end")


_EMPTY: dict[str, Callable[[], Any]] = {
    **{"EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": lambda: None},
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
}


def _add(target: object, items: list[Any]) -> None:
    if isinstance(target, list):
        target += items
    elif isinstance(target, dict):  # Tuples as keys could take hours to hash.
        target |= {k: v for k, v in zip(items[::2], items[1::2]) if isinstance(k, str | int)}


def _made(function: object, args: Any, read: Callable[[str], bytes]) -> object:
    """What calling `function` would give, for the few that a state dict needs."""
    match function, args:
        case ("collections", "OrderedDict"), _:
            return {}
        case ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state"), (made, *_):
            return made
        case (
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2"),
            (("storage", ("torch", str(kind)), str(key), *_), offset, size, stride, *rest),
        ) if kind in _DTYPES and not any(rest[2:]):
            # The last of (requires_grad, hooks, metadata) tells of negation still to be done.
            view = partial(
                _view, read, f"data/{key}", np.dtype(_DTYPES[kind]), offset, size, stride
            )
            return _Tensor(math.prod(size), view)
    return None


def _view(
    read: Callable[[str], bytes], name: str, dtype: np.dtype, offset: int, size: Any, stride: Any
) -> np.ndarray:
    """A tensor of a storage, offset and strides in elements; ValueError if it is not within it."""
    if 0 in size:
        return np.zeros(size, dtype)
    data = read(name)
    # By Python's numbers: those of NumPy may overflow.
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or (last + 1) * dtype.itemsize > len(data):
        raise ValueError(f"a tensor outside its storage {name}")
    steps = [step * dtype.itemsize if n > 1 else 0 for n, step in zip(size, stride)]
    return np.ndarray(size, dtype, data, offset * dtype.itemsize, steps)
