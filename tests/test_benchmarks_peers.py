"""Both sides of the comparison with PyTorch do the same work, and it says what it measured."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest

from benchmarks import in_turn, peers
from benchmarks.peer_sides import Options, Ours, Peer

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = Options(batch_size=8, threads=1, smoke=True)  # A clip for each device of the tests.

QUICK = ("everest", "finetune")


@pytest.fixture
def needs_peers() -> None:
    if peers.missing():
        pytest.skip("torch and transformers are not installed")


@pytest.mark.usefixtures("needs_peers")
@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in peers.ROWS],
)
def test_both_sides_take_the_same_steps(name: str, tmp_path: pathlib.Path) -> None:
    row, path = peers.ROWS[name], str(tmp_path / "clips.npz")
    ours = Ours(row, TINY, random=False)
    job = ours.export(path)
    masks, steps = [], []
    for _ in range(2):
        masks.append(ours.mask(None))
        steps.append(ours.step(None))
    assert abs(steps[1]["loss"] / steps[0]["loss"] - 1) > 1e-4  # AdamW did something.
    assert (masks[0][1].shape[1] > 0) == (job["shape"]["num_classes"] == 0)
    for side in row.peers:
        peer = Peer(side, job, path, TINY, False, False)
        for mask, step in zip(masks, steps):
            peer.use_mask(mask)
            peers.check_same(side, step, peer.step(step["learning_rate"]), 1e-4)
        # What is timed draws for itself.
        peer = Peer(side, job, path, TINY, True, False)
        peer.use_mask(None if job["shape"]["mask"] in ("everest", "adamae") else masks[0])
        assert peer.step(1e-4)["loss"] == pytest.approx(steps[0]["loss"], rel=0.2)


def test_other_work_is_not_timed() -> None:
    ours = {"loss": 1.0, "grad_norm": 2.0}
    peers.check_same("row", ours, {"loss": 1.00009, "grad_norm": 2.0019}, 1e-4)
    for theirs in ({"loss": 1.0002}, {"grad_norm": 2.003}, {"loss": float("nan")}):
        with pytest.raises(in_turn.SideError, match=r"^row: (loss|grad_norm) is [12] here"):
            peers.check_same("row", ours, {**ours, **theirs}, 1e-4)


def test_a_missing_package_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == "transformers" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(SystemExit, match=r"error: .*transformers.*-r requirements-peers\.txt"):
        peers.main(["--rows", "everest"])
    with pytest.raises(SystemExit, match="error: --rows everst: choose from everest, tube"):
        peers.main(["--rows", "everst,tube"])


class Counter:
    """A side for processes: each step says how many there were."""

    about: ClassVar = {"device": "cpu"}

    def __init__(self, begin: int):
        if begin < 0:
            raise ValueError("below 0")
        self.count = begin

    @staticmethod
    def prepare() -> str:
        return "kept"

    def step(self, by: int) -> dict[str, float]:
        self.count += by
        return {"loss": self.count}


@pytest.fixture
def process() -> Iterator[Callable[[int], in_turn.Process]]:
    begun = []

    def begin(count: int) -> in_turn.Process:
        begun.append(in_turn.Process(f"counter {count}", 1, Counter, count))
        return begun[-1]

    yield begin
    for one in begun:
        one.close()


def test_processes_take_steps_in_turn(process: Callable[[int], in_turn.Process]) -> None:
    sides = {"a": process(0), "b": process(100)}
    assert sides["a"].about == {"device": "cpu", "malloc": "kept"}
    taken = in_turn.in_turn(sides, 3, 2)
    assert {name: [step["loss"] for step in steps] for name, steps in taken.items()} == {
        "a": [6, 8, 10],  # After two that do not count.
        "b": [106, 108, 110],
    }
    for step in taken["a"]:
        assert step["seconds"] >= 0
        assert 0.001 < step["peak_gb"] < 100
    with pytest.raises(in_turn.SideError, match="counter -1 has ended"):
        process(-1)


@pytest.mark.slow
@pytest.mark.usefixtures("needs_peers")
def test_the_command_measures_and_writes(tmp_path: pathlib.Path) -> None:
    rows = ["everest_finetune", "finetune"]
    command = [sys.executable, "-m", "benchmarks.peers", "--smoke", "--steps", "2"]
    command += ["--rows", ",".join(rows), "--json", str(tmp_path / "peers.json")]
    command += ["--figure", str(tmp_path / "peers.png")]
    one_device = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(
        command, cwd=ROOT, env=one_device, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "peers.json").read_text())
    assert [row["row"] for row in numbers["rows"]] == rows
    assert [list(row["sides"]) for row in numbers["rows"]] == [
        ["ours", "released"],
        ["ours", "transformers"],
    ]
    for row in numbers["rows"]:
        ratio = row["sides"][peers.ROWS[row["row"]].peers[0]]["step_min_s"]
        ratio /= row["sides"]["ours"]["step_min_s"]
        assert row["ratios"][peers.ROWS[row["row"]].peers[0]]["step_min_s"] == ratio
        assert done.stdout.count(f"| {row['title']} ") >= 4
        assert all(len(side["steps_s"]) == 2 for side in row["sides"].values())
    assert [(saving["row"], saving["of"]) for saving in numbers["savings"]] == [tuple(rows)]
    assert {"jax", "torch", "transformers"} <= set(numbers["versions"])
    assert (tmp_path / "peers.png").read_bytes()[1:4] == b"PNG"
