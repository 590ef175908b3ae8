"""The attentive probe, and the recipe's words."""

import jax
import numpy as np
import pytest

from configs import probe_ucf101
from mvm import tasks
from mvm.types import UserError


def test_an_attentive_head_learns_its_query_and_costs_one_block_for_one_token():
    task = tasks.build(probe_ucf101.get_config("attentive,smoke"))
    params, frozen = jax.jit(task.init)(jax.random.key(0))
    assert set(params) == {"fc_norm", "head", "pooler", "query"}
    assert set(frozen) == {"encoder"}
    rng = np.random.default_rng(0)
    batch = {"video": rng.integers(0, 256, (2, 16, 32, 32, 3), np.uint8), "label": np.arange(2)}
    grads = jax.jit(jax.grad(lambda p: task.loss(p, frozen, jax.random.key(0), batch)[0]))(params)
    assert np.abs(grads["query"]).max() > 0
    linear = tasks.build(probe_ucf101.get_config("linear,smoke"))
    assert set(linear.abstract) == {"encoder", "fc_norm", "head"}
    assert 0 < task.macs()["pool"] < task.macs()["encoder"]
    assert linear.macs()["pool"] == 0


def test_options_are_checked_and_runs_follow_each_other():
    c = probe_ucf101.get_config("attentive,evaluate")
    assert (c.task, c.evaluate) == ("probe", True)
    assert c.init_from == "runs/probe_ucf101_attentive"
    assert probe_ucf101.get_config("linear").init_from == "runs/everest_ucf101"
    small = probe_ucf101.get_config("linear,demo")
    assert small.init_from == "runs/demo/pretrain_everest_seed0"
    tasks.build(small)
    small.options.head = "round"
    with pytest.raises(UserError, match=r"options\.head='round'.*linear, attentive"):
        tasks.build(small)
