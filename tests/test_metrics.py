"""The metrics file over crashes and resumes, rates, and what is known of a chip."""

import ctypes
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from mvm.runtime import chip, metrics
from mvm.runtime.metrics import Metrics, read_rows


def test_a_resumed_file_is_the_uninterrupted_one_byte_by_byte(tmp_path):
    def write(folder, step, to):
        rows = Metrics(folder, step)
        for number in range(step + 1, to + 1):
            rows.write(number, {"loss": 1 / number, "accuracy": number / 7})

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    write(whole, 0, 6)
    write(parts, 0, 5)  # Two steps beyond its checkpoint when it was killed.
    with (parts / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    write(parts, 3, 6)
    assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    text = (whole / "metrics.jsonl").read_text()
    assert text.splitlines()[0] == '{"step": 1, "accuracy": 0.14285714285714285, "loss": 1.0}'
    assert read_rows(whole / "metrics.jsonl")[1]["loss"] == 0.5
    assert metrics.last_values(whole / "metrics.jsonl")["step"] == 6
    assert read_rows(tmp_path / "nowhere") == []


def test_a_bad_row_costs_no_other(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    for bad in (b"{", b"7", b"[1]", b'{"loss": 1}', b'{"step": "x"}', b"\xff"):
        caplog.clear()
        path.write_bytes(b'{"step": 1, "a": 1}\n' + bad + b'\n{"step": 3, "a": 3}\n')
        Metrics(tmp_path, step=3)
        assert path.read_text() == '{"step": 1, "a": 1}\n{"step": 3, "a": 3}\n', bad
        assert f"{path}: line 2 is no row" in caplog.text


def test_a_board_shows_the_rows_that_are_left(tmp_path, monkeypatch):
    shown = []

    class Writer:
        def __init__(self, folder):
            shown.clear()

        def write_scalars(self, step, values):
            shown.append((step, values))

        def flush(self):
            pass

    writers = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "clu", types.SimpleNamespace(metric_writers=writers))
    rows = Metrics(tmp_path)
    for step in (1, 2):
        rows.write(step, {"loss": float(step)})
    rows.write(1, {"rate": 8.0}, "speed.jsonl")
    old = tmp_path / "events.out.tfevents.1"
    old.touch()
    Metrics(tmp_path, step=1).write(2, {"loss": 9.0})
    assert shown == [(1, {"loss": 1.0}), (1, {"rate": 8.0}), (2, {"loss": 9.0})]
    assert not old.exists()


def test_an_inactive_process_writes_nothing(tmp_path):
    Metrics(tmp_path, active=False).write(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_peaks_by_the_names_that_jax_gives_devices():
    for kind, bfloat16, float32 in (
        ("NVIDIA H100 80GB HBM3", 989.4, 494.7),
        ("NVIDIA A100-SXM4-40GB", 312.0, 156.0),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
        ("TPU v5 lite", 197.0, None),
        ("TPU v6 lite", 918.0, None),
        ("NVIDIA L40S", None, None),  # Not an L4.
        ("cpu", None, None),
    ):
        assert chip.peak_tflops(kind, "bfloat16") == bfloat16, kind
        assert chip.peak_tflops(kind, "float32") == float32, kind


def test_a_donated_argument_and_its_result_count_once():
    x, y = jax.ShapeDtypeStruct((1000,), jnp.float32), jax.ShapeDtypeStruct((10,), jnp.float32)

    def add(x, y):
        return x + y[0], 2 * y

    kept = chip.planned(jax.jit(add).lower(x, y).compile())
    donated = chip.planned(jax.jit(add, donate_argnums=0).lower(x, y).compile())
    assert (kept[1] - kept[0]) - (donated[1] - donated[0]) == 4 * 1000


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
def test_large_memory_that_is_freed_is_there_for_the_next_request():
    code = """if True:
        import ctypes, resource, runpy
        runpy.run_path("mvm/runtime/memory.py")["tune_allocator"]()
        libc, size = ctypes.CDLL(None), 2**26
        libc.malloc.restype = ctypes.c_void_p
        libc.free.argtypes = [ctypes.c_void_p]
        faults = []
        for _ in range(3):
            block = libc.malloc(size)
            ctypes.memset(block, 1, size)
            libc.free(block)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        print(faults[2] - faults[1])
    """
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True)
    assert int(done.stdout) < 100  # Of 16,384 pages.
