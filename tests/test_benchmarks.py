"""Each benchmark runs, its batches are those of a run, and its table says what was measured."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny

from benchmarks import step, table, ut_interaction
from configs import everest_ucf101, videomae_ucf101
from mvm import data, tasks

PEERS = all(map(importlib.util.find_spec, ("torch", "transformers", "decord")))


def run(module, *arguments):
    """What a benchmark prints."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, cwd=table.ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_each_runs():
    recipes = ("everest_ucf101", "benchmarks/strategies:everest,finetune")
    quickly = ("--smoke", "--set", "train.batch_size=8", "--rounds", "2")
    assert "| everest_ucf101 " in run("step", *recipes, *quickly)
    with pytest.raises(AssertionError, match="evaluation has no training step"):
        run("step", "videomae_ucf101:evaluate", "--smoke")


def test_a_row_is_the_median_round_and_times_the_first():
    rounds = [{"clips": 2, "s a clip": s / 2, "step s, median / min": [s, s]} for s in (3, 1, 2)]
    found = step.median(rounds)
    assert (found["s a clip"], found["step s, median / min"]) == (1, [2, 1])
    assert step.median([*rounds, {"error": "x"}]) == {"error": "x"}
    first, second = table.beside([{"GB": 2.0}, {"GB": 3.0}], "GB")
    assert (first["x GB"], second["x GB"]) == (1, 1.5)


@pytest.mark.long
@pytest.mark.skipif(not PEERS, reason="needs requirements-peers.txt")
def test_peers_and_the_released_loader_run():
    assert run("peers", "--smoke", "--steps", "1").count("released") == 2
    assert "| released " in run("input", "--smoke", "--against", "released")


@pytest.mark.long
def test_the_giant_fits_on_64_devices_of_80_gb(tmp_path):
    out = tmp_path / "plan.json"
    run("plan", "--json", out, "--config", "configs/videomaev2_hybrid.py:g")
    numbers = json.loads(out.read_text())
    assert numbers["clips"] == 8192
    # Float32: four bytes of 1.03 billion weights over 64 devices, and two moments of each.
    assert numbers["params_gb"] == pytest.approx(4 * numbers["parameters"] / 64e9, rel=0.05)
    assert numbers["moments_gb"] == pytest.approx(2 * numbers["params_gb"], rel=1e-3)
    assert numbers["total_gb"] < 80


@pytest.mark.parametrize("leaf", [everest_ucf101, videomae_ucf101])
@pytest.mark.parametrize("argument", ["smoke", "finetune,smoke"])
def test_random_batches_are_like_real_ones(shapes, leaf, argument):
    config = tiny.configure(shapes, argument, leaf)
    d, task = config.data, tasks.build(config)
    found = data.records(data.sources(d, "train"), d.num_classes * task.spec.labels)
    mix = (d.mixup, d.cutmix) if task.spec.mixes and d.mixup else None
    options = {"batch_size": config.train.batch_size, "seed": 0, "start": 0, "mix": mix}
    options["failures"] = data.Failures()
    real = next(data.train_batches(found, task.clips["train"], data.Reader(), **options))
    fake = step.random_batch(config, np.random.default_rng(0))
    same = lambda batch: {k: (v.shape, v.dtype) for k, v in batch.items() if k != "index"}  # noqa: E731
    assert same(fake) == same(real)


def test_no_fold_trains_or_stops_by_a_sequence_it_tests():
    clips = [{"label": str(n % 7), "sequence": str(n // 7), "path": str(n)} for n in range(42)]
    parts = ut_interaction.folds(clips)
    assert [row["path"] for fold in parts for row in fold["test"]] == [
        clip["path"] for clip in clips if clip["label"] != "6"
    ]
    for fold in parts:
        seen = {split: {row["sequence"] for row in rows} for split, rows in fold.items()}
        assert not seen["test"] & (seen["pretrain"] | seen["train"] | seen["val"])
        assert not seen["train"] & seen["val"]
        assert {row["label"] for row in fold["pretrain"]} == set("0123456")
