"""The pure update: accumulation, average, metrics, and what it draws its randomness from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import common
from mvm import state, tasks, train_step
from mvm.optim import Schedule

SCHEDULE = Schedule(peak=1e-2, end=0.0, warmup_steps=3, total_steps=10)


def config_of(task):
    c = common.finish(common.get_config(), f"{task},smoke")
    c.data.update(num_frames=4, image_size=16)
    c.model.update(width=16, decoder_width=16)
    return c


def batch_of(size=8, seed=0):
    rng = np.random.default_rng(seed)
    video = rng.integers(0, 256, (size, 4, 16, 16, 3), dtype=np.uint8)
    return {"video": jnp.asarray(video), "label": jnp.arange(size) % 8}


def built(config, loss, optimizer=None, **options):
    """A jitted step and a state at step 0."""
    task = tasks.build(config)
    optimizer = optimizer or tasks.optimizer_of(config, task, SCHEDULE)
    step = train_step.make(
        task.graphdef, loss(task), optimizer, SCHEDULE, merge=nnx.merge, **options
    )
    ema = options.get("ema_decay", 0.0) > 0
    created = jax.jit(lambda: state.create(task.init, optimizer, 0, ema))()
    return jax.jit(step), created


def plain_loss(task):
    """Classification of all tokens: nothing is left to chance."""
    return train_step.finetune_loss(None, 8, 0.1)


def test_accumulated_gradients_are_those_of_the_whole_batch():
    config = config_of("finetune")
    config.model.head_scale = 1.0
    results = []
    for accumulate in (1, 2):
        # Plain descent: Adam would divide rounding errors by almost nothing.
        step, current = built(config, plain_loss, optax.sgd(0.5), accumulate=accumulate)
        for seed in range(2):
            current, metrics = step(current, batch_of(seed=seed))
        results.append((current["params"], metrics))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *results)


def test_the_average_by_hand():
    step, current = built(config_of("finetune"), plain_loss, optax.sgd(0.5), ema_decay=0.75)
    expected = current["params"]["head"]["kernel"]
    np.testing.assert_array_equal(current["ema"]["head"]["kernel"], expected)
    for seed in range(2):
        current, _ = step(current, batch_of(seed=seed))
        expected = 0.75 * expected + 0.25 * current["params"]["head"]["kernel"]
        np.testing.assert_allclose(current["ema"]["head"]["kernel"], expected, atol=1e-7)
    assert np.abs(current["params"]["head"]["kernel"] - expected).max() > 1e-4


def test_one_compilation_and_the_metrics_of_finetuning():
    traces = []

    def loss(task):
        inner = plain_loss(task)
        return lambda *args: traces.append(1) or inner(*args)

    step, current = built(config_of("finetune"), loss)
    batch = batch_of() | {"skipped": jnp.array([0, 1, 0, 2, 0, 0, 0, 0])}
    before, losses = current, []
    for number in range(4):
        current, metrics = step(current, batch)
        assert set(metrics) == {"loss", "accuracy", "grad_norm", "learning_rate", "skipped"}
        assert current["step"] == number + 1
        np.testing.assert_allclose(metrics["learning_rate"], SCHEDULE(number), rtol=1e-6)
        assert metrics["skipped"] == 3
        assert metrics["grad_norm"] > 0
        losses.append(float(metrics["loss"]))
        if number == 0:  # The first rate is 0.
            jax.tree.map(np.testing.assert_array_equal, current["params"], before["params"])
    assert len(traces) == 1
    assert losses[0] == pytest.approx(np.log(8), abs=1e-3)  # The head starts almost even.
    assert losses[1] == pytest.approx(losses[0])
    assert losses[3] < losses[0]
    np.testing.assert_array_equal(current["key"], before["key"])


def test_pretraining_draws_another_mask_each_step_and_the_same_on_repetition():
    config = config_of("pretrain")
    step, current = built(config, lambda task: tasks.loss_of(config, task))
    after, first = step(current, batch_of())
    assert set(first) == {"loss", "grad_norm", "learning_rate"}
    _, again = step(current, batch_of())
    _, second = step(after, batch_of())
    jax.tree.map(np.testing.assert_array_equal, first, again)
    # The first rate is 0, so only the mask can have changed the loss.
    assert second["loss"] != first["loss"]


def test_erasing_and_mixing_reach_the_loss():
    config = config_of("finetune")
    config.model.head_scale = 30.0
    step, current = built(config, plain_loss, optax.sgd(0.0))
    _, plain = step(current, batch_of())
    empty = {"erase": jnp.zeros((8, 4), jnp.int32)}
    empty |= {"lam": jnp.ones(8), "box": jnp.zeros((8, 4), jnp.int32)}
    _, same = step(current, batch_of() | empty)
    np.testing.assert_allclose(same["loss"], plain["loss"], rtol=1e-5)
    _, erased = step(current, batch_of() | empty | {"erase": jnp.array([[2, 2, 9, 9]] * 8)})
    _, mixed = step(current, batch_of() | empty | {"lam": jnp.full(8, 0.6)})
    assert abs(erased["loss"] - plain["loss"]) > 1e-4
    assert abs(mixed["loss"] - plain["loss"]) > 1e-4
