"""The pure update: its pixels, accumulation, average, metrics and randomness."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from mvm import preprocess, tasks
from mvm import step as steps
from mvm.models import tubelets
from mvm.runtime import sharding


@pytest.fixture(autouse=True)
def mesh():
    """Of one device."""
    with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
        yield


def batch_of(seed=0, **changes):
    """Eight clips; by default their boxes are empty and nothing is mixed."""
    rng, none = np.random.default_rng(seed), jnp.zeros((8, 4), jnp.int32)
    plain = {
        "video": rng.integers(0, 256, (8, 4, 32, 32, 3), dtype=np.uint8),
        "label": np.arange(8),
        "lam": np.ones(8, np.float32),
        "skipped": np.array([0, 1, 0, 2, 0, 0, 0, 0]),
    }
    return {"erase": none, "box": none, **jax.tree.map(jnp.asarray, plain | changes)}


@functools.cache
def finetuning(accumulate):
    """A jitted step of a classifier that sees all tokens, and a state at step 0.

    By plain descent: Adam would divide rounding errors by almost nothing.
    """
    config, optimizer = tiny.config_of("finetune", width=16, depth=1), optax.sgd(0.5)
    config.mask.name, config.data.num_classes, config.optim.smoothing = "", 8, 0.1
    task = tasks.build(config)
    step = steps.make(task, optimizer, tiny.SCHEDULE, accumulate=accumulate, ema_decay=0.75)
    created = jax.jit(lambda: steps.init_state(task, optimizer, 0, ema=True))()
    for part in ("params", "ema"):
        created[part]["head"]["kernel"] *= 3e4
    return jax.jit(step), created


def test_accumulated_gradients_are_those_of_the_whole_batch():
    results = []
    for accumulate in (1, 2):
        step, current = finetuning(accumulate)
        for seed in range(2):
            current, metrics = step(current, batch_of(seed))
        results.append((current["params"], current["ema"], metrics))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), *results)


def test_metrics_average_and_one_compilation():
    (step, first), batch = finetuning(1), batch_of()
    step(first, batch)
    jax.tree.map(np.testing.assert_array_equal, first["ema"], first["params"])
    current, losses = first, []
    average = head = first["params"]["head"]["kernel"]
    for number in range(4):
        with jax.no_tracing():
            current, metrics = step(current, batch)
        head = current["params"]["head"]["kernel"]
        average = 0.75 * average + 0.25 * head
        np.testing.assert_allclose(current["ema"]["head"]["kernel"], average, atol=1e-6)
        assert set(metrics) == {"loss", "accuracy", "grad_norm", "learning_rate", "skipped"}
        assert current["step"] == number + 1
        np.testing.assert_allclose(metrics["learning_rate"], tiny.SCHEDULE(number), rtol=1e-6)
        assert metrics["skipped"] == 3  # Summed over the batch.
        losses.append(float(metrics["loss"]))
    assert np.abs(head - average).max() > 1e-4
    assert losses[3] < losses[0]
    np.testing.assert_array_equal(current["key"], first["key"])


def test_erasing_and_mixing_reach_the_loss():
    step, current = finetuning(1)
    loss = lambda **changes: float(step(current, batch_of(**changes))[1]["loss"])  # noqa: E731
    for changes in (
        {"erase": np.array([[2, 2, 9, 9]] * 8)},
        {"lam": np.full(8, 0.6, np.float32)},
        {"lam": np.full(8, 0.5, np.float32), "box": np.array([[0, 8, 0, 16]] * 8)},
    ):
        assert abs(loss(**changes) - loss()) > 1e-3


def test_pretraining_draws_another_mask_each_step_and_the_same_on_repetition():
    task, optimizer = tasks.build(tiny.config_of("pretrain")), optax.sgd(0.0)
    step = jax.jit(steps.make(task, optimizer, tiny.SCHEDULE))
    current = jax.jit(lambda: steps.init_state(task, optimizer, 0))()
    batch = {"video": batch_of()["video"]}
    after, first = step(current, batch)
    assert set(first) == {"loss", "grad_norm", "learning_rate"}
    _, again = step(current, batch)
    _, second = step(after, batch)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert second["loss"] != first["loss"]


# --- pixels on the device


@pytest.mark.parametrize("name", ["mixup_videomae.npz", "mixup_videomaev2.npz"])
def test_mixup_and_cutmix_are_the_released_ones(shared, name):
    """The released code mixes `[B, 3, T, H, W]`; the one rounding apart is its double lambda."""
    golden = np.load(shared / "golden" / name)
    clips = jnp.asarray(golden["x"].transpose(0, 2, 3, 4, 1))
    labels = optax.smooth_labels(jax.nn.one_hot(golden["y"], 7), 0.1)
    for case in ("mixup0", "mixup1", "cutmix0", "cutmix1", "cutmix2"):
        cut = case.startswith("cutmix")
        lam = jnp.float32(golden[f"{case}/lam_corrected" if cut else f"{case}/lam"])
        box = golden[f"{case}/box_yl_yh_xl_xh"] if cut else np.zeros(4, np.int32)
        video, mixed = preprocess.mix(clips, clips[::-1], labels, lam, jnp.asarray(box))
        expected = golden[f"{case}/x"].transpose(0, 2, 3, 4, 1)
        if cut:  # Pixels are moved, never computed.
            np.testing.assert_array_equal(video, expected)
        np.testing.assert_allclose(video, expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(mixed, golden[f"{case}/y"], rtol=1e-6, atol=1e-7)


def test_erasing_writes_standard_normal_noise_in_the_box_only():
    levels = np.random.default_rng(1).integers(0, 256, (3, 8, 32, 32, 3), np.uint8)
    # (y, x, h, w): rows 2 to 4 and columns 5 to 11 of a clip, nothing of another, all of the last.
    boxes = jnp.array([[2, 5, 3, 7], [0, 0, 0, 0], [0, 0, 32, 32]])
    video = preprocess.erase(jax.random.key(0), jnp.asarray(levels), boxes)
    erased = np.zeros(levels.shape, bool)
    erased[0, :, 2:5, 5:12] = erased[2] = True
    np.testing.assert_allclose(video[~erased], levels[~erased] / 255.0, rtol=1e-6)
    assert (np.asarray(video) != tubelets.unit(jnp.asarray(levels)))[erased].all()
    noise = video[0, :, 2:5, 5:12]
    assert len(np.unique(noise)) == noise.size  # No pixel, channel or frame repeats another.
    # As the model sees it; 8192 numbers per channel: standard errors of .011 and .008.
    seen = np.asarray(tubelets.standardise(video[2]))
    np.testing.assert_allclose(seen.mean(axis=(0, 1, 2)), 0, atol=0.05)
    np.testing.assert_allclose(seen.std(axis=(0, 1, 2)), 1, atol=0.04)
    assert np.abs(np.corrcoef(seen.reshape(-1, 3).T) - np.eye(3)).max() < 0.05
