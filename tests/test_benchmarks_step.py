"""The benchmark of a step: its batches are those of a run, and its pieces make up the step."""

import json

import jax
import numpy as np
import pytest

from benchmarks import results, split, step
from configs import everest_ucf101, videomae_ucf101
from mvm import data, tasks
from mvm.runtime import flops as cost
from mvm.types import UserError


@pytest.mark.parametrize("leaf", [everest_ucf101, videomae_ucf101])
@pytest.mark.parametrize("argument", ["smoke", "finetune,smoke"])
def test_random_batches_are_like_real_ones(shapes, leaf, argument):
    config = leaf.get_config(argument)
    config.data.train = str(shapes / ("train.txt" if "finetune" in argument else "pretrain.txt"))
    found = data.records(config, "train")
    real = next(data.train_batches(config, found, 0, data.Failures()))
    fake = step.random_batch(config, np.random.default_rng(0))
    same = lambda batch: {k: (v.shape, v.dtype) for k, v in batch.items() if k != "index"}  # noqa: E731
    assert same(fake) == same(real)


@pytest.mark.slow
def test_a_step_and_its_pieces(tmp_path):
    config = everest_ucf101.get_config("smoke")
    config.data.num_frames, config.model.decoder_depth = 4, 1
    n = step.measure(config, steps=2, devices=1, pieces=True)
    macs = cost.forward_macs(tasks.build(config))
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
    s = n["split_s"]
    assert [p["name"] for p in s["pieces"]] == ["select", "embed", "encode", "decode"]
    total = sum(p["forward"] + p["backward"] for p in s["pieces"]) + s["optimiser"] + s["rest"]
    assert total == pytest.approx(s["step"])
    text = step.table(n) + step.split_table(n)
    results.write(str(tmp_path / "a/step.json"), n, text, lambda path: step.draw(path, [n, n]))
    assert json.loads((tmp_path / "a/step.json").read_text())["clips"] == n["clips"]
    assert "decode" in (tmp_path / "a/step.md").read_text()
    assert (tmp_path / "a/step.png").read_bytes().startswith(b"\x89PNG")


def traced(config, name):
    """The named cut of a step as a jaxpr, and paths of parameters it has gradients of."""
    task = tasks.build(config)
    (found,) = [stage for stage in split._stages(config, task) if stage[0] == name]
    batch = step.batch_shapes(config)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.make_jaxpr(found[1])(task.abstract, key, batch)


@pytest.mark.parametrize("argument", ["smoke", "finetune,smoke"])
@pytest.mark.parametrize("leaf", [everest_ucf101, videomae_ucf101])
def test_cuts_do_what_the_cost_model_says_up_to_there(leaf, argument):
    """The products of each cut are those of the stages so far."""
    from test_cost import walk

    config = leaf.get_config(argument)
    classes = config.data.num_classes if config.task == "finetune" else 0
    macs = cost.executed_macs(tasks.build(config), classes)
    clips = config.train.batch_size * config.data.repeats
    names = [stage[0] for stage in split._stages(config, tasks.build(config))]
    parts = {
        "select": macs["select"],
        "embed": macs["embed"],
        "encode": macs["encoder"],
        names[-1]: macs["encoder_to_decoder"] + macs["decoder"] + macs["head"],
    }
    so_far = 0
    for name in names:
        so_far += parts[name]
        assert walk(traced(config, name).jaxpr) == clips * so_far, name


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
