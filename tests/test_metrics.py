"""The metrics file over crashes and resumes."""

from mvm.runtime import metrics
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
