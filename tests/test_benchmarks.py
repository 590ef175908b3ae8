"""Each benchmark runs, its batches are those of a run, and its table says what was measured."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import input as input_benchmark
from benchmarks import step, table
from configs import everest_ucf101, videomae_ucf101
from mvm import data, tasks
from mvm.types import UserError

PEERS = all(map(importlib.util.find_spec, ("torch", "transformers", "decord")))


def run(module: str, *arguments: str) -> str:
    """What a benchmark prints."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, cwd=table.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_step_runs_many_recipes_and_one_that_fails_costs_its_row(tmp_path, capsys):
    report = tmp_path / "step.json"
    recipes = ["everest_ucf101", "videomae_ucf101:evaluate", "videomae_ucf101:finetune"]
    with pytest.raises(SystemExit, match="evaluation has no training step"):
        step.main([*recipes, "--smoke", "--batch_size", "8", "--json", str(report)])
    pretrain, failed, finetune = json.loads(report.read_text()).values()
    assert "error" in failed
    for numbers in (pretrain, finetune):
        assert numbers["clips_per_s"] == pytest.approx(numbers["clips"] / numbers["step_s"])
        # Parameters and two moments in float32.
        assert numbers["planned_gb"] * 1e9 > 12 * numbers["parameters"] / 8
        assert numbers["mfu"] is None
    assert "| everest_ucf101 " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not PEERS, reason="needs requirements-peers.txt")
def test_peers_take_the_same_steps():
    assert run("peers", "--smoke", "--steps", "1", "--batch_size", "2").count("released") == 2


@pytest.mark.slow
@pytest.mark.skipif(not PEERS, reason="needs requirements-peers.txt")
def test_input_beside_the_released_loader():
    assert "| released " in run("input", "--smoke", "--against", "released")


@pytest.mark.slow
def test_input_beside_another_checkout(tmp_path):
    report = tmp_path / "report.json"
    other = str(table.ROOT)
    run("input", "--smoke", "--mode", "all", "--against", other, "--json", str(report))
    for case in json.loads(report.read_text())["measured"]:
        assert set(case["rounds"]) == {"ours", other}
        assert all(rounds[0]["clips"] for rounds in case["rounds"].values())


def test_steps_of_zero_count_and_keys_change():
    numbers = step.measure("everest_ucf101", {"mask.keep_ratio": "0.4"}, 0)
    assert (numbers["visible"], numbers["target"]) == (156, 471)
    config = step.load("configs/everest_ucf101.py", {"mask.keep_ratio": 0.4})
    assert numbers["model_gmac"] == sum(tasks.build(config).macs().values()) / 1e9
    with pytest.raises(UserError, match=r"no configs/everest\.py"):
        step.load("everest:smoke")
    with pytest.raises(UserError, match=r"mask\.ratio"):
        step.load("everest_ucf101", {"mask.ratio": "0.4"})


@pytest.mark.parametrize("leaf", [everest_ucf101, videomae_ucf101])
@pytest.mark.parametrize("argument", ["smoke", "finetune,smoke"])
def test_random_batches_are_like_real_ones(shapes, leaf, argument):
    config = leaf.get_config(argument)
    config.data.train = str(shapes / ("train.txt" if "finetune" in argument else "pretrain.txt"))
    d, task = config.data, tasks.build(config)
    found = data.records(data.sources(d, "train"), d.num_classes * task.spec.labels)
    mix = (d.mixup, d.cutmix) if task.spec.mixes and d.mixup else None
    options = {"batch_size": config.train.batch_size, "seed": 0, "start": 0, "mix": mix}
    reader, failures = data.Reader(), data.Failures()
    real = next(
        data.train_batches(found, task.clips["train"], reader, failures=failures, **options)
    )
    fake = step.random_batch(config, np.random.default_rng(0))
    same = lambda batch: {k: (v.shape, v.dtype) for k, v in batch.items() if k != "index"}  # noqa: E731
    assert same(fake) == same(real)


def test_time_of_living_children_counts():
    burn = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    before = input_benchmark.cpu_seconds()
    with subprocess.Popen(
        [sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        assert input_benchmark.cpu_seconds() - before >= 0.28
        child.communicate(b"\n")
