"""Official PyTorch weights to and from our parameter trees; no pickled code is ever executed.

VideoMAE (arXiv 2203.12602), EVEREST (arXiv 2211.10636) and VideoMAE V2 (arXiv 2303.16727) share
one naming of their weights. `_AUTOENCODER` and `_CLASSIFIER` below hold it, for both directions.
"""

import collections
import contextlib
import functools
import io
import json
import math
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, Literal, NamedTuple

import numpy as np

Weights = dict[str, np.ndarray]


class ConvertError(ValueError):
    """A file cannot be read as weights, or its weights do not fit; one line says which and why."""


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


# --- names and layouts ---------------------------------------------------------------------------


class _Way(NamedTuple):
    """How one array changes between the layouts; `tubelet` is the (t, h, w) of its pixels."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_official: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def _conv_to_ours(kernel: np.ndarray) -> np.ndarray:
    """`[D, 3, p_t, p_h, p_w]` -> `[P, D]`, rows in the order (t, h, w, c) of a flat tubelet."""
    return kernel.transpose(2, 3, 4, 1, 0).reshape(-1, kernel.shape[0])


def _conv_to_official(kernel: np.ndarray, tubelet: tuple[int, ...]) -> np.ndarray:
    return kernel.reshape(*tubelet, 3, kernel.shape[-1]).transpose(4, 3, 0, 1, 2)


_SAME = _Way(lambda x: x, lambda x, tubelet: x)
_LINEAR = _Way(lambda x: x.T, lambda x, tubelet: x.T)
_CONV = _Way(_conv_to_ours, _conv_to_official)
_TOKEN = _Way(lambda x: x.reshape(-1), lambda x, tubelet: x.reshape(1, 1, -1))


class _Rule(NamedTuple):
    ours: str
    official: str
    way: _Way


def _norm(ours: str, official: str) -> tuple[_Rule, ...]:
    return (
        _Rule(f"{ours}/scale", f"{official}.weight", _SAME),
        _Rule(f"{ours}/bias", f"{official}.bias", _SAME),
    )


def _linear(ours: str, official: str, way: _Way = _LINEAR) -> tuple[_Rule, ...]:
    return (
        _Rule(f"{ours}/kernel", f"{official}.weight", way),
        _Rule(f"{ours}/bias", f"{official}.bias", _SAME),
    )


def _block(ours: str, official: str) -> tuple[_Rule, ...]:
    return (
        *_norm(f"{ours}/norm1", f"{official}.norm1"),
        # Rows q | k | v, each head-major, become columns in the same order; k has no bias.
        _Rule(f"{ours}/attention/qkv/kernel", f"{official}.attn.qkv.weight", _LINEAR),
        _Rule(f"{ours}/attention/q_bias", f"{official}.attn.q_bias", _SAME),
        _Rule(f"{ours}/attention/v_bias", f"{official}.attn.v_bias", _SAME),
        *_linear(f"{ours}/attention/proj", f"{official}.attn.proj"),
        *_norm(f"{ours}/norm2", f"{official}.norm2"),
        *_linear(f"{ours}/mlp/fc1", f"{official}.mlp.fc1"),
        *_linear(f"{ours}/mlp/fc2", f"{official}.mlp.fc2"),
    )


# Official keys are those of a pre-train file; a fine-tune file drops the leading "encoder.".
_ENCODER = (
    *_linear("encoder/embed", "encoder.patch_embed.proj", _CONV),
    *_block("encoder/blocks", "encoder.blocks.{i}"),
)
_AUTOENCODER = (
    *_ENCODER,
    *_norm("encoder/norm", "encoder.norm"),
    _Rule("encoder_to_decoder/kernel", "encoder_to_decoder.weight", _LINEAR),
    _Rule("mask_token", "mask_token", _TOKEN),
    *_block("decoder/blocks", "decoder.blocks.{i}"),
    *_block("decoder/last", "decoder.blocks.{last}"),
    *_norm("decoder/norm", "decoder.norm"),
    # The target's order is (t, h, w, c) in the official code too: nothing to permute here.
    *_linear("decoder/head", "decoder.head"),
)
_CLASSIFIER = (*_ENCODER, *_norm("fc_norm", "fc_norm"), *_linear("head", "head"))


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
) -> list[tuple[_Rule, tuple[str, ...]]]:
    """The rules whose leaf exists, each with its official keys: one per layer of a stack."""
    stack = flat.get("decoder/blocks/norm1/scale")
    last = 0 if stack is None else stack.shape[0]
    placed = []
    for rule in _AUTOENCODER if autoencoder else _CLASSIFIER:
        if rule.ours not in flat:
            continue
        key = rule.official
        if rule in _ENCODER:
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


# --- reading files -------------------------------------------------------------------------------


_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
_FOLDER_FILES = ("mp_rank_00_model_states.pt", "model.safetensors", "pytorch_model.bin")
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


class _Tensor(NamedTuple):
    """A view of a storage in elements; read only when asked for, so optimiser moments never are."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


