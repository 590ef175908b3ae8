"""The metrics file over crashes and resumes, rates, and what is known of a chip."""

import sys
import types

import jax
import jax.numpy as jnp
import pytest

from configs import everest_ucf101
from mvm import tasks, train
from mvm.runtime import chip, flops, metrics
from mvm.runtime.metrics import Clock, Lap, Metrics, read_rows


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


@pytest.mark.parametrize("bad", [b"{", b"7", b"[1]", b'{"loss": 1}', b'{"step": "x"}', b"\xff"])
def test_a_bad_row_costs_no_other(tmp_path, bad, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "a": 1}\n' + bad + b'\n{"step": 3, "a": 3}\n')
    Metrics(tmp_path, step=3)
    assert path.read_text() == '{"step": 1, "a": 1}\n{"step": 3, "a": 3}\n'
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
    for step in (1, 2, 3):
        rows.write(step, {"loss": float(step)})
        rows.write(step, {"rate": 8.0}, "speed.jsonl")
    old = tmp_path / "events.out.tfevents.1"
    old.touch()
    Metrics(tmp_path, step=2).write(3, {"loss": 9.0})
    losses = [(step, values["loss"]) for step, values in shown if "loss" in values]
    assert losses == [(1, 1.0), (2, 2.0), (3, 9.0)]
    assert [step for step, values in shown if "rate" in values] == [1, 2]
    assert not old.exists()


def test_an_inactive_process_writes_nothing(tmp_path):
    Metrics(tmp_path, active=False).write(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_a_clock_counts_the_steps_since_its_last_lap():
    clock = Clock(start=10)
    clock.waited = 3.0
    first, second = clock.lap(14), clock.lap(15)
    assert (first.step, first.num_steps, first.waited) == (14, 4, 3.0)
    assert (second.step, second.num_steps, second.waited) == (15, 1, 0.0)
    assert min(first.seconds, second.seconds) > 0


def test_rates_and_the_progress_line():
    # Two steps a second, of 8 clips and 25 TFLOP on each device; 100 steps are left.
    lap = Lap(step=50, num_steps=20, seconds=10.0, waited=2.5)
    rates = metrics.speed(lap, 8, chip.Work(tflop=25.0, peak=200.0), peak_bytes=61_000_000_000)
    assert rates == {
        "clips_per_s": 16.0,
        "waiting_for_data": 0.25,
        "model_tflop_per_s": 50.0,
        "mfu": 0.25,
        "memory_peak_gb": 61.0,
    }
    values = {"loss": 0.123456, "accuracy": 0.5, "learning_rate": 7.5e-4, "skipped": 3.0}
    line = metrics.progress(lap, 150, values, rates)
    for part in ("step 50/150", "loss 0.1235", "accuracy 0.5", "7.50e-04", "16.0 clips/s"):
        assert part in line
    for part in ("50 TFLOP/s", "25.0%", "61.0 GB", "data 25%", "skipped 3", "ETA 0:00:50"):
        assert part in line
    rates = metrics.speed(lap, 8, chip.Work(tflop=25.0, peak=None), peak_bytes=None)
    assert rates.keys() == {"clips_per_s", "waiting_for_data", "model_tflop_per_s"}
    line = metrics.progress(lap, 150, {"learning_rate": 0.1, "skipped": 0}, rates)
    assert not [word for word in ("MFU", "GB", "accuracy") if word in line]


def test_peaks_by_the_names_that_jax_gives_devices():
    for kind, bfloat16, float32 in (
        ("NVIDIA H100 80GB HBM3", 989.4, 494.7),
        ("NVIDIA A100-SXM4-40GB", 312.0, 156.0),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
        ("TPU v5 lite", 197.0, None),
        ("TPU v6 lite", 918.0, None),
        # Other chips whose names begin like those.
        ("NVIDIA L40S", None, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("cpu", None, None),
    ):
        assert chip.peak_tflops(kind, "bfloat16") == bfloat16, kind
        assert chip.peak_tflops(kind, "float32") == float32, kind
        assert chip.peak_tflops(kind, "float16") is None


def test_a_donated_argument_and_its_result_count_once():
    x, y = jax.ShapeDtypeStruct((1000,), jnp.float32), jax.ShapeDtypeStruct((10,), jnp.float32)

    def add(x, y):
        return x + y[0], 2 * y

    kept = chip.planned(jax.jit(add).lower(x, y).compile())
    donated = chip.planned(jax.jit(add, donate_argnums=0).lower(x, y).compile())
    assert kept.arguments == donated.arguments == 4 * 1010
    saved = (kept.total - kept.temporary) - (donated.total - donated.temporary)
    assert saved == 4 * 1000


def test_the_step_compiles_once_and_says_what_it_takes(caplog):
    config = everest_ucf101.get_config("smoke")
    task = tasks.build(config)
    traces = []

    def step(state, batch):
        traces.append(batch.shape)
        return state + batch.sum(), {}

    jitted, state = jax.jit(step, donate_argnums=0), jnp.zeros(1000)
    caplog.set_level("INFO")
    placed = train.Placed(task, state, jitted, None)
    advance, work = train._compiled(config, placed, state, jnp.ones((4, 2)))
    for _ in range(3):
        state, _ = advance(state, jnp.ones((4, 2)))
    with pytest.raises(TypeError, match=r"float32\[3,2\]"):
        advance(state, jnp.ones((3, 2)))
    assert traces == [(4, 2)]
    clip = flops.train_flops(task.macs())
    assert work.tflop == pytest.approx(clip * config.train.batch_size / jax.device_count() / 1e12)
    (line,) = [r.getMessage() for r in caplog.records]
    assert f"{clip / 1e9:.4g} in training" in line
    assert "GB planned on each device" in line
