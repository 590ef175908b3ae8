"""No number depends on where arrays live."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mvm import train
from mvm.optim import Schedule
from mvm.runtime import sharding

SCHEDULE = Schedule(peak=1e-2, end=0.0, warmup_steps=2, total_steps=10)


def batch_of(seed):
    rng = np.random.default_rng(seed)
    y, x = rng.integers(0, 16, (2, 8, 1))
    return {
        "video": rng.integers(0, 256, (8, 4, 32, 32, 3), dtype=np.uint8),
        "label": rng.integers(0, 8, 8).astype(np.int32),
        "erase": np.concatenate([y, x, y * 0 + 9, x * 0 + 12], axis=1).astype(np.int32),
        "lam": np.full(8, 0.7, np.float32),
        "box": np.tile(np.array([4, 20, 8, 30], np.int32), (8, 1)),
        "skipped": np.zeros(8, np.int32),
    }


@functools.cache
def four_steps(task, fsdp):
    """Metrics of four steps; `fsdp` 0 means a mesh of one device."""
    rates = {"drop_path": 0.3, "head_dropout": 0.3} if task == "finetune" else {}
    config, rng = tiny.config_of(task, **rates), np.random.default_rng(0)
    config.train.batch_size = 8
    mesh = sharding.make_mesh(fsdp or 1, jax.devices()[: None if fsdp else 1])
    with jax.set_mesh(mesh):
        program = train.build_step(config, SCHEDULE, mesh)
        state, rows = program.init(), []
        # Large enough for every path to matter.
        draw = lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype)  # noqa: E731
        state["params"] = jax.tree.map(draw, program.task.abstract)
        state = jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, program.state))
        for seed in range(4):
            state, metrics = program.step(state, sharding.put(batch_of(seed), mesh))
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
