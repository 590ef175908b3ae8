"""The benchmarks of one GPU in a reduced form on CPU: their rows, and what is left out and why."""

import json
import pathlib
import sys

import pytest

from benchmarks import gpu, gpu_job, gpu_table
from benchmarks.gpu_job import Job

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOOD = Job("S everest", "step", "everest_k400:S", {"data.num_frames": 4}, 8, smoke=True)
BAD = GOOD._replace(name="S wrong", changes={"mask.name": "evrest"})


LONG = 3600.0
"""Seconds: a busy machine makes no difference."""


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu, "LONGEST_S", LONG)


@pytest.mark.slow
def test_a_job_that_fails_costs_its_row(tmp_path: pathlib.Path) -> None:
    (tmp_path / "tests.txt").write_text("..F\nFAILED tests/test_gpu.py::a\n1 failed, 2 passed\n")
    found = gpu.measure([BAD, GOOD], tmp_path, LONG)
    bad, good = found["rows"]
    assert (bad["status"], bad["numbers"]) == ("failed", None)
    assert "mask.name='evrest' is unknown; did you mean 'everest'?" in bad["why"]
    assert (good["status"], good["why"]) == ("done", "")
    n = good["numbers"]
    assert (n["clips"], n["mask"], n["dtype"]) == (8, "everest", "float32")
    assert n["tried"] == {"8": n["clips_per_s"]}
    assert found["device"] == n["device_kind"] == "cpu"
    assert found["tests"] == ["FAILED tests/test_gpu.py::a", "1 failed, 2 passed"]
    assert json.loads((tmp_path / "gpu.json").read_text()) == found
    text = (tmp_path / "gpu.md").read_text()
    assert "| S everest | 8 " in text
    assert "- failed: mask.name='evrest' is unknown" in text
    assert text.splitlines()[-1].endswith(": S wrong")
    assert "== S wrong" in (tmp_path / "gpu.log").read_text()
    assert (tmp_path / "gpu.png").read_bytes().startswith(b"\x89PNG")


def test_jobs_without_time_or_packages_are_listed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # As if it were not installed.
    todo = gpu.jobs(smoke=True)
    rows = gpu.measure(todo, tmp_path, 0.0)["rows"]
    assert [row["job"] for row in rows] == [job.name for job in todo]
    assert {row["status"] for row in rows} == {"skipped"}
    assert {row["why"] for row in rows if row["kind"] != "peers"} == {"no time left"}
    (peer,) = [row for row in rows if row["kind"] == "peers"]
    assert peer["why"].endswith("transformers not installed")
    assert not (tmp_path / "gpu.png").exists()


def test_unknown_jobs_and_absent_gpus_are_one_line(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: --only 'L tub': choose from L everest; L tube"):
        gpu.main(["--only", "L tub", "--out", str(tmp_path)])


@pytest.mark.slow
def test_reading_and_training_together(tmp_path: pathlib.Path) -> None:
    todo = {job.name: job for job in gpu.jobs(smoke=True)}
    job = todo["B everest, from files"]
    found = gpu.measure([job, GOOD._replace(smoke=False)], tmp_path, LONG)
    (row,) = gpu_table.of_kind(found["rows"], "input")
    n = row["numbers"]
    assert (row["status"], n["packed"], n["clips"]) == ("done", True, 8)
    slower = min(n["step_clips_per_s"], n["loader_clips_per_s"])
    assert n["end_to_end_over_slower"] == pytest.approx(n["end_to_end_clips_per_s"] / slower)
    assert "| B everest, from files | 8 " in (tmp_path / "gpu.md").read_text()
    # Nothing of full size is run on a CPU.
    assert found["rows"][1]["why"] == gpu_job.NO_GPU
