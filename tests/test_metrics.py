"""The metrics file over crashes and resumes."""

import sys
import types

from models_on_disk import refused

from mvm.runtime.metrics import Metrics


def test_a_bad_row_costs_no_other(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    for bad in (b'{"step": 2, "lo', b"7", b"[1]", b'{"loss": 1}', b'{"step": "x"}', b"\xff"):
        caplog.clear()
        path.write_bytes(b'{"step": 1, "a": 1}\n' + bad + b'\n{"step": 3, "a": 3}\n')
        Metrics(tmp_path, step=3)
        assert path.read_text() == '{"step": 1, "a": 1}\n{"step": 3, "a": 3}\n', bad
        assert f"{path}: line 2 is no row" in caplog.text


def test_a_board_shows_the_rows_that_are_left(tmp_path, monkeypatch):
    shown = []
    show = lambda step, values: shown.append((step, values))  # noqa: E731
    writer = types.SimpleNamespace(flush=lambda: None, write_scalars=show)
    writers = types.SimpleNamespace(SummaryWriter=lambda folder: shown.clear() or writer)
    monkeypatch.setitem(sys.modules, "clu", types.SimpleNamespace(metric_writers=writers))
    rows = Metrics(tmp_path)
    for step in (1, 2):
        rows.write(step, {"loss": step / 7})
    rows.write(1, {"rate": 8.0}, "speed.jsonl")
    old = tmp_path / "events.out.tfevents.1"
    old.touch()
    Metrics(tmp_path, step=1).write(2, {"loss": 9.0, "accuracy": 5.0})
    last = {"accuracy": 5.0, "loss": 9.0}
    assert shown == [(1, {"loss": 1 / 7}), (1, {"rate": 8.0}), (2, last)]
    written = [
        '{"step": 1, "loss": 0.14285714285714285}',
        '{"step": 2, "accuracy": 5.0, "loss": 9.0}',
    ]
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == written
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

    def failing(**given):
        raise ConnectionError("no key\nat all")

    module.init = failing
    said = "^train.wandb=clips: no key; .*WANDB_MODE=offline"
    refused(said, Metrics, tmp_path, project="clips")
