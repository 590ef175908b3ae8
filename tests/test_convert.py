"""Reading official files without executing them, and their layout against ours."""

import argparse
import collections
import json
import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from mvm import convert

# --- a writer of PyTorch files, from the format alone --------------------------------------------

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


class Global:
    """Pickled as a bare name, whether or not such a module is installed."""

    def __init__(self, module: str, name: str) -> None:
        self.line = f"c{module}\n{name}\n".encode()

    def __call__(self) -> None:
        raise AssertionError("only ever written")


class Tensor:
    """A view of a flat NumPy storage, in elements."""

    def __init__(
        self,
        storage: np.ndarray,
        offset: int = 0,
        size: tuple[int, ...] | None = None,
        stride: Sequence[int] = (1,),
        rebuild: str = "_rebuild_tensor_v2",
    ) -> None:
        size = storage.shape if size is None else size
        self.call = Global("torch._utils", rebuild)
        self.args: tuple = (
            storage,
            offset,
            tuple(size),
            tuple(stride),
            False,
            collections.OrderedDict(),
        )

    def __reduce__(self) -> Any:
        return self.call, self.args


def dense(array: np.ndarray, **options: Any) -> Tensor:
    stride = [step // array.itemsize for step in array.strides]
    return Tensor(array.reshape(-1), 0, array.shape, stride, **options)


def write_name(writer: Any, name: Global) -> None:
    writer.write(name.line)


class Writer(pickle._Pickler):  # the one in Python, which can be taught a new kind
    dispatch = {  # noqa: RUF012 (the attribute pickle looks for)
        **pickle._Pickler.dispatch,
        Global: write_name,
    }

    def __init__(self, stream: Any, legacy: bool = False) -> None:
        super().__init__(stream, protocol=2)
        self.storages: list[np.ndarray] = []
        self.legacy = legacy

    def persistent_id(self, value: object) -> tuple | None:
        if not isinstance(value, np.ndarray):
            return None
        if not any(value is known for known in self.storages):
            self.storages.append(value)
        key = next(str(i) for i, known in enumerate(self.storages) if value is known)
        kind = Global("torch", STORAGES[value.dtype.name])
        return ("storage", kind, key, "cpu", value.size) + ((None,) if self.legacy else ())


def save(path: pathlib.Path, tree: object, byteorder: str = "little") -> pathlib.Path:
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("run/data.pkl", "w") as stream:
            writer = Writer(stream)
            writer.dump(tree)
        archive.writestr("run/byteorder", byteorder)
        for key, storage in enumerate(writer.storages):
            data = storage if byteorder == "little" else storage.byteswap()
            archive.writestr(f"run/data/{key}", data.tobytes())
        archive.writestr("run/version", "3\n")
        archive.writestr("run/.data/serialization_id", "0123")
    return path


def save_legacy(path: pathlib.Path, tree: object) -> pathlib.Path:
    with path.open("wb") as stream:
        pickle.dump(0x1950A86A20F9469CFC6C, stream, protocol=2)
        pickle.dump(1001, stream, protocol=2)
        pickle.dump({"protocol_version": 1001, "little_endian": True}, stream, protocol=2)
        writer = Writer(stream, legacy=True)
        writer.dump(tree)
        pickle.dump([str(key) for key in range(len(writer.storages))], stream, protocol=2)
        for storage in writer.storages:
            stream.write(struct.pack("<q", storage.size) + storage.tobytes())
    return path


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [save, save_legacy])
@pytest.mark.parametrize("dtype", list(STORAGES))
def test_every_dtype_is_read_bit_for_bit(tmp_path: pathlib.Path, write: Any, dtype: str) -> None:
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    array = np.arange(-4, 8).astype(kind).reshape(3, 4)
    (read,) = convert.read_torch(write(tmp_path / "a.pth", {"x": dense(array)})).values()
    assert read.dtype == kind
    assert read.shape == (3, 4)
    assert read.tobytes() == array.tobytes()


