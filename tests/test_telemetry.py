"""The metrics file over crashes and resumes, and the words of the progress line."""

import json
import sys
import time
import types

import pytest

from mvm.runtime import metrics as telemetry
from mvm.runtime.chip import Work
from mvm.runtime.metrics import Clock, Lap, Metrics, read_rows


def steps_in(folder):
    return [row["step"] for row in read_rows(folder / "metrics.jsonl")]


def test_rows_are_sorted_by_key_and_come_back(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.write(1, {"loss": 0.5, "accuracy": 0.25})
    metrics.write(2, {"loss": 0.1234567890123})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.splitlines()[0] == '{"step": 1, "accuracy": 0.25, "loss": 0.5}'
    assert read_rows(tmp_path / "metrics.jsonl")[1] == {"step": 2, "loss": 0.1234567890123}


def test_a_step_that_is_text_is_read_as_a_number(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": "5", "loss": 1.0}\n')
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 5, "loss": 1.0}]


def test_rows_after_the_resume_step_are_dropped(tmp_path):
    metrics = Metrics(tmp_path)
    for step in (2, 4, 6, 8):
        metrics.write(step, {"loss": float(step)})
    again = Metrics(tmp_path, step=4)
    assert steps_in(tmp_path) == [2, 4]
    again.write(6, {"loss": 6.0})
    assert steps_in(tmp_path) == [2, 4, 6]
    Metrics(tmp_path, step=0)
    assert steps_in(tmp_path) == []


def test_a_resumed_file_is_the_uninterrupted_one_byte_by_byte(tmp_path):
    def write(folder, step, to):
        metrics = Metrics(folder, step)
        for number in range(step + 1, to + 1):
            metrics.write(number, {"loss": 1 / number, "accuracy": number / 7})

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    write(whole, 0, 6)
    write(parts, 0, 5)  # Two steps beyond its checkpoint when it was killed.
    write(parts, 3, 6)
    assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("cut", ['{"step": 3, "lo', "{", ""])
def test_a_last_line_cut_by_a_crash_is_survived(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n' + cut)
    assert steps_in(tmp_path) == [1, 2]
    Metrics(tmp_path, step=2).write(3, {"loss": 0.25})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


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
    metrics = Metrics(tmp_path)
    for step in (1, 2, 3):
        metrics.write(step, {"loss": float(step)})
        metrics.write(step, {"rate": 8.0}, "speed.jsonl")
    old = tmp_path / "events.out.tfevents.1"
    old.touch()
    Metrics(tmp_path, step=2).write(3, {"loss": 9.0})
    losses = [(step, values["loss"]) for step, values in shown if "loss" in values]
    assert losses == [(1, 1.0), (2, 2.0), (3, 9.0)]
    assert [step for step, values in shown if "rate" in values] == [1, 2]
    assert not old.exists()


def test_an_absent_file_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_an_inactive_process_writes_nothing(tmp_path):
    Metrics(tmp_path, active=False).write(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (4.4, "4s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (200, "3m20s"),
        (3599.6, "1h00m"),
        (18420, "5h07m"),
        (360000, "100h00m"),
    ],
)
def test_durations(seconds, text):
    assert telemetry.duration(seconds) == text


def test_a_clock_counts_the_steps_since_its_last_lap():
    clock = Clock(start=10)
    clock.waited = 3.0
    first, second = clock.lap(14), clock.lap(15)
    assert (first.step, first.num_steps, first.waited) == (14, 4, 3.0)
    assert (second.step, second.num_steps, second.waited) == (15, 1, 0.0)
    assert first.seconds > 0
    assert second.seconds > 0


def test_a_clock_starts_anew_after_what_is_no_step():
    clock = Clock(start=0)
    begun = time.monotonic()
    while time.monotonic() < begun + 0.01:
        pass
    clock.waited = 1.0
    clock.restart()
    lap = clock.lap(1)
    assert (lap.num_steps, lap.waited) == (1, 0.0)
    assert lap.seconds < time.monotonic() - begun - 0.01


LAP = Lap(step=50, num_steps=20, seconds=10.0, waited=2.5)


def test_rates():
    # Two steps a second, of 8 clips and 25 TFLOP on each device.
    rates = telemetry.speed(LAP, 8, Work(tflop=25.0, peak=200.0), peak_bytes=61_000_000_000)
    assert rates == {
        "clips_per_s": 16.0,
        "waiting_for_data": 0.25,
        "model_tflop_per_s": 50.0,
        "mfu": 0.25,
        "memory_peak_gb": 61.0,
    }


def test_what_nobody_knows_is_left_out():
    rates = telemetry.speed(LAP, 8, Work(tflop=25.0, peak=None), peak_bytes=None)
    assert rates.keys() == {"clips_per_s", "waiting_for_data", "model_tflop_per_s"}
    line = telemetry.progress(LAP, 150, {"learning_rate": 0.1, "skipped": 0}, rates)
    assert "50 TFLOP/s a device" in line
    assert "MFU" not in line
    assert "GB" not in line


def test_speed_has_a_file_of_its_own(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.write(1, {"loss": 1.0})
    metrics.write(1, {"clips_per_s": 16.0}, "speed.jsonl")
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]
    assert read_rows(tmp_path / "speed.jsonl") == [{"step": 1, "clips_per_s": 16.0}]


def test_the_progress_line():
    values = {"loss": 0.123456, "accuracy": 0.5, "learning_rate": 7.5e-4, "skipped": 3.0}
    rates = telemetry.speed(LAP, 8, Work(tflop=25.0, peak=200.0), peak_bytes=61_000_000_000)
    line = telemetry.progress(LAP, 150, values, rates)
    # Two steps a second: 16 clips a second, and 100 steps are left.
    for part in (
        "50 TFLOP/s a device",
        "MFU 25.0%",
        "peak 61.0 GB",
        "step 50/150",
        "loss 0.1235",
        "accuracy 0.5",
        "lr 7.50e-04",
        "16.0 clips/s",
        "waiting for data 25%",
        "skipped 3",
        "ETA 50s",
    ):
        assert part in line
    del values["accuracy"]
    assert "accuracy" not in telemetry.progress(LAP, 150, values, rates)
