"""Stages: their order, and what several processes make of one sweep."""

import json
import pathlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from test_compare import run

from configs import demo, sweep_lr
from mvm import compare, masking, sweep, tasks
from mvm.types import Grid


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
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(sweep.run, [config] * 3, [tmp_path / "run"] * 3))
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


def test_every_strategy_costs_as_much_as_everest_and_is_judged_in_the_same_way():
    assert set(demo.MASKS) == set(masking.names())
    stages = sweep.planned(demo.get_config("strategies"), pathlib.Path("run"))
    first = demo.SEEDS[1.0][0]
    base = tasks.build(stages[f"everest_1_seed{first}"]).work(executed=True)
    for name, (_, cost, *_) in demo.MASKS.items():
        task = tasks.build(stages[f"{name}_1_seed{first}"])
        assert (task.grid, task.strategy.name) == (Grid(8, 8, 8), name)
        one = task.work(executed=True) / base
        assert cost == pytest.approx(one, rel=1e-3), f"MASKS: cost of {name}"
        for budget, seeds in demo.SEEDS.items():
            for seed in seeds:
                steps = stages[f"{name}_{budget:g}_seed{seed}".replace(".", "")].train.steps
                assert one * steps == pytest.approx(budget * demo.STEPS, rel=0.01)
    judged = {}
    for own in stages.values():
        if own.init_from:
            same = own.to_dict() | {"init_from": "", "name": "", "seed": 0}
            assert same == judged.setdefault(own.task, same)
    assert set(judged) == {"probe", "finetune"}


def test_every_stage_of_every_comparison_builds_after_the_one_it_starts_from(tmp_path):
    words = ("", ",quick", ",rates,pan", ",targets")
    for argument in ("", "long", *(f"strategies{more}" for more in words)):
        config = demo.get_config(argument)
        built = sweep.planned(config, tmp_path)
        assert set(built) == set(config.stages)
        # A probe takes the mask of its encoder.
        seen = {(own.task, own.mask.name): own for own in built.values() if own.task != "probe"}
        assert all(tasks.build(own).grid.n > 0 for own in seen.values())
        for name, changes in config.stages.items():
            if (source := changes.to_dict().get("init_from")) in built:
                assert list(built).index(source) < list(built).index(name)


@pytest.mark.slow
def test_jobs_share_the_stages_of_one_command(tmp_path):
    """The first alone says what it does; one that is killed leaves its stage to the others."""
    root = pathlib.Path(sweep.__file__).parent.parent
    flags = ("--config=configs/sweep_lr.py:smoke", f"--workdir={tmp_path}", "--jobs=2")
    command = [sys.executable, "main.py", *flags]
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) as launcher:
        patience = time.monotonic() + 100
        while len(list(tmp_path.glob("*/.lock"))) < 2 and time.monotonic() < patience:
            time.sleep(0.05)
        psutil.Process(launcher.pid).children()[1].kill()
        said = launcher.stderr.read()
    assert launcher.returncode == 0, said
    assert said.count("test accuracy: ") == 1
    runs = json.loads((tmp_path / "comparison.json").read_text())["runs"]
    assert [run["run"] for run in runs] == [*sweep_lr.get_config("smoke").stages]
    assert all(run["results"] for run in runs)