@pytest.mark.parametrize("write", [save, save_legacy])
def test_views_of_one_storage(tmp_path: pathlib.Path, write: Any) -> None:
    storage = np.arange(24, dtype=np.float32)
    tree = {
        "transposed": Tensor(storage, 0, (4, 6), (1, 4)),
        "slice": Tensor(storage, 7, (2, 3), (6, 2)),
        "scalar": Tensor(storage, 5, (), ()),
        "expanded": Tensor(storage, 3, (2, 2), (0, 1)),
        "empty": Tensor(np.zeros(0, np.float32), 0, (0, 4), (4, 1)),
        "list": [Tensor(storage), (Tensor(storage, 23, (1,)),)],
    }
    read = convert.read_torch(write(tmp_path / "a.pth", tree))
    assert np.array_equal(read["transposed"], storage.reshape(6, 4).T)
    assert np.array_equal(read["slice"], [[7, 9, 11], [13, 15, 17]])
    assert read["scalar"].shape == ()
    assert read["scalar"] == 5
    assert np.array_equal(read["expanded"], [[3, 4], [3, 4]])
    assert read["empty"].shape == (0, 4)
    assert np.array_equal(read["list/0"], storage)
    assert np.array_equal(read["list/1/0"], [23])
    read["transposed"][:] = 0  # an array of its own
    assert read["list/0"][1] == 1


def test_a_view_outside_its_storage_is_refused(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path / "a.pth", {"x": Tensor(np.zeros(4, np.float32), 2, (3,))})
    with pytest.raises(convert.ConvertError, match="damaged"):
        convert.read_torch(path)


def test_a_file_of_a_big_endian_machine(tmp_path: pathlib.Path) -> None:
    array = np.array([1.5, -2.0, 3e-5], np.float32)
    path = save(tmp_path / "a.pth", {"x": Tensor(array)}, byteorder="big")
    assert np.array_equal(convert.read_torch(path)["x"], array)


def released(weights: dict[str, Any]) -> dict[str, Any]:
    """The outer dict of a released file."""
    moment = Tensor(np.full(3, 9.0, np.float32))
    return {
        "model": collections.OrderedDict(weights),
        "optimizer": {"state": {0: {"step": 7, "exp_avg": moment}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 799,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(lr=1e-3, device=Odd()),
    }


class Odd:
    """A class of its own, with state, that no reader can know."""

    def __init__(self) -> None:
        self.text = "state"


def test_a_released_file_gives_its_model_as_float32(tmp_path: pathlib.Path) -> None:
    half = np.array([1.0, 0.1], np.float16)
    path = save(tmp_path / "checkpoint-799.pth", released({"encoder.a": Tensor(half)}))
    weights = convert.official_weights(path)
    assert list(weights) == ["encoder.a"]
    assert weights["encoder.a"].dtype == np.float32
    assert np.array_equal(weights["encoder.a"], half.astype(np.float32))
    assert set(convert.read_torch(path)) == {"model/encoder.a", "optimizer/state/0/exp_avg"}


def test_model_goes_before_module_before_the_root(tmp_path: pathlib.Path) -> None:
    one, two, three = (Tensor(np.full(1, i, np.float32)) for i in (1, 2, 3))
    trees = [
        ({"module": {"a": two}, "model": {"a": one}}, 1),
        ({"module": {"a": two}, "model": "a name", "a": three}, 2),
        ({"a": three, "epoch": 4}, 3),
    ]
    for tree, value in trees:
        assert convert.official_weights(save(tmp_path / "a.pth", tree))["a"] == value


def test_prefixes_of_wrappers_are_removed_and_must_not_collide(tmp_path: pathlib.Path) -> None:
    one = Tensor(np.ones(1, np.float32))
    keys = ["module._orig_mod.encoder.a", "backbone.b", "encoder.module.c"]
    path = save(tmp_path / "a.pth", {"model": dict.fromkeys(keys, one)})
    assert list(convert.official_weights(path)) == ["encoder.a", "b", "encoder.module.c"]
    path = save(tmp_path / "a.pth", {"model": {"module.a": one, "a": one}})
    with pytest.raises(convert.ConvertError, match="two keys are called a "):
        convert.official_weights(path)


def test_a_deepspeed_folder(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "checkpoint-best"
    folder.mkdir()
    tree = {"module": {"head.bias": Tensor(np.ones(2, np.float16))}, "ds_config": Odd()}
    save(folder / "mp_rank_00_model_states.pt", tree)
    assert np.array_equal(convert.official_weights(folder)["head.bias"], [1, 1])
    with pytest.raises(convert.ConvertError, match=r"mp_rank_00_model_states\.pt"):
        convert.official_weights(tmp_path)


def test_safetensors_with_bfloat16(tmp_path: pathlib.Path) -> None:
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    b = np.array([1.0, -2.5], ml_dtypes.bfloat16)
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [4, 28]},
        "b": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
    }
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b.tobytes() + a.tobytes())
    read = convert.read_torch(path)
    assert np.array_equal(read["a"], a)
    assert read["b"].dtype == ml_dtypes.bfloat16
    assert np.array_equal(convert.official_weights(tmp_path)["b"], [1.0, -2.5])


