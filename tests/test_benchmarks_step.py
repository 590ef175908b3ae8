"""The benchmark of a step: its batches are those of a run, and its pieces make up the step."""

import json

import numpy as np
import pytest

from benchmarks import results, step
from configs import everest_ucf101, videomae_ucf101
from mvm import data, tasks
from mvm.runtime import flops as cost
from mvm.types import UserError


@pytest.mark.parametrize("leaf", [everest_ucf101, videomae_ucf101])
@pytest.mark.parametrize("argument", ["smoke", "finetune,smoke"])
def test_random_batches_are_like_real_ones(shapes, leaf, argument):
    config = leaf.get_config(argument)
    config.data.train = str(shapes / ("train.txt" if "finetune" in argument else "pretrain.txt"))
    d, task = config.data, tasks.build(config)
    found = data.records(d.train, num_classes=d.num_classes * task.spec.labels)
    mix = data.Mix(d.mixup, d.cutmix) if task.spec.mixes and d.mixup else None
    options = {"batch_size": config.train.batch_size, "seed": 0, "start": 0, "mix": mix}
    reader, failures = data.Reader(), data.Failures()
    real = next(
        data.train_batches(found, task.clips["train"], reader, failures=failures, **options)
    )
    fake = step.random_batch(config, np.random.default_rng(0))
    same = lambda batch: {k: (v.shape, v.dtype) for k, v in batch.items() if k != "index"}  # noqa: E731
    assert same(fake) == same(real)


@pytest.mark.slow
def test_a_step(tmp_path):
    config = everest_ucf101.get_config("smoke")
    config.data.num_frames, config.model.decoder_depth = 4, 1
    n = step.measure(config, steps=2, devices=1)
    macs = tasks.build(config).macs()
    assert n["model_gmac_per_clip"] == sum(macs.values()) / 1e9
    assert n["clips"] == config.train.batch_size
    assert n["clips_per_s"] == pytest.approx(n["clips"] / n["step_median_s"])
    assert {"dispatch_ms", "dispatch_cpu_ms"} <= n.keys()
    flops = cost.train_flops(macs) * n["clips"] / n["step_median_s"]
    assert n["model_tflop_per_s_per_device"] * 1e12 == pytest.approx(flops)
    assert n["memory_planned_gb"] >= n["memory_arguments_gb"] + n["memory_temporary_gb"]
    # Parameters and two moments in float32, and the videos.
    assert n["memory_arguments_gb"] * 1e9 > 12 * n["parameters"]
    assert n["mfu"] is None
    results.write(str(tmp_path / "a/step.json"), n, step.table(n))
    assert json.loads((tmp_path / "a/step.json").read_text())["clips"] == n["clips"]


def test_what_cannot_be_measured():
    config = everest_ucf101.get_config("evaluate,smoke")
    with pytest.raises(UserError, match="no training step"):
        step.measure(config, 1)
    config = everest_ucf101.get_config("smoke")
    with pytest.raises(UserError, match="9 devices: there are 8"):
        step.measure(config, 1, devices=9)
    config.train.batch_size = 3
    with pytest.raises(UserError, match="not a multiple of 2 devices"):
        step.measure(config, 1, devices=2)
