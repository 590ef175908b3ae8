"""Weight files, read without executing them and written."""

import argparse
import collections
import json
import os
import pathlib
import pickle
import struct
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from torch_writer import STORAGES, Odd, Tensor, dense, released, save

from mvm.weights import files, torch_reader
from mvm.weights.torch_reader import ConvertError

ONE = np.arange(4, dtype=np.float32)


def weights_in(path: pathlib.Path) -> dict[str, np.ndarray]:
    return files.read(path).weights


def refused(path: pathlib.Path) -> str:
    with pytest.raises(ConvertError) as caught:
        files.read(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}")
    return str(caught.value)


def test_every_dtype_is_read_as_float32(tmp_path: pathlib.Path) -> None:
    for dtype in STORAGES:
        kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        array = np.arange(-4, 8).astype(kind).reshape(3, 4) * kind.type(0.3 if "f" in dtype else 1)
        read = weights_in(save(tmp_path / "a.pth", {"x": dense(array)}))["x"]
        assert read.dtype == np.float32, dtype
        np.testing.assert_array_equal(read, array.astype(np.float32), dtype)


def test_views_of_one_storage(tmp_path: pathlib.Path) -> None:
    storage = np.arange(24, dtype=np.float32)
    views = {
        "transposed": (Tensor(storage, 0, (4, 6), (1, 4)), storage.reshape(6, 4).T),
        "slice": (Tensor(storage, 7, (2, 3), (6, 2)), [[7, 9, 11], [13, 15, 17]]),
        "scalar": (Tensor(storage, 5, (), ()), 5),
        "one long step": (Tensor(storage, 5, (1,), (10**9,)), [5]),
        "expanded": (Tensor(storage, 3, (2, 2), (0, 1)), [[3, 4], [3, 4]]),
        "empty": (Tensor(np.zeros(0, np.float32), 0, (0, 4), (4, 1)), np.zeros((0, 4))),
        "tied": (Tensor(storage), storage),
    }
    read = weights_in(save(tmp_path / "a.pth", {k: view for k, (view, _) in views.items()}))
    for name, (_, expected) in views.items():
        np.testing.assert_array_equal(read[name], expected, name, strict=False)
        assert read[name].shape == np.shape(expected), name


def test_views_outside_their_storage_are_refused(tmp_path: pathlib.Path) -> None:
    for view in (
        Tensor(ONE, 2, (3,)),
        Tensor(ONE, -2, (4,)),
        Tensor(ONE, 3, (4,), (-2,)),
        Tensor(ONE, 0, (-4,)),
        Tensor(ONE, 0, (1 << 900,)),
        Tensor(ONE, 0, (2, 2)),
    ):
        refused(save(tmp_path / "a.pth", {"model": {"a": view}}))


def test_weights_are_found_where_projects_save_them(tmp_path: pathlib.Path) -> None:
    one, two = Tensor(np.full(1, 1, np.float32)), Tensor(np.full(1, 2, np.float32))
    for tree in (
        {"module": {"a": two}, "model": {"a": one}},
        {"module": {"a": one}, "model": "a name", "a": two},
        {"a": one, "epoch": 4, "model_ema": {"a": two}},
        *({place: {"a": one}} for place in (*torch_reader.PLACES, "model_ema")),
    ):
        assert weights_in(save(tmp_path / "a.pth", tree))["a"] == 1, tree
    assert "'teacher'" in refused(save(tmp_path / "b.pth", {"teacher": {"a": one}, "model": Odd()}))


def test_prefixes_of_wrappers_are_removed(tmp_path: pathlib.Path) -> None:
    one = Tensor(np.ones(1, np.float32))
    keys = ["module._orig_mod.encoder.a", "backbone.b", "encoder.module.c", "model.d"]
    path = save(tmp_path / "a.pth", {"model": dict.fromkeys(keys, one)})
    assert list(weights_in(path)) == ["encoder.a", "b", "encoder.module.c", "d"]


def test_a_folder_of_deepspeed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "deepspeed").mkdir()
    tree = {"module": {"head.bias": Tensor(np.ones(2, np.float16))}, "ds_config": Odd()}
    save(tmp_path / "deepspeed" / "mp_rank_00_model_states.pt", tree)
    assert np.array_equal(weights_in(tmp_path / "deepspeed")["head.bias"], [1, 1])
    assert "mp_rank_00_model_states.pt" in refused(tmp_path)


