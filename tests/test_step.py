"""The pure update: accumulation, average, metrics, and what it draws its randomness from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from mvm import step as steps
from mvm import tasks
from mvm.optim import Schedule
from mvm.runtime import sharding

SCHEDULE = Schedule(peak=1e-2, end=0.0, warmup_steps=3, total_steps=10)


@pytest.fixture(autouse=True)
def mesh():
    """Of one device."""
    with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
        yield


def config_of(task):
    c = common.finish(common.get_config(), f"{task},smoke")
    c.data.update(num_frames=4, image_size=16)
    c.model.update(width=16, depth=1, decoder_width=16, decoder_depth=1)
    # Pre-training hides some of the selected tokens, fine-tuning none.
    c.mask.update(keep_ratio=0.6, mask_ratio=0.6 if task == "pretrain" else 0.4)
    return c


def batch_of(seed=0, **changes):
    """Eight clips; by default their boxes are empty and nothing is mixed."""
    rng, none = np.random.default_rng(seed), jnp.zeros((8, 4), jnp.int32)
    plain = {
        "video": rng.integers(0, 256, (8, 4, 16, 16, 3), dtype=np.uint8),
        "label": np.arange(8),
        "lam": np.ones(8, np.float32),
        "skipped": np.array([0, 1, 0, 2, 0, 0, 0, 0]),
    }
    return {"erase": none, "box": none, **jax.tree.map(jnp.asarray, plain | changes)}


@functools.cache
def finetuning(accumulate):
    """A jitted step of a classifier that sees all tokens, a state at step 0, and every trace.

    By plain descent: Adam would divide rounding errors by almost nothing.
    """
    config, optimizer = config_of("finetune"), optax.sgd(0.5)
    config.mask.name, config.data.num_classes, config.optim.smoothing = "", 8, 0.1
    task = tasks.build(config)
    step = steps.make(task, optimizer, SCHEDULE, accumulate=accumulate, ema_decay=0.75)
    created = jax.jit(lambda: steps.init_state(task, optimizer, 0, ema=True))()
    for part in ("params", "ema"):
        created[part]["head"]["kernel"] *= 3e4
    traces = []

    def traced(*args):
        traces.append(args)
        return step(*args)

    return jax.jit(traced), created, traces


def test_accumulated_gradients_are_those_of_the_whole_batch():
    results = []
    for accumulate in (1, 2):
        step, current, _ = finetuning(accumulate)
        for seed in range(2):
            current, metrics = step(current, batch_of(seed))
        results.append((current["params"], current["ema"], metrics))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), *results)


def test_the_average_by_hand():
    step, current, _ = finetuning(1)
    jax.tree.map(np.testing.assert_array_equal, current["ema"], current["params"])
    expected = current["params"]["head"]["kernel"]
    for seed in range(2):
        current, _ = step(current, batch_of(seed))
        expected = 0.75 * expected + 0.25 * current["params"]["head"]["kernel"]
        np.testing.assert_allclose(current["ema"]["head"]["kernel"], expected, atol=1e-6)
    assert np.abs(current["params"]["head"]["kernel"] - expected).max() > 1e-4


def test_metrics_and_one_compilation():
    step, first, traces = finetuning(1)
    current, losses = first, []
    for number in range(4):
        current, metrics = step(current, batch_of())
        assert set(metrics) == {"loss", "accuracy", "grad_norm", "learning_rate", "skipped"}
        assert current["step"] == number + 1
        np.testing.assert_allclose(metrics["learning_rate"], SCHEDULE(number), rtol=1e-6)
        assert metrics["skipped"] == 3  # Summed over the batch.
        assert metrics["grad_norm"] > 0
        losses.append(float(metrics["loss"]))
    assert len(traces) == 1
    assert losses[3] < losses[0]
    np.testing.assert_array_equal(current["key"], first["key"])


def test_erasing_and_mixing_reach_the_loss():
    step, current, _ = finetuning(1)
    loss = lambda **changes: float(step(current, batch_of(**changes))[1]["loss"])  # noqa: E731
    plain = loss()
    assert abs(loss(erase=np.array([[2, 2, 9, 9]] * 8)) - plain) > 1e-3
    assert abs(loss(lam=np.full(8, 0.6, np.float32)) - plain) > 1e-3
    cut = np.array([[0, 8, 0, 16]] * 8)
    assert abs(loss(lam=np.full(8, 0.5, np.float32), box=cut) - plain) > 1e-3


def test_pretraining_draws_another_mask_each_step_and_the_same_on_repetition():
    task, optimizer = tasks.build(config_of("pretrain")), optax.sgd(0.0)
    step = jax.jit(steps.make(task, optimizer, SCHEDULE))
    current = jax.jit(lambda: steps.init_state(task, optimizer, 0))()
    batch = {"video": batch_of()["video"]}
    after, first = step(current, batch)
    assert set(first) == {"loss", "grad_norm", "learning_rate"}
    _, again = step(current, batch)
    _, second = step(after, batch)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    jax.tree.map(np.testing.assert_array_equal, after["params"], current["params"])
    assert second["loss"] != first["loss"]
