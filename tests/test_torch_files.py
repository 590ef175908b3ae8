"""Weight files, read without executing them and written."""

import argparse
import collections
import os
import pickle
import re
import sys
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from models_on_disk import refused

from mvm.weights import files, torch_reader

torch = pytest.importorskip("torch")
ONE, ODD = torch.arange(4.0), argparse.Namespace(text="of a class that no reader knows")
DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8"]
DTYPES += ["uint8", "bool"]


class Call:
    """Unpickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def view(offset, size, stride=(1,)):
    """A tensor of the storage of ONE, or of what is not in it."""
    where = ONE.storage(), offset, size, stride, False, collections.OrderedDict()
    return Call(torch._utils._rebuild_tensor_v2, *where)


def save(path, tree, **changed):
    """`torch.save`; `changed` are other contents of parts of the file, None leaves one out."""
    torch.save(tree, path)
    if changed:
        with zipfile.ZipFile(path) as archive:
            parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in (parts | changed).items():
                if data is not None:
                    archive.writestr(f"run/{name}", data)
    return path


def test_every_dtype_and_every_view_of_a_storage_is_read_as_float32(tmp_path):
    storage = torch.arange(24.0)
    tensors = {}
    for name in DTYPES:
        values = 0.3 * storage - 4 * (name not in ("uint8", "bool"))
        tensors[name] = values.to(getattr(torch, name)).reshape(4, 6)
    tensors |= {
        "transposed": storage.reshape(6, 4).T,
        "slice": storage.reshape(4, 6)[1:3, 1::2],
        "scalar": storage[5],
        "one long step": storage.as_strided((1,), (10**9,), 5),
        "expanded": storage[3:5].expand(2, 2),
        "empty": torch.zeros(0, 4),
        "tied": storage,
    }
    others = {"args": ODD, "device": torch.device("cpu"), "seen": {1, 2}, "kept": frozenset("ab")}
    others |= {"data": bytes(300), "large": 1 << 70, "text": "é" * 300}
    others["optimizer"] = {"state": {0: {"step": 7, "exp_avg": storage}}}
    for protocol in range(2, 6):
        for tree in (tensors, {"model": collections.OrderedDict(tensors), **others}):
            torch.save(tree, tmp_path / "a.pth", pickle_protocol=protocol)
            read = files.read(tmp_path / "a.pth").weights
            assert list(read) == list(tensors), protocol
            for name, tensor in tensors.items():
                expected = tensor.float().numpy()
                np.testing.assert_array_equal(read[name], expected, name, strict=True)


def test_damaged_files_give_one_line(tmp_path):
    good = bytearray(save(tmp_path / "good", {"model": {"a": torch.ones(5000)}}).read_bytes())
    (tmp_path / "good").unlink()
    safe = safetensors.numpy.save({"a": ONE.numpy(), "b": ONE.numpy()})
    bad = {"text": b"no weights here, only words", "empty": b"", "magic": b"PK\x03\x04"}
    bad["PyTorch 1.5"] = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    bad |= {f"cut {part}": good[: len(good) * part // 8] for part in range(1, 8)}
    bad |= {f"safetensors cut by {n}": safe[:-n] for n in (1, 17)}
    good[len(good) // 2] ^= 1  # Of one weight, which the checksum tells.
    for name, data in (bad | {"flipped": good}).items():
        (tmp_path / f"{name}.pth").write_bytes(data)
    outside = [view(2, (3,)), view(-2, (4,)), view(2, (2,), (-1,)), view(0, (2, 2))]
    outside.append(view(0, (2, 2), (1 << 62, 1 << 62)))
    for number, tensor in enumerate(outside):
        save(tmp_path / f"outside {number}.pth", {"model": {"a": tensor}})
    for number, stored in enumerate((None, bytes(8))):
        save(tmp_path / f"few bytes {number}.pth", {"a": ONE}, **{"data/0": stored})
    save(tmp_path / "big-endian.pth", {"a": ONE}, byteorder=b"big")
    for path in tmp_path.iterdir():
        refused(rf"^{re.escape(str(path))}: .{{,500}}$", files.read, path)
    for name, said in (
        ("big-endian.pth", "written on a big-endian machine; load and save it on another"),
        ("PyTorch 1.5.pth", "PyTorch 1.6 or later.*load and save it in a newer PyTorch"),
        ("flipped.pth", "damaged or cut off, download it again"),
        ("absent.pth", "No such file or directory"),
    ):
        refused(said, files.read, tmp_path / name)


def test_code_in_a_file_does_not_run(tmp_path):
    marker = tmp_path / "marker"
    for attack in (Call(os.system, f"touch {marker}"), Call(eval, f"open({str(marker)!r}, 'w')")):
        pickle.loads(pickle.dumps(attack, protocol=2))
        marker.unlink()  # The attack works where code may run.
        tree = {"model": {"a": ONE, "bad": attack}, "args": attack}
        assert list(files.read(save(tmp_path / "a.pth", tree)).weights) == ["a"]
        assert not marker.exists()


def test_weights_are_found_where_projects_save_them(tmp_path):
    one, two = torch.full((1,), 1.0), torch.full((1,), 2.0)
    for tree in (
        {"module": {"a": two}, "model": {"a": one}},
        {"a": one, "epoch": 4, "model_ema": {"a": two}},
        *({place: {"a": one}} for place in (*torch_reader.PLACES, "model_ema")),
    ):
        assert files.read(save(tmp_path / "a.pth", tree)).weights["a"] == 1, tree
    odd = save(tmp_path / "b.pth", {"teacher": {"a": one}, "model": ODD})
    refused("'teacher', 'model'", files.read, odd)
    keys = ["module._orig_mod.encoder.a", "backbone.b", "encoder.module.c", "model.d"]
    path = save(tmp_path / "a.pth", {"model": dict.fromkeys(keys, one)})
    assert list(files.read(path).weights) == ["encoder.a", "b", "encoder.module.c", "d"]
    # A sparse or quantized tensor is absent.
    sparse = {"a": one, "b": torch.eye(2).to_sparse()}
    assert list(files.read(save(tmp_path / "a.pth", sparse)).weights) == ["a"]
    # A folder of DeepSpeed, and one of several files.
    for name in ("deepspeed", "sharded"):
        (tmp_path / name).mkdir()
    tree = {"module": {"head.bias": torch.ones(2, dtype=torch.float16)}, "ds_config": ODD}
    save(tmp_path / "deepspeed" / "mp_rank_00_model_states.pt", tree)
    assert np.array_equal(files.read(tmp_path / "deepspeed").weights["head.bias"], [1, 1])
    (tmp_path / "sharded" / "model.safetensors.index.json").write_text("{}")
    refused("sharded.*model.safetensors", files.read, tmp_path / "sharded")


@pytest.mark.slow
def test_pytorch_reads_what_this_writes(tmp_path, monkeypatch):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.ones((), np.float32)}
    for suffix in ("pth", "pt", "bin"):
        path = tmp_path / f"b.{suffix}"
        files.write(path, arrays)
        read = torch.load(path, weights_only=True)
        assert list(read) == ["model"]
        for name, array in arrays.items():
            assert np.array_equal(read["model"][name].numpy(), array)
            assert np.array_equal(files.read(path).weights[name], array)
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    refused(r"c\.pth: .*pip install torch", files.write, tmp_path / "c.pth", arrays)
    assert not (tmp_path / "c.pth").exists()
    assert list(files.read(path).weights) == list(arrays)