_Read = Callable[[_Storage], bytes]


def read_torch(path: str | os.PathLike[str]) -> Weights:
    """Every tensor of a PyTorch or safetensors file, without executing pickled code.

    Args:
        path: a file of `torch.save` (zip container, or the format before PyTorch 1.6), a
            `.safetensors` file, or a DeepSpeed folder with `mp_rank_00_model_states.pt`.

    Returns:
        Arrays in the dtypes of the file by their place in it, joined by "/":
        `model/encoder.norm.weight`, `optimizer/state/0/exp_avg`.

    Raises:
        ConvertError: no such file, damaged, or not such a file: names the path and the reason.
    """
    with _opened(path) as (tree, read):
        return {name: _load(tensor, read) for name, tensor in _tensors(tree)}


def official_weights(path: str | os.PathLike[str]) -> Weights:
    """The model's weights in an official file, as float32 by official key.

    They are the dict under `model`, else under `module` (DeepSpeed), else the root. The prefixes
    that wrappers leave (`module.`, `backbone.`, `_orig_mod.`) are taken off; `encoder.` is kept.

    Args:
        path: as for `read_torch`.

    Raises:
        ConvertError: as `read_torch`, or no weights in the file: names the path and the reason.
    """
    with _opened(path) as (tree, read):
        root = tree if isinstance(tree, dict) else {}
        for found in (root.get("model"), root.get("module"), root):
            if isinstance(found, dict) and any(isinstance(v, _Tensor) for v in found.values()):
                break
        else:
            raise ConvertError(
                "no tensors under 'model', 'module' or at the root: "
                "save model.state_dict() in PyTorch and pass that file"
            )
        weights: Weights = {}
        for key, tensor in found.items():
            if isinstance(tensor, _Unreadable):
                raise ConvertError(f"{key} is not a plain dense tensor; save it as one in PyTorch")
            if not isinstance(tensor, _Tensor):
                continue
            name = re.sub(r"^((module|backbone|_orig_mod)\.)+", "", str(key))
            if name in weights:
                raise ConvertError(f"two keys are called {name} once wrapper prefixes are removed")
            weights[name] = _load(tensor, read).astype(np.float32)
        return weights


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[object, _Read]]:
    """What a file holds, with `_Tensor` for tensors, and how to read their storages."""
    from etils import epath  # here, so that importing this module needs NumPy alone

    file = epath.Path(path)
    try:
        if file.is_dir():
            inside = [file / name for name in _FOLDER_FILES if (file / name).exists()]
            if not inside:
                raise ConvertError(f"a folder with none of {', '.join(_FOLDER_FILES)}")
            file = inside[0]
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
            yield tree, functools.lru_cache(maxsize=1)(read)
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
        tree[name] = _Tensor(storage, 0, size, stride)

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


class _Unreadable(_Inert):
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
        return _Unreadable if rebuilds else _Inert

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
        return _Tensor(storage, offset, size, stride) if plain else _Unreadable()

    def _parameter(self, data: Any, *rest: Any) -> Any:
        return data


def _tensors(tree: object, prefix: str = "") -> Iterator[tuple[str, _Tensor]]:
    if isinstance(tree, _Tensor):
        yield prefix.removesuffix("/"), tree
    elif isinstance(tree, dict):
        for name, value in tree.items():
            yield from _tensors(value, f"{prefix}{name}/")
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from _tensors(value, f"{prefix}{index}/")


def _load(tensor: _Tensor, read: _Read) -> np.ndarray:
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
