"""The metrics file over crashes and resumes."""

import sys
import types

import pytest

from mvm.runtime import metrics
from mvm.runtime.metrics import Metrics, read_rows
from mvm.types import UserError


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

    writer = types.SimpleNamespace(flush=lambda: None)
    writer.write_scalars = lambda step, values: shown.append((step, values))
    writers = types.SimpleNamespace(SummaryWriter=lambda folder: shown.clear() or writer)
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


def test_rows_go_to_weights_and_biases_whose_run_goes_on(tmp_path, monkeypatch):
    begun, sent = [], []
    remote = types.SimpleNamespace(log=lambda values, step: sent.append((step, values)))
    module = types.SimpleNamespace(Error=ConnectionError, finish=lambda: None)
    module.init = lambda **given: begun.append(given) or remote
    monkeypatch.setitem(sys.modules, "wandb", module)
    (tmp_path / "config.json").write_text('{"seed": 3}')
    Metrics(tmp_path, project="clips").write(1, {"loss": 2.0})
    Metrics(tmp_path, step=1, project="clips").write(2, {"loss": 1.0})
    assert sent == [(1, {"loss": 2.0}), (2, {"loss": 1.0})]
    first, second = begun
    assert first == second
    assert (first["project"], first["config"], first["resume"]) == ("clips", {"seed": 3}, "allow")

    def refused(**given):
        raise ConnectionError("no key\nat all")

    module.init = refused
    with pytest.raises(UserError, match=r"^train\.wandb=clips: no key; .*WANDB_MODE=offline"):
        Metrics(tmp_path, project="clips")
