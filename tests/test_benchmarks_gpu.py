"""The benchmarks of one GPU in a reduced form on CPU: their rows, and what is left out and why."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import jax
import pytest

from benchmarks import gpu, gpu_job, gpu_table
from benchmarks.gpu_job import Job
from mvm import tasks
from mvm.types import UserError

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


def test_every_size_and_strategy_is_there() -> None:
    names = [job.name for job in gpu.jobs()]
    assert len(names) == len(set(names))
    for size in "SBLg":
        for what in ("everest", "tube", "dual", "adamae", "finetune"):
            assert f"{size} {what}" in names
    # The most important first.
    assert {name[0] for name in names[:10]} == {"L", "B"}


def test_jobs_are_of_the_size_and_strategy_they_name() -> None:
    for job in gpu.jobs():
        if job.kind == "peers":
            continue
        config = gpu_job.config_of(job)
        size, what = job.name.partition(",")[0].split(" ", 1)
        assert config.model.size == size
        assert config.task == ("finetune" if "finetune" in what else "pretrain")
        mask = {"finetune": "", "everest finetune": "everest"}.get(what, what)
        assert config.mask.name == mask, job.name
        assert (config.data.repeats, config.train.accumulate) == (1, 1)
        assert (config.model.remat, config.model.dtype) == ("none", "auto")


@pytest.mark.slow
def test_every_model_can_be_built() -> None:
    for job in gpu.jobs():
        if job.kind != "peers":
            task = tasks.build(gpu_job.config_of(job))
            assert task.grid.n == (2048 if job.name[0] == "g" else 1568)


@pytest.mark.parametrize(
    ("clips", "limit", "expected"),
    [(256, None, 256), (256, 140e9, 256), (256, 80e9, 128), (128, 24e9, 16), (16, 1e9, 1)],
)
def test_first_batch_fits_the_memory(clips: int, limit: float | None, expected: int) -> None:
    assert gpu_job.first_batch(clips, None if limit is None else int(limit)) == expected


def searched(fits: int, clips: int, limit: int | None) -> tuple[list[int], list[dict[str, Any]]]:
    """Batches tried and numbers saved where a clip takes 1 GB and up to `fits` of them fit."""
    tried: list[int] = []
    saved: list[dict[str, Any]] = []

    def measure(clips: int) -> dict[str, Any]:
        tried.append(clips)
        if clips > fits:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room")
        rate = clips if clips < 32 else 30.0
        return {"clips": clips, "clips_per_s": rate, "memory_planned_gb": clips, "a_peak_gb": 1.0}

    gpu_job.search(measure, clips, limit, saved.append)
    return tried, saved


def test_search_halves_and_doubles() -> None:
    # 16 GB of 40 are less than 45 %, 32 are not.
    tried, saved = searched(fits=100, clips=16, limit=40 * 10**9)
    assert tried == [16, 32]
    assert (saved[0]["clips"], saved[0]["a_peak_gb"], saved[0]["tried"]) == (16, 1.0, {"16": 16})
    assert saved[1]["tried"] == {"16": 16, "32": 30.0}
    assert "a_peak_gb" not in saved[1]  # It may be the other batch's.
    # What did not fit is not tried again, however much memory seems free.
    tried, saved = searched(fits=20, clips=64, limit=200 * 10**9)
    assert tried == [64, 32, 16]
    assert (saved[-1]["clips"], saved[-1]["tried"]) == (16, {"64": None, "32": None, "16": 16})
    # A second batch that does not fit leaves the first.
    tried, saved = searched(fits=20, clips=16, limit=40 * 10**9)
    assert (tried, len(saved), saved[0]["clips"]) == ([16, 32], 1, 16)
    # A larger batch that is no faster is not taken.
    assert searched(fits=256, clips=32, limit=100 * 10**9)[1][-1]["clips"] == 32
    assert searched(fits=100, clips=8, limit=None)[0] == [8]


def test_search_without_any_room() -> None:
    with pytest.raises(UserError, match="not one clip fits"):
        searched(fits=0, clips=4, limit=None)


def test_unknown_jobs_and_absent_gpus_are_one_line(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: --only 'L tub': choose from L everest; L tube"):
        gpu.main(["--only", "L tub", "--out", str(tmp_path)])


def test_the_script_is_sound() -> None:
    subprocess.run(["bash", "-n", str(ROOT / "benchmarks" / "gpu.sh")], check=True)


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
