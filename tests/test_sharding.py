"""No number depends on where arrays live."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from benchmarks.step import random_batch
from mvm import train
from mvm.optim import Schedule
from mvm.runtime import sharding

SCHEDULE = Schedule(peak=1e-2, end=0.0, warmup_steps=2, total_steps=10)


def config_of(task):
    c = tiny.config_of(task)
    if task == "finetune":
        c.model.update(drop_path=0.3, head_dropout=0.3)
        c.data.mixup, c.train.batch_size = 0.8, 8
    return c


def weights_of(task, shapes):
    """A state whose weights are large enough for every path to matter, on the host."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype)  # noqa: E731
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return state | {"params": jax.tree.map(draw, task.abstract)}


@functools.cache
def four_steps(task_name, fsdp):
    """Metrics of four steps; `fsdp` 0 means a mesh of one device."""
    config = config_of(task_name)
    mesh = sharding.make_mesh(fsdp) if fsdp else sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        placed = train.build_step(config, SCHEDULE, mesh)
        where = jax.tree.map(lambda leaf: leaf.sharding, placed.state)
        current = jax.device_put(weights_of(placed.task, placed.state), where)
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
