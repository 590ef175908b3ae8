"""Stages: their order, and what several processes make of one sweep."""

import json
import threading
import time

import pytest
from test_compare import run

from configs import demo
from mvm import compare, sweep
from mvm.types import UserError


def test_processes_share_the_stages_of_a_sweep(tmp_path, monkeypatch):
    """Every stage is trained once, after the one that it starts from; all wait for the last."""
    trained = []

    def write(folder, _):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("pretrain", "train", "val", "test"):
            (folder / f"{name}.txt").touch()

    def train(config, workdir):
        if config.init_from:
            assert (sweep.epath.Path(config.init_from) / "final.json").exists()
        (workdir / "metrics.jsonl").touch()
        trained.append(workdir.name)
        time.sleep(0.05)
        return {}

    monkeypatch.setattr(sweep.data, "moving_shapes", write)
    monkeypatch.setattr(sweep.train, "train", train)
    monkeypatch.setattr(sweep, "_summarise", lambda *_: ended.append(len(trained)) or [])
    monkeypatch.setattr(sweep, "_PAUSE", 0.01)
    config, ended = demo.get_config("strategies,quick"), []
    for name in [name for name in config.stages if name.endswith("probe")]:
        del config.stages[name]
    works = [threading.Thread(target=sweep.run, args=(config, tmp_path / "run")) for _ in range(3)]
    for work in works:
        work.start()
    for work in works:
        work.join()
    assert sorted(trained) == sorted(config.stages)
    assert ended == [len(trained)] * 3


def test_a_comparison_has_every_run_and_draws_accuracy_over_cost(tmp_path):
    stages, scores = {}, {"none": 10.0, "a": 50.0, "b": 30.0}
    for (arm, score), seed in ((one, seed) for one in scores.items() for seed in (0, 1)):
        told = {"arm": arm, "cost": 2.0 * (arm != "none"), "judge": "tuned", "seed": seed}
        stages[f"{arm}{seed}"] = told
        folder = tmp_path / f"{arm}{seed}"
        rows = [{"step": 8, "loss": 1.0}, {"step": 9, "loss": float("nan")}]
        run(folder, 0.1, rows, {"top1": score + seed}, seed=seed)
        speed = [{"step": 8, "clips_per_s": 2.0}, {"step": 9, "clips_per_s": 4.0, "mfu": 0.5}]
        (folder / "speed.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in speed))
    said = sweep._summarise(sweep.epath.Path(tmp_path), stages)
    assert "tuned: none 10.5 +- 6.4 %, a (2) 50.5 +- 6.4 %, b (2) 30.5 +- 6.4 %" in said
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert [(arm["name"], arm["scores"]) for arm in found["arms"]][1] == ("a", [50.0, 51.0])
    one = found["runs"][3]
    assert (one["run"], one["arm"], one["cost"], one["config"]["seed"]) == ("a1", "a", 2.0, 1)
    assert (one["last"], one["results"]) == ({"step": 9, "loss": None}, {"top1": 51.0})
    assert one["speed"] == {"clips_per_s": 3.0, "mfu": 0.5}
    again = compare.read([tmp_path / "comparison.json"])  # Wherever the runs are.
    assert compare.means(compare.arms(again)) == [line for line in said if line[:6] == "tuned:"]
    assert (tmp_path / "report_accuracy.png").stat().st_size > 5000
    assert "How they did" in (tmp_path / "report.html").read_text()


def test_stages_share_one_set_of_moving_shapes_and_costs_are_numbers(tmp_path):
    config = demo.get_config("strategies,quick")
    for changes in ({"synthetic": {"pan": 0.1}}, {"cost": "3 h"}):
        config.stages = {"one": changes}
        with pytest.raises(UserError, match=r"stages\.one"):
            sweep.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
