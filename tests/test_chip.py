"""Peaks by the names that JAX gives devices, planned memory, and the step that compiles once."""

import jax
import jax.numpy as jnp
import pytest

from configs import everest_ucf101
from mvm import tasks, train
from mvm.runtime import chip
from mvm.runtime import flops as cost


@pytest.mark.parametrize(
    ("kind", "bfloat16", "float32"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4, 494.7),
        ("NVIDIA A100-SXM4-40GB", 312.0, 156.0),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
        ("TPU v5 lite", 197.0, None),
        ("TPU v6 lite", 918.0, None),
        # Other chips whose names begin like those.
        ("NVIDIA L40S", None, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("cpu", None, None),
    ],
)
def test_peaks(kind, bfloat16, float32):
    assert chip.peak_tflops(kind, "bfloat16") == bfloat16
    assert chip.peak_tflops(kind, "float32") == float32
    assert chip.peak_tflops(kind, "float16") is None


def test_a_donated_argument_and_its_result_count_once():
    x, y = jax.ShapeDtypeStruct((1000,), jnp.float32), jax.ShapeDtypeStruct((10,), jnp.float32)

    def add(x, y):
        return x + y[0], 2 * y

    kept = chip.planned(jax.jit(add).lower(x, y).compile())
    donated = chip.planned(jax.jit(add, donate_argnums=0).lower(x, y).compile())
    assert kept.arguments == donated.arguments == 4 * 1010
    saved = (kept.total - kept.temporary) - (donated.total - donated.temporary)
    assert saved == 4 * 1000


def test_the_step_compiles_once_and_says_what_it_takes(caplog):
    config = everest_ucf101.get_config("smoke")
    task = tasks.build(config)
    traces = []

    def step(state, batch):
        traces.append(batch.shape)
        return state + batch.sum(), {}

    jitted, state = jax.jit(step, donate_argnums=0), jnp.zeros(1000)
    caplog.set_level("INFO")
    placed = train.Placed(task, state, jitted, None)
    advance, work = train._compiled(config, placed, state, jnp.ones((4, 2)))
    for _ in range(3):
        state, _ = advance(state, jnp.ones((4, 2)))
    with pytest.raises(TypeError, match=r"float32\[3,2\]"):
        advance(state, jnp.ones((3, 2)))
    assert traces == [(4, 2)]
    assert state[0] == 24
    clip = cost.train_flops(task.macs())
    assert work.tflop == pytest.approx(clip * config.train.batch_size / jax.device_count() / 1e12)
    assert work.peak is None
    (line,) = [r.getMessage() for r in caplog.records]
    assert f"{clip / 1e9:.4g} in training" in line
    assert "GB planned on each device" in line
