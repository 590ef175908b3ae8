"""Reading official files without executing them."""

import argparse
import collections
import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import zipfile
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from torch_writer import STORAGES, Odd, Tensor, dense, released, save

from mvm.types import UserError
from mvm.weights import files as weight_files
from mvm.weights import torch_reader as torch_files
from mvm.weights.torch_reader import ConvertError


def contents(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a file of one flat dict, in the dtypes of the file."""
    with torch_files.opened(path) as (tree, load):
        assert isinstance(tree, dict)
        return {name: load(tensor).copy() for name, tensor in tree.items()}


@pytest.mark.parametrize("dtype", list(STORAGES))
def test_every_dtype_is_read_bit_for_bit(tmp_path: pathlib.Path, dtype: str) -> None:
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    array = np.arange(-4, 8).astype(kind).reshape(3, 4)
    read = contents(save(tmp_path / "a.pth", {"x": dense(array)}))["x"]
    assert read.dtype == kind
    assert read.shape == (3, 4)
    assert read.tobytes() == array.tobytes()


def test_views_of_one_storage(tmp_path: pathlib.Path) -> None:
    storage = np.arange(24, dtype=np.float32)
    tree = {
        "transposed": Tensor(storage, 0, (4, 6), (1, 4)),
        "slice": Tensor(storage, 7, (2, 3), (6, 2)),
        "scalar": Tensor(storage, 5, (), ()),
        "one long step": Tensor(storage, 5, (1,), (10**9,)),
        "expanded": Tensor(storage, 3, (2, 2), (0, 1)),
        "empty": Tensor(np.zeros(0, np.float32), 0, (0, 4), (4, 1)),
        "tied": Tensor(storage),
    }
    read = contents(save(tmp_path / "a.pth", tree))
    assert np.array_equal(read["transposed"], storage.reshape(6, 4).T)
    assert np.array_equal(read["slice"], [[7, 9, 11], [13, 15, 17]])
    assert read["scalar"].shape == ()
    assert read["scalar"] == 5
    assert np.array_equal(read["one long step"], [5])
    assert np.array_equal(read["expanded"], [[3, 4], [3, 4]])
    assert read["empty"].shape == (0, 4)
    assert np.array_equal(read["tied"], storage)


ONE = np.arange(4, dtype=np.float32)
BYTE = 1 << 20


def head(**tensors: list[Any]) -> dict[str, Any]:
    return {
        k: dict(zip(("shape", "data_offsets", "dtype"), [*v, "F32"])) for k, v in tensors.items()
    }


# What the headers of safetensors files say, and how many bytes follow.
HEADERS: dict[str, tuple[dict[str, Any], int]] = {
    "cut between tensors": (head(a=[[4], [0, 16]], b=[[4], [16, 32]]), 16),
    "offset past the end": (head(a=[[4], [BYTE, BYTE + 16]]), 16),
    "shape of 2**28": (head(a=[[1 << 28], [0, 16]]), 16),
    "shape that overflows": (head(a=[[1 << 62, 4], [0, 16]]), 16),
    "negative offset": (head(a=[[4], [-16, 0]]), 16),
    "reversed offsets": (head(a=[[4], [16, 0]]), 16),
    "overlapping": (head(a=[[4], [0, 16]], b=[[4], [8, 24]]), 24),
    "a hole": (head(a=[[4], [0, 16]], b=[[4], [32, 48]]), 48),
    "trailing bytes": (head(a=[[4], [0, 16]]), 32),
}
VIEWS = {  # of a storage of four numbers
    "past the end": Tensor(ONE, 2, (3,)),
    "offset below 0": Tensor(ONE, -2, (4,)),
    "backwards": Tensor(ONE, 3, (4,), (-1,)),
    "a negative size": Tensor(ONE, 0, (-4,)),
    "4 GB of one number": Tensor(ONE, 0, (1 << 30,), (0,)),
    "a size of 900 bits": Tensor(ONE, 0, (1 << 900,)),
    "1000 axes": Tensor(ONE, 0, (1,) * 1000, (1,) * 1000),
    "fewer strides than axes": Tensor(ONE, 0, (2, 2)),
}
PICKLES = {
    "memo of 2**31": b"}r\xff\xff\xff\x7f.",
    "deep tuple as a key": b"})" + b"\x85" * 300_000 + b"Ns.",
    "tuple as a key that takes 2**64 steps to hash": b"})" + b"q\x00h\x00\x86" * 64 + b"Ns.",
    "bytes of 2**40": b"\x8e" + struct.pack("<Q", 1 << 40) + b"abc.",
    "number of 10**6 digits": b"L" + b"9" * 10**6 + b"L\n.",
    "nothing to take": b"ttRR.",
    "nothing to recall": b"h\x07.",
    "no end": b"}",
    "no storage": b"K\x07Q.",
    "long names again and again": (
        b"}X" + struct.pack("<I", 1 << 20) + b"a" * BYTE + b"\x94" + b"h\x00h\x00\x93" * 2000 + b"."
    ),
    "names that are none": b"}]]\x93.",
    "memo of 4 MB": b"}" + b"\x94" * (1 << 21) + b".",
    "64 MB of lists": b"]" * (64 << 20) + b".",
}


def hostile(folder: pathlib.Path) -> None:
    for name, (header, size) in HEADERS.items():
        text = json.dumps(header).encode()
        data = struct.pack("<Q", len(text)) + text + bytes(size)
        (folder / f"{name}.safetensors").write_bytes(data)
    (folder / "length.safetensors").write_bytes(b"\xff" * 8 + b"{}")
    for name, view in VIEWS.items():
        save(folder / f"{name}.pth", {"model": {"a": view}})
    for name, data in PICKLES.items():
        save(folder / f"{name}.pth", {}, **{"data.pkl": b"\x80\x02" + data})
    for name, stored in {"none": None, "no": b"", "few": bytes(8), "many": bytes(BYTE)}.items():
        save(folder / f"{name} bytes stored.pth", {"a": Tensor(ONE)}, **{"data/0": stored})
    save(folder / "big-endian.pth", {"a": Tensor(ONE)}, byteorder=b"big")
    large = np.zeros(BYTE, np.float32)
    shared = {f"a{i}": Tensor(large) for i in range(2000)}  # 8 GB of a storage of 4 MB
    save(folder / "shared.pth", {"model": shared})
    two = Tensor(large), Tensor(large.copy())
    turns = {f"a{i}": Tensor(two[i % 2].args[0], 0, (1,)) for i in range(2000)}
    save(folder / "shared in turns.pth", {"model": turns})
    plain = save(folder / "plain", {"a": Tensor(large)})
    with (
        zipfile.ZipFile(plain) as archive,
        zipfile.ZipFile(folder / "compressed.pth", "w", zipfile.ZIP_DEFLATED) as small,
        zipfile.ZipFile(folder / "twice.pth", "w") as twice,
    ):
        for name in archive.namelist():
            small.writestr(name, archive.read(name))
            twice.writestr(name, archive.read(name))
        with pytest.warns(UserWarning, match="Duplicate name"):
            twice.writestr("run/data/0", bytes(large.nbytes))
    plain.unlink()


READ_ALL = """
import pathlib, resource, sys, time
from mvm import weight_files
from mvm.types import UserError
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    try:
        print(path.name, "was read:", list(weight_files.read(path).weights))
    except UserError as error:
        line = str(error)
        if not line.startswith(f"{path}: ") or len(line.splitlines()) > 1 or len(line) > 600:
            print("no fitting line:", line)
    if time.process_time() - start > 5:
        print(path.name, "took long")
print("end")
"""


def test_hostile_files_give_one_line_and_take_neither_memory_nor_time(
    tmp_path: pathlib.Path,
) -> None:
    hostile(tmp_path)
    root = pathlib.Path(torch_files.__file__).parent.parent
    command = [sys.executable, "-c", READ_ALL, str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("end\n", 0), done.stderr


def test_a_released_file_gives_its_model_as_float32(tmp_path: pathlib.Path) -> None:
    half = np.array([1.0, 0.1], np.float16)
    path = save(tmp_path / "checkpoint-799.pth", released({"encoder.a": Tensor(half)}))
    weights = weight_files.official_weights(path)
    assert list(weights) == ["encoder.a"]
    assert weights["encoder.a"].dtype == np.float32
    assert np.array_equal(weights["encoder.a"], half.astype(np.float32))


def test_model_goes_before_module_before_the_root(tmp_path: pathlib.Path) -> None:
    one, two, three = (Tensor(np.full(1, i, np.float32)) for i in (1, 2, 3))
    trees = [
        ({"module": {"a": two}, "model": {"a": one}}, 1),
        ({"module": {"a": two}, "model": "a name", "a": three}, 2),
        ({"a": three, "epoch": 4}, 3),
    ]
    for tree, value in trees:
        assert weight_files.official_weights(save(tmp_path / "a.pth", tree))["a"] == value


def test_prefixes_of_wrappers_are_removed_and_must_not_collide(tmp_path: pathlib.Path) -> None:
    one = Tensor(np.ones(1, np.float32))
    keys = ["module._orig_mod.encoder.a", "backbone.b", "encoder.module.c", "model.d"]
    path = save(tmp_path / "a.pth", {"model": dict.fromkeys(keys, one)})
    assert list(weight_files.official_weights(path)) == ["encoder.a", "b", "encoder.module.c", "d"]
    path = save(tmp_path / "a.pth", {"model": {"module.a": one, "a": one}})
    with pytest.raises(ConvertError, match="two keys are called a "):
        weight_files.official_weights(path)


def test_a_deepspeed_folder(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "checkpoint-best"
    folder.mkdir()
    tree = {"module": {"head.bias": Tensor(np.ones(2, np.float16))}, "ds_config": Odd()}
    save(folder / "mp_rank_00_model_states.pt", tree)
    assert np.array_equal(weight_files.official_weights(folder)["head.bias"], [1, 1])
    with pytest.raises(ConvertError, match=r"mp_rank_00_model_states\.pt"):
        weight_files.official_weights(tmp_path)


def test_a_folder_in_parts(tmp_path: pathlib.Path) -> None:
    a, b = np.arange(6, dtype=np.float32), np.ones((2, 2), np.float32)
    for name, weights in (("one", {"model.a": a}), ("two", {"model.b": b})):
        weight_files.write(tmp_path / f"{name}.safetensors", weights)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"model.a": "one.safetensors", "model.b": "two.safetensors"}})
    )
    weights = weight_files.official_weights(tmp_path)
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
            weight_files.official_weights(tmp_path)


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
    read = contents(path)
    assert np.array_equal(read["a"], a)
    assert read["b"].dtype == ml_dtypes.bfloat16
    assert np.array_equal(weight_files.official_weights(tmp_path)["b"], [1.0, -2.5])


def test_safetensors_written_by_the_library(tmp_path: pathlib.Path) -> None:
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.full((), 3, np.float16),
        "c": np.ones(2, bool),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors")
    read = contents(tmp_path / "x.safetensors")
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        assert np.array_equal(read[name], array)


def test_the_library_reads_what_is_written(tmp_path: pathlib.Path) -> None:
    arrays = {
        "encoder.a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "b": np.full((), np.float32(0.1)),
        "c": np.array([np.nan, -0.0, 1e-42], np.float32),
    }
    weight_files.write(tmp_path / "x.safetensors", arrays)
    with safetensors.safe_open(tmp_path / "x.safetensors", "numpy") as file:
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
        assert list(weight_files.official_weights(save(tmp_path / "a.pth", tree))) == ["a"]
        assert not marker.exists()


def test_a_tensor_that_is_not_dense_is_named_unless_nobody_needs_it(tmp_path: pathlib.Path) -> None:
    odd = Tensor(np.ones(2, np.float32), rebuild="_rebuild_sparse_tensor")
    tree: dict[str, Any] = {"model": {"head.bias": Tensor(np.ones(2, np.float32))}, "extra": odd}
    assert list(weight_files.official_weights(save(tmp_path / "a.pth", tree))) == ["head.bias"]
    tree["model"]["head.weight"] = odd
    with pytest.raises(ConvertError, match=r"head\.weight is not a plain dense tensor"):
        weight_files.official_weights(save(tmp_path / "a.pth", tree))


def test_damaged_files_give_one_line_with_the_path(tmp_path: pathlib.Path) -> None:
    tree = released({"a": dense(np.arange(5000, dtype=np.float32))})
    good = save(tmp_path / "a", tree).read_bytes()
    bad = {"text": b"no weights here, only words", "empty": b"", "magic": b"PK\x03\x04"}
    bad |= {f"cut {part}": good[: len(good) * part // 8] for part in range(1, 8)}
    flipped = bytearray(good)
    flipped[len(flipped) // 2] ^= 1  # one bit of one weight: the checksum tells
    bad["flipped"] = bytes(flipped)
    for name, data in bad.items():
        path = tmp_path / f"{name}.pth"
        path.write_bytes(data)
        with pytest.raises(ConvertError) as caught:
            weight_files.official_weights(path)
        assert isinstance(caught.value, UserError)  # which the command line prints as it is
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
    np.savez(tmp_path / "c.npz", a=np.ones(2))
    with pytest.raises(ConvertError, match=r"without data\.pkl"):
        weight_files.official_weights(tmp_path / "c.npz")
    with pytest.raises(ConvertError, match="no such file"):
        weight_files.official_weights(tmp_path / "absent.pth")
    with pytest.raises(ConvertError, match="no tensors under 'model'"):
        weight_files.official_weights(save(tmp_path / "d.pth", {"model": Odd()}))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_files_written_by_pytorch(tmp_path: pathlib.Path, protocol: int) -> None:
    torch = pytest.importorskip("torch")
    base = torch.randn(4, 6)
    weights = collections.OrderedDict(
        a=base.t(), b=base[1:3, ::2], half=base.half(), bf=base.bfloat16(), n=torch.tensor(7)
    )
    others = {"args": argparse.Namespace(lr=1e-3, device=torch.device("cpu")), "seen": {1, 2}}
    others |= {"kept": frozenset("ab"), "data": bytes(300), "large": 1 << 70, "text": "é" * 300}
    path = tmp_path / "a.pth"
    torch.save(weights, path, pickle_protocol=protocol)
    read = contents(path)
    for name, tensor in weights.items():
        assert read[name].dtype.name == str(tensor.dtype).removeprefix("torch.")
        assert np.array_equal(read[name].astype("f8"), tensor.double().numpy())
    tree = {"model": weights, "optimizer": {"state": {0: {"m": base}}}, **others}
    torch.save(tree, path, pickle_protocol=protocol)
    assert list(weight_files.official_weights(path)) == list(weights)


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
        assert np.array_equal(weight_files.official_weights(path)[name], array)


def test_pytorch_is_needed_only_to_write_its_files(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    with pytest.raises(ConvertError, match=r"a\.pth: PyTorch is needed to write it; pip install"):
        weight_files.write(tmp_path / "a.pth", {"a": np.ones(2, np.float32)})
    assert not (tmp_path / "a.pth").exists()
    weight_files.write(tmp_path / "a.safetensors", {"a": np.ones(2, np.float32)})