def test_safetensors_written_by_the_library(tmp_path: pathlib.Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.full((), 3, np.float16),
        "c": np.ones(2, bool),
    }
    library.save_file(arrays, tmp_path / "x.safetensors")
    read = convert.read_torch(tmp_path / "x.safetensors")
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        assert np.array_equal(read[name], array)


class Attack:
    """Unpickles as a call of `function`."""

    def __init__(self, function: Any, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


def test_code_in_a_file_does_not_run(tmp_path: pathlib.Path) -> None:
    marker = tmp_path / "marker"
    attacks = [
        Attack(os.system, f"touch {marker}"),
        Attack(eval, f"open({str(marker)!r}, 'w')"),
        Attack(os.mkdir, str(marker)),
    ]
    for attack in attacks:
        pickle.loads(pickle.dumps(attack, protocol=2))
        assert marker.exists()  # the attack works where code may run
        marker.rmdir() if marker.is_dir() else marker.unlink()

        tree = {**released({"a": Tensor(np.ones(2, np.float32)), "bad": attack}), "args": attack}
        for write in (save, save_legacy):
            weights = convert.official_weights(write(tmp_path / "a.pth", tree))
            assert list(weights) == ["a"]
            assert not marker.exists()


class Target:
    """A class that a pickle tries to change."""


def test_a_name_from_a_file_cannot_be_called_or_changed(tmp_path: pathlib.Path) -> None:
    # GLOBAL, then BUILD with (None, {"a": 1}), which sets an attribute where code may run.
    build = b"N}X\x01\x00\x00\x00aK\x01s\x86b."
    pickle.loads(b"\x80\x02" + Global(__name__, "Target").line + build)
    assert Target.__dict__["a"] == 1
    names = [
        ("torch", "FloatStorage"),
        ("torch", "Size"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("collections", "OrderedDict"),
        ("os", "system"),
    ]
    for module, name in names:
        path = tmp_path / "a.pth"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("run/data.pkl", b"\x80\x02" + Global(module, name).line + build)
        with pytest.raises(convert.ConvertError):
            convert.official_weights(path)
    reachable = [tuple, collections.OrderedDict, *vars(convert).values()]
    reachable += vars(convert._Unpickler).values()
    assert not [thing for thing in reachable if "a" in dir(thing)]


def test_a_tensor_that_is_not_dense_is_named_unless_nobody_needs_it(tmp_path: pathlib.Path) -> None:
    odd = Tensor(np.ones(2, np.float32), rebuild="_rebuild_sparse_tensor")
    tree: dict[str, Any] = {"model": {"head.bias": Tensor(np.ones(2, np.float32))}, "extra": odd}
    assert list(convert.official_weights(save(tmp_path / "a.pth", tree))) == ["head.bias"]
    tree["model"]["head.weight"] = odd
    with pytest.raises(convert.ConvertError, match=r"head\.weight is not a plain dense tensor"):
        convert.official_weights(save(tmp_path / "a.pth", tree))


def test_damaged_files_give_one_line_with_the_path(tmp_path: pathlib.Path) -> None:
    tree = released({"a": dense(np.arange(5000, dtype=np.float32))})
    good = {"zip": save(tmp_path / "a", tree), "old": save_legacy(tmp_path / "b", tree)}
    bad = {"text": b"no weights here, only words", "empty": b"", "magic": b"PK\x03\x04"}
    for name, path in good.items():
        data = path.read_bytes()
        bad |= {f"{name}-{part}": data[: len(data) * part // 8] for part in range(1, 8)}
    flipped = bytearray(good["zip"].read_bytes())
    flipped[len(flipped) // 2] ^= 1  # one bit of one weight: the checksum tells
    bad["flipped"] = bytes(flipped)
    for name, data in bad.items():
        path = tmp_path / f"{name}.pth"
        path.write_bytes(data)
        with pytest.raises(convert.ConvertError) as caught:
            convert.official_weights(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
    np.savez(tmp_path / "c.npz", a=np.ones(2))
    with pytest.raises(convert.ConvertError, match=r"without data\.pkl"):
        convert.read_torch(tmp_path / "c.npz")
    with pytest.raises(convert.ConvertError, match="no such file"):
        convert.read_torch(tmp_path / "absent.pth")
    with pytest.raises(convert.ConvertError, match="no tensors under 'model'"):
        convert.official_weights(save(tmp_path / "d.pth", {"model": Odd()}))


@pytest.mark.parametrize("zipped", [True, False])
def test_files_written_by_pytorch(tmp_path: pathlib.Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    base = torch.randn(4, 6)
    weights = collections.OrderedDict(
        a=base.t(), b=base[1:3, ::2], half=base.half(), bf=base.bfloat16(), n=torch.tensor(7)
    )
    tree = {"model": weights, "args": argparse.Namespace(lr=1e-3, device=torch.device("cpu"))}
    path = tmp_path / "a.pth"
    torch.save(tree, path, _use_new_zipfile_serialization=zipped)
    read = convert.read_torch(path)
    for name, tensor in weights.items():
        assert read[f"model/{name}"].dtype.name == str(tensor.dtype).removeprefix("torch.")
        assert np.array_equal(read[f"model/{name}"].astype("f8"), tensor.double().numpy())


# --- layouts -------------------------------------------------------------------------------------


def block(width: int, hidden: int, *lead: int) -> dict[str, Any]:
    def norm() -> dict[str, tuple]:
        return {"scale": (*lead, width), "bias": (*lead, width)}

    def linear(n: int, m: int) -> dict[str, tuple]:
        return {"kernel": (*lead, n, m), "bias": (*lead, m)}

    return {
        "norm1": norm(),
        "attention": {
            "qkv": {"kernel": (*lead, width, 3 * width)},
            "q_bias": (*lead, width),
            "v_bias": (*lead, width),
            "proj": linear(width, width),
        },
        "norm2": norm(),
        "mlp": {"fc1": linear(width, hidden), "fc2": linear(hidden, width)},
    }


def classifier(
    width: int = 48, depth: int = 3, pixels: int = 384, classes: int = 7
) -> dict[str, Any]:
    return {
        "encoder": {
            "embed": {"kernel": (pixels, width), "bias": (width,)},
            "blocks": block(width, 4 * width, depth),
        },
        "fc_norm": {"scale": (width,), "bias": (width,)},
        "head": {"kernel": (width, classes), "bias": (classes,)},
    }


def autoencoder(
    width: int = 48, depth: int = 2, pixels: int = 384, d: int = 32, decoder_depth: int = 2
) -> dict[str, Any]:
    decoder = {
        "last": block(d, 4 * d),
        "norm": {"scale": (d,), "bias": (d,)},
        "head": {"kernel": (d, pixels), "bias": (pixels,)},
    }
    if decoder_depth > 1:
        decoder["blocks"] = block(d, 4 * d, decoder_depth - 1)
    encoder = classifier(width, depth, pixels)["encoder"]
    return {
        "encoder": {**encoder, "norm": {"scale": (width,), "bias": (width,)}},
        "encoder_to_decoder": {"kernel": (width, d)},
        "mask_token": (d,),
        "decoder": decoder,
    }


def like(shapes: dict[str, Any], dtype: Any = np.float32) -> Any:
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype),
        shapes,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def random_params(shapes: dict[str, Any], seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f4"), like(shapes))


MODELS = {
    "autoencoder": (autoencoder(), (2, 8, 8)),
    "autoencoder with one decoder block": (autoencoder(6, 3, 36, 4, 1), (1, 2, 6)),
    "classifier": (classifier(), (2, 8, 8)),
    "small classifier": (classifier(6, 1, 72, 2), (4, 3, 2)),
}


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_bitwise_from_both_ends(name: str) -> None:
    shapes, tubelet = MODELS[name]
    params = random_params(shapes)
    weights = convert.from_params(params, tubelet)
    back, report = convert.to_params(weights, like(shapes))
    assert report == convert.Report(report.matched, (), ())
    jax.tree.map(np.testing.assert_array_equal, back, params)
    again = convert.from_params(back, tubelet)
    assert list(again) == list(weights)
    assert all(again[key].tobytes() == weights[key].tobytes() for key in weights)


def test_key_counts_and_sizes_of_the_released_vit_b() -> None:
    def numbers(shapes: dict[str, Any]) -> tuple[int, int, dict[str, np.ndarray]]:
        params = jax.tree.map(lambda leaf: np.broadcast_to(np.int8(0), leaf.shape), like(shapes))
        weights = convert.from_params(params)
        return len(weights), sum(array.size for array in weights.values()), weights

    count, size, weights = numbers(autoencoder(768, 12, 1536, 384, 4))
    assert (count, size) == (218, 94_210_944)
    assert weights["encoder.patch_embed.proj.weight"].shape == (768, 3, 2, 16, 16)
    assert weights["encoder.blocks.11.attn.qkv.weight"].shape == (2304, 768)
    assert weights["decoder.blocks.3.mlp.fc2.weight"].shape == (384, 1536)
    assert weights["mask_token"].shape == (1, 1, 384)
    # 162 with the head; 86,227,200 in the body and 768 * 101 + 101 in the head.
    assert numbers(classifier(768, 12, 1536, 101))[:2] == (162, 86_304_869)


def check_embedding_and_attention(
    official: dict[str, np.ndarray], params: dict[str, Any], prefix: str
) -> None:
    rng = np.random.default_rng(0)
    # The embedding against the convolution it was, at one place, summed term by term.
    tubelet = rng.normal(size=(2, 8, 8, 3))
    kernel = official[f"{prefix}patch_embed.proj.weight"].astype("f8")
    summed = np.zeros(48)
    for t, h, w, c in np.ndindex(2, 8, 8, 3):
        summed += tubelet[t, h, w, c] * kernel[:, c, t, h, w]
    ours = tubelet.reshape(-1) @ params["encoder"]["embed"]["kernel"].astype("f8")
    np.testing.assert_allclose(ours, summed, rtol=1e-10, atol=1e-12)
    # Queries, keys and values are the first, second and third 48 rows.
    attention = params["encoder"]["blocks"]["attention"]
    fused = official[f"{prefix}blocks.1.attn.qkv.weight"]
    for part in range(3):
        columns = attention["qkv"]["kernel"][1][:, 48 * part : 48 * (part + 1)]
        assert np.array_equal(columns[5, 7], fused[48 * part + 7, 5])
        assert np.array_equal(columns.T, fused[48 * part : 48 * (part + 1)])
    assert np.array_equal(attention["v_bias"][0], official[f"{prefix}blocks.0.attn.v_bias"])
    scale = params["encoder"]["blocks"]["norm2"]["scale"]
    assert np.array_equal(scale[1], official[f"{prefix}blocks.1.norm2.weight"])


def test_the_embedding_is_the_convolution_it_was_and_qkv_stay_apart() -> None:
    official = convert.from_params(random_params(classifier()), (2, 8, 8))
    params, _ = convert.to_params(official, like(classifier()))
    check_embedding_and_attention(official, params, "")


def golden_weights(shared: pathlib.Path, name: str) -> dict[str, np.ndarray]:
    arrays = np.load(shared / "golden" / f"{name}.npz")
    return {key.removeprefix("sd/"): arrays[key] for key in arrays.files if key.startswith("sd/")}


GOLDEN = {
    "videomae_pretrain": autoencoder(),
    "everest_pretrain": autoencoder(),
    "videomae_finetune": classifier(),
    "everest_finetune": classifier(),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_official_weights_find_their_places(shared: pathlib.Path, name: str) -> None:
    official = golden_weights(shared, name)
    pretrain = name.endswith("pretrain")
    prefix = "encoder." if pretrain else ""
    depth = {len([key for key in official if key.startswith(f"{prefix}blocks.")]) // 13}
    shapes = autoencoder(depth=depth.pop()) if pretrain else classifier(depth=depth.pop())
    params, report = convert.to_params(official, like(shapes))
    assert set(report.matched) == set(official)
    assert report.missing == report.unused == ()
    back = convert.from_params(params, (2, 8, 8))
    assert set(back) == set(official)
    assert all(np.array_equal(back[key], official[key]) for key in official)

    check_embedding_and_attention(official, params, prefix)
    if pretrain:
        last = params["decoder"]["last"]["mlp"]["fc1"]["kernel"]
        assert np.array_equal(last.T, official["decoder.blocks.1.mlp.fc1.weight"])
        first = params["decoder"]["blocks"]["mlp"]["fc1"]["kernel"]
        assert first.shape == (1, 32, 128)
        assert np.array_equal(first[0].T, official["decoder.blocks.0.mlp.fc1.weight"])
        assert np.array_equal(params["mask_token"], official["mask_token"][0, 0])
    else:
        assert np.array_equal(params["head"]["kernel"].T, official["head.weight"])


def pretrain_file(**sizes: int) -> dict[str, np.ndarray]:
    return convert.from_params(random_params(autoencoder(**sizes)), (2, 8, 8))


def test_a_pretrain_file_fills_the_encoder_of_a_classifier() -> None:
    official = pretrain_file()
    params, report = convert.to_params(official, like(classifier(depth=2)))
    assert list(params) == ["encoder"]
    assert report.missing == ("fc_norm/scale", "fc_norm/bias", "head/kernel", "head/bias")
    encoder = {key for key in official if key.startswith("encoder.")}
    unread = {"encoder.norm.weight", "encoder.norm.bias"}
    assert set(report.matched) == encoder - unread
    assert set(report.unused) == set(official) - set(report.matched)
    assert str(report).startswith(f"{len(encoder) - 2} keys read; 4 missing: fc_norm/scale, ")
    assert "\n" not in str(report)


def test_a_head_for_other_classes_is_left_out_and_listed() -> None:
    official = convert.from_params(random_params(classifier(classes=5)), (2, 8, 8))
    params, report = convert.to_params(official, like(classifier(classes=7)))
    assert "head" not in params
    assert "fc_norm" in params
    reason = "(5 classes in the file, 7 wanted)"
    assert set(report.missing) == {f"head/kernel {reason}", f"head/bias {reason}"}
    assert set(report.unused) == {"head.weight", "head.bias"}


def test_the_model_decides_the_dtype_and_gets_copies() -> None:
    official = convert.from_params(random_params(classifier()), (2, 8, 8))
    params, _ = convert.to_params(official, like(classifier(), ml_dtypes.bfloat16))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    params, _ = convert.to_params(official, like(classifier()))
    params["fc_norm"]["scale"][:] = 0
    assert official["fc_norm.weight"].all()


def test_leaves_without_an_official_name() -> None:
    shapes = {**classifier(), "sampler": {"head": {"bias": (1,)}}}
    official = convert.from_params(random_params(classifier()), (2, 8, 8))
    _, report = convert.to_params(official, like(shapes))
    assert report.missing == ("sampler/head/bias",)
    with pytest.raises(convert.ConvertError, match="sampler/head/bias has no official name"):
        convert.from_params(random_params(shapes), (2, 8, 8))


def misfit(official: dict[str, np.ndarray], shapes: dict[str, Any]) -> str:
    with pytest.raises(convert.ConvertError) as caught:
        convert.to_params(official, like(shapes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_misfits_name_the_key_both_shapes_and_the_sizes() -> None:
    official = pretrain_file(width=384, depth=1)
    line = misfit(official, autoencoder(768, 2))
    assert "encoder.patch_embed.proj.weight is (384, 3, 2, 8, 8) in the file" in line
    assert "wanted (768, 3, 2, 8, 8)" in line
    assert "ViT-S (1 blocks of width 384, decoder of 2)" in line
    assert "ViT-B (2 blocks of width 768, decoder of 2)" in line

    line = misfit(official, autoencoder(384, 1, pixels=1536))
    assert "(384, 3, 2, 8, 8) in the file, wanted (384, 3, 2, 16, 16)" in line
    line = misfit(official, autoencoder(384, 2))
    assert "encoder.blocks.1.norm1.weight is absent in the file, wanted (384,)" in line
    line = misfit(official, autoencoder(384, 1, d=16))
    assert "encoder_to_decoder.weight is (32, 384) in the file, wanted (16, 384)" in line


def test_every_block_must_be_used() -> None:
    official = pretrain_file(depth=3)
    assert "encoder.blocks.2.norm1.weight is (48,) in the file" in misfit(official, autoencoder())
    assert "encoder.blocks.2." in misfit(official, classifier(depth=2))
    official = pretrain_file(decoder_depth=3)
    line = misfit(official, autoencoder(decoder_depth=2))
    assert "decoder.blocks.2.norm1.weight is (32,) in the file, wanted nothing" in line
    assert "decoder of 3), the model is" in line
    line = misfit(pretrain_file(decoder_depth=1), autoencoder(decoder_depth=2))
    assert "decoder.blocks.1.norm1.weight is absent in the file" in line
    official = pretrain_file()
    official["encoder.blocks.1.gamma_1"] = np.ones(48, np.float32)
    assert "encoder.blocks.1.gamma_1 is (48,)" in misfit(official, autoencoder())
    del official["encoder.blocks.1.gamma_1"], official["encoder.blocks.0.attn.q_bias"]
    assert "encoder.blocks.0.attn.q_bias is absent" in misfit(official, autoencoder())


def test_files_of_the_wrong_kind() -> None:
    finetune = convert.from_params(random_params(classifier()), (2, 8, 8))
    assert "cannot fill an autoencoder" in misfit(finetune, autoencoder(depth=3))
    assert "(conv1.weight)" in misfit({"conv1.weight": np.ones(3)}, classifier())
    image = {"patch_embed.proj.weight": np.ones((48, 3, 8, 8), np.float32)}
    assert "(48, 3, 8, 8) in the file, wanted (48, 3, 2, 8, 8)" in misfit(image, classifier())
    assert "no encoder/embed/kernel" in misfit(finetune, {"head": {"bias": (7,)}})
    with pytest.raises(convert.ConvertError, match="not 1536 rows: pass the tubelet size"):
        convert.from_params(random_params(classifier()))


def test_an_encoder_alone_fills_the_encoder_of_an_autoencoder() -> None:
    official = {k: v for k, v in pretrain_file().items() if k.startswith("encoder.")}
    params, report = convert.to_params(official, like(autoencoder()))
    assert list(params) == ["encoder"]
    assert "decoder/last/norm1/scale" in report.missing
    assert "mask_token" in report.missing
