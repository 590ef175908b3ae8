"""No number depends on where arrays live."""

import functools

import jax
import numpy as np
import pytest
import tiny
from models_on_disk import random_params

from benchmarks.step import random_batch
from mvm import train
from mvm.runtime import sharding


@functools.cache
def four_steps(task_name, fsdp):
    """Metrics of four steps; `fsdp` 0 means a mesh of one device."""
    config = tiny.config_of(task_name)
    if task_name == "finetune":
        config.model.update(drop_path=0.3, head_dropout=0.3)
        config.data.mixup, config.train.batch_size = 0.8, 8
    mesh = sharding.make_mesh(fsdp) if fsdp else sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        placed = train.build_step(config, tiny.SCHEDULE, mesh)
        where = jax.tree.map(lambda leaf: leaf.sharding, placed.state)
        # Weights are large enough for every path to matter.
        current = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), placed.state)
        params = jax.tree.map(lambda w: w / 2, random_params(placed.task.abstract))
        current = jax.device_put(current | {"params": params}, where)
        rows = []
        for seed in range(4):
            batch = random_batch(config, np.random.default_rng(seed))
            if "lam" in batch:
                batch["box"][:], batch["erase"][:, 0] = (4, 20, 8, 30), np.arange(8)
            current, metrics = placed.step(current, sharding.put(batch, mesh))
            rows.append(jax.device_get(metrics))
    return rows


@pytest.mark.slow
@pytest.mark.parametrize(("task", "fsdp"), [("pretrain", 1), ("pretrain", 4), ("finetune", 2)])
def test_four_devices_compute_what_one_does(task, fsdp):
    one, many = four_steps(task, 0), four_steps(task, fsdp)
    assert len({row["loss"].item() for row in one}) == 4
    for a, b in zip(many, one):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-4)
