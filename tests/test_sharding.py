"""Where arrays live, and that no number depends on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from mvm import train
from mvm.optim import Schedule
from mvm.runtime import checkpoint, sharding
from mvm.types import UserError

pytestmark = pytest.mark.xdist_group("sharding")  # They share compiled steps.

SCHEDULE = Schedule(peak=1e-2, end=0.0, warmup_steps=2, total_steps=10)


def test_meshes():
    assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1}
    assert dict(sharding.make_mesh(2).shape) == {"data": 4, "fsdp": 2}
    assert dict(sharding.make_mesh(-1).shape) == {"data": 1, "fsdp": 8}
    for fsdp in (3, 0, -2, 16):
        with pytest.raises(UserError, match=f"train.fsdp={fsdp} does not divide the 8 devices"):
            sharding.make_mesh(fsdp)


def test_batches_that_cannot_be_split():
    sharding.check_batch(16, accumulate=2)
    sharding.check_batch(4, repeats=2)
    for bad, named in (
        ({"videos": 12, "name": "eval.batch_size"}, r"eval\.batch_size=12 .* 8 devices"),
        ({"videos": 24, "accumulate": 2}, "2 micro-batches; the nearest is 32"),
        ({"videos": 6, "repeats": 2}, r"=6 \(12 clips\) .* the nearest is 8"),
    ):
        with pytest.raises(UserError, match=named):
            sharding.check_batch(**bad)


# --- one device = eight --------------------------------------------------------------------------


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])


def config_of(task):
    c = tiny.config_of(task)
    if task == "finetune":
        c.model.update(drop_path=0.3, head_dropout=0.3)
        c.train.batch_size = 8
    return c


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


def weights_of(task, create):
    """A state whose weights are large enough for every path to matter, on the host."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype)  # noqa: E731
    return create() | {"params": jax.tree.map(draw, task.abstract)}


@functools.cache
def four_steps(task_name, fsdp):
    """Metrics of four steps, and the state after them; `fsdp` 0 means a mesh of one device."""
    config = config_of(task_name)
    mesh = sharding.make_mesh(fsdp) if fsdp else one_device()
    with jax.set_mesh(mesh):
        placed = train.build_step(config, SCHEDULE, mesh)
        where = jax.tree.map(lambda leaf: leaf.sharding, placed.state)
        current = jax.device_put(weights_of(placed.task, placed.init), where)
        step = placed.step
        rows = []
        for seed in range(4):
            current, metrics = step(current, sharding.put(batch_of(seed), mesh))
            rows.append(jax.device_get(metrics))
    return rows, current


@pytest.mark.slow
@pytest.mark.parametrize(("task", "fsdp"), [("pretrain", 1), ("pretrain", 8), ("finetune", 4)])
def test_eight_devices_compute_what_one_does(task, fsdp):
    one, _ = four_steps(task, 0)
    many, _ = four_steps(task, fsdp)
    assert len({row["loss"].item() for row in one}) == 4
    for a, b in zip(many, one):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-4)


@pytest.mark.slow
def test_moments_live_where_their_parameter_does():
    _, after = four_steps("pretrain", 8)
    params = checkpoint.leaves(after["params"])
    split = 0
    for moment in ("mu", "nu"):
        for name, leaf in checkpoint.leaves(optax.tree.get(after["opt"], moment)).items():
            assert leaf.sharding == params[name].sharding, name
            layer = leaf.shape[1:] if "blocks/" in name else leaf.shape
            parts = 8 if len(layer) == 2 and np.prod(layer) >= 2**12 else 1
            assert leaf.addressable_shards[0].data.size * parts == leaf.size, name
            split += parts > 1
    assert split == 2 * 9  # Of both MLPs, the last block, the encoder's attention, both ends.


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 8])
def test_a_state_is_born_the_same_on_any_mesh(fsdp):
    config = config_of("pretrain")
    states = []
    for mesh in (one_device(), sharding.make_mesh(fsdp)):
        with jax.set_mesh(mesh):
            states.append(jax.device_get(train.build_step(config, SCHEDULE, mesh).init()))
    jax.tree.map(np.testing.assert_array_equal, *states)
