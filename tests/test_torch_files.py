"""Reading official files without executing them."""

import argparse
import collections
import json
import os
import pathlib
import pickle
import struct
import sys
import zipfile
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from torch_writer import STORAGES, Global, Odd, Tensor, dense, released, save, save_legacy

from mvm import convert, torch_files, weight_files
from mvm.convert import ConvertError
from mvm.types import UserError


@pytest.mark.parametrize("write", [save, save_legacy])
@pytest.mark.parametrize("dtype", list(STORAGES))
def test_every_dtype_is_read_bit_for_bit(tmp_path: pathlib.Path, write: Any, dtype: str) -> None:
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    array = np.arange(-4, 8).astype(kind).reshape(3, 4)
    (read,) = torch_files.read_torch(write(tmp_path / "a.pth", {"x": dense(array)})).values()
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
    read = torch_files.read_torch(write(tmp_path / "a.pth", tree))
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
    with pytest.raises(ConvertError, match="damaged"):
        torch_files.read_torch(path)


def test_a_file_of_a_big_endian_machine(tmp_path: pathlib.Path) -> None:
    array = np.array([1.5, -2.0, 3e-5], np.float32)
    path = save(tmp_path / "a.pth", {"x": Tensor(array)}, byteorder="big")
    assert np.array_equal(torch_files.read_torch(path)["x"], array)


def test_a_released_file_gives_its_model_as_float32(tmp_path: pathlib.Path) -> None:
    half = np.array([1.0, 0.1], np.float16)
    path = save(tmp_path / "checkpoint-799.pth", released({"encoder.a": Tensor(half)}))
    weights = convert.official_weights(path)
    assert list(weights) == ["encoder.a"]
    assert weights["encoder.a"].dtype == np.float32
    assert np.array_equal(weights["encoder.a"], half.astype(np.float32))
    assert set(torch_files.read_torch(path)) == {"model/encoder.a", "optimizer/state/0/exp_avg"}


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
    keys = ["module._orig_mod.encoder.a", "backbone.b", "encoder.module.c", "model.d"]
    path = save(tmp_path / "a.pth", {"model": dict.fromkeys(keys, one)})
    assert list(convert.official_weights(path)) == ["encoder.a", "b", "encoder.module.c", "d"]
    path = save(tmp_path / "a.pth", {"model": {"module.a": one, "a": one}})
    with pytest.raises(ConvertError, match="two keys are called a "):
        convert.official_weights(path)


def test_a_deepspeed_folder(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "checkpoint-best"
    folder.mkdir()
    tree = {"module": {"head.bias": Tensor(np.ones(2, np.float16))}, "ds_config": Odd()}
    save(folder / "mp_rank_00_model_states.pt", tree)
    assert np.array_equal(convert.official_weights(folder)["head.bias"], [1, 1])
    with pytest.raises(ConvertError, match=r"mp_rank_00_model_states\.pt"):
        convert.official_weights(tmp_path)


def test_a_folder_in_parts(tmp_path: pathlib.Path) -> None:
    a, b = np.arange(6, dtype=np.float32), np.ones((2, 2), np.float32)
    for name, weights in (("one", {"model.a": a}), ("two", {"model.b": b})):
        weight_files.write(tmp_path / f"{name}.safetensors", weights)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"model.a": "one.safetensors", "model.b": "two.safetensors"}})
    )
    weights = convert.official_weights(tmp_path)
    assert np.array_equal(weights["a"], a)
    assert np.array_equal(weights["b"], b)
    for text, reason in (
        (json.dumps({"weight_map": {"a": "../one.safetensors"}}), "outside its folder"),
        (json.dumps({"weight_map": {"a": 3}}), "outside its folder"),
        ('{"weight_map"', "no index of weights"),
        ("[]", "no index of weights"),
    ):
        index.write_text(text)
        with pytest.raises(ConvertError, match=reason):
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
    read = torch_files.read_torch(path)
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
    read = torch_files.read_torch(tmp_path / "x.safetensors")
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        assert np.array_equal(read[name], array)


def test_the_library_reads_what_is_written(tmp_path: pathlib.Path) -> None:
    library = pytest.importorskip("safetensors")
    arrays = {
        "encoder.a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "b": np.full((), np.float32(0.1)),
        "c": np.array([np.nan, -0.0, 1e-42], np.float32),
    }
    weight_files.write(tmp_path / "x.safetensors", arrays)
    with library.safe_open(tmp_path / "x.safetensors", "numpy") as file:
        assert set(file.keys()) == set(arrays)
        assert file.metadata() == {"format": "pt"}
        for name, array in arrays.items():
            assert file.get_tensor(name).tobytes() == array.tobytes()
            assert file.get_tensor(name).shape == array.shape
    with pytest.raises(ConvertError, match=r"end its name in \.safetensors"):
        weight_files.write(tmp_path / "x.npz", arrays)


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
        with pytest.raises(ConvertError):
            convert.official_weights(path)
    reachable = [tuple, collections.OrderedDict, *vars(torch_files).values()]
    reachable += vars(torch_files._Unpickler).values()
    assert not [thing for thing in reachable if "a" in dir(thing)]


def test_a_tensor_that_is_not_dense_is_named_unless_nobody_needs_it(tmp_path: pathlib.Path) -> None:
    odd = Tensor(np.ones(2, np.float32), rebuild="_rebuild_sparse_tensor")
    tree: dict[str, Any] = {"model": {"head.bias": Tensor(np.ones(2, np.float32))}, "extra": odd}
    assert list(convert.official_weights(save(tmp_path / "a.pth", tree))) == ["head.bias"]
    tree["model"]["head.weight"] = odd
    with pytest.raises(ConvertError, match=r"head\.weight is not a plain dense tensor"):
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
        with pytest.raises(ConvertError) as caught:
            convert.official_weights(path)
        assert isinstance(caught.value, UserError)  # which the command line prints as it is
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
    np.savez(tmp_path / "c.npz", a=np.ones(2))
    with pytest.raises(ConvertError, match=r"without data\.pkl"):
        torch_files.read_torch(tmp_path / "c.npz")
    with pytest.raises(ConvertError, match="no such file"):
        torch_files.read_torch(tmp_path / "absent.pth")
    with pytest.raises(ConvertError, match="no tensors under 'model'"):
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
    read = torch_files.read_torch(path)
    for name, tensor in weights.items():
        assert read[f"model/{name}"].dtype.name == str(tensor.dtype).removeprefix("torch.")
        assert np.array_equal(read[f"model/{name}"].astype("f8"), tensor.double().numpy())


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin"])
def test_pytorch_reads_what_is_written(tmp_path: pathlib.Path, suffix: str) -> None:
    torch = pytest.importorskip("torch")
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.ones((), np.float32)}
    path = tmp_path / f"a.{suffix}"
    weight_files.write(path, arrays)
    read = torch.load(path, weights_only=True)
    assert list(read) == ["model"]
    for name, array in arrays.items():
        assert np.array_equal(read["model"][name].numpy(), array)
        assert np.array_equal(convert.official_weights(path)[name], array)


def test_pytorch_is_needed_only_to_write_its_files(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    with pytest.raises(ConvertError, match=r"a\.pth: PyTorch is needed to write it; pip install"):
        weight_files.write(tmp_path / "a.pth", {"a": np.ones(2, np.float32)})
    assert not (tmp_path / "a.pth").exists()
    weight_files.write(tmp_path / "a.safetensors", {"a": np.ones(2, np.float32)})