def test_safetensors(tmp_path: pathlib.Path) -> None:
    arrays = {
        "encoder.a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "b": np.full((), np.float32(0.1)),
        "c": np.array([np.nan, -0.0, 1e-42], np.float32),
    }
    path = tmp_path / "x.safetensors"
    files.write(path, arrays)
    with safetensors.safe_open(path, "numpy") as file:
        assert (set(file.keys()), file.metadata()) == (set(arrays), {"format": "pt"})
        read = weights_in(path)
        for name, array in arrays.items():
            for found in (file.get_tensor(name), read[name]):
                assert (found.tobytes(), found.shape) == (array.tobytes(), array.shape), name
    b = np.array([1.0, -2.5], ml_dtypes.bfloat16)
    text = json.dumps({"b": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b.tobytes())
    assert np.array_equal(weights_in(path)["b"], [1.0, -2.5])


class Attack:
    """Unpickles as a call of `function`."""

    def __init__(self, function: Any, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


def test_code_in_a_file_does_not_run(tmp_path: pathlib.Path) -> None:
    marker = tmp_path / "marker"
    for attack in (
        Attack(os.system, f"touch {marker}"),
        Attack(eval, f"open({str(marker)!r}, 'w')"),
        Attack(os.mkdir, str(marker)),
    ):
        pickle.loads(pickle.dumps(attack, protocol=2))
        assert marker.exists()  # the attack works where code may run
        marker.rmdir() if marker.is_dir() else marker.unlink()
        tree = {**released({"a": Tensor(ONE), "bad": attack}), "args": attack}
        assert list(weights_in(save(tmp_path / "a.pth", tree))) == ["a"]
        assert not marker.exists()
    # No name leads to anything but inert stand-ins, whatever a pickle does with them.
    reader = torch_reader._Unpickler(b"", lambda key: b"")
    for module, name in (("os", "system"), ("builtins", "eval"), ("torch", "load"), ("os", "path")):
        assert reader.find_class(module, name) is torch_reader._Other


def test_damaged_files_give_one_line_with_the_path(tmp_path: pathlib.Path) -> None:
    tree = released({"a": dense(np.arange(5000, dtype=np.float32))})
    good = save(tmp_path / "a", tree).read_bytes()
    bad = {"text": b"no weights here, only words", "empty": b"", "magic": b"PK\x03\x04"}
    bad |= {f"cut {part}": good[: len(good) * part // 8] for part in range(1, 8)}
    flipped = bytearray(good)
    flipped[len(flipped) // 2] ^= 1  # one bit of one weight: the checksum tells
    bad["flipped"] = bytes(flipped)
    for name, data in bad.items():
        (tmp_path / f"{name}.pth").write_bytes(data)
        refused(tmp_path / f"{name}.pth")
    np.savez(tmp_path / "c.npz", a=np.ones(2))
    assert "data.pkl" in refused(tmp_path / "c.npz")
    assert "cannot be read" in refused(tmp_path / "absent.pth")


def test_files_written_by_pytorch(tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch")
    base, path = torch.randn(4, 6), tmp_path / "a.pth"
    weights = collections.OrderedDict(
        a=base.t(), b=base[1:3, ::2], half=base.half(), bf=base.bfloat16(), n=torch.tensor(7)
    )
    others = {"args": argparse.Namespace(lr=1e-3, device=torch.device("cpu")), "seen": {1, 2}}
    others |= {"kept": frozenset("ab"), "data": bytes(300), "large": 1 << 70, "text": "é" * 300}
    for protocol in range(2, 6):
        for tree in (weights, {"model": weights, "optimizer": {"state": {0: base}}, **others}):
            torch.save(tree, path, pickle_protocol=protocol)
            read = weights_in(path)
            assert list(read) == list(weights), protocol
            for name, tensor in weights.items():
                assert np.array_equal(read[name], tensor.float().numpy()), (protocol, name)


def test_pytorch_reads_what_is_written_and_is_needed_for_that_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.ones((), np.float32)}
    for suffix in ("pth", "pt", "bin"):
        path = tmp_path / f"a.{suffix}"
        files.write(path, arrays)
        read = torch.load(path, weights_only=True)
        assert list(read) == ["model"]
        for name, array in arrays.items():
            assert np.array_equal(read["model"][name].numpy(), array)
            assert np.array_equal(weights_in(path)[name], array)
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    with pytest.raises(ConvertError, match=r"b\.pth: .*pip install torch"):
        files.write(tmp_path / "b.pth", arrays)
    assert not (tmp_path / "b.pth").exists()
    files.write(tmp_path / "b.safetensors", arrays)
