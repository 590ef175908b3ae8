"""What only an NVIDIA GPU can show; skipped elsewhere."""

from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import step
from configs import everest_ucf101
from mvm import masking, train
from mvm.models import attention
from mvm.runtime import sharding
from mvm.types import Grid

STEPS = 20
GRID = Grid(8, 14, 14)


@pytest.fixture(autouse=True)
def _gpu() -> None:
    if jax.default_backend() != "gpu":
        pytest.skip("needs an NVIDIA GPU and JAX_PLATFORMS=cuda,cpu")


def config_of(mask: str, task: str = "pretrain") -> Any:
    """A tiny model on 512 tokens, from where on cudnn attends in the decoder."""
    c = everest_ucf101.get_config("smoke" if task == "pretrain" else f"{task},smoke")
    c.data.update(image_size=64, erasing=0.0)
    c.mask.name = mask
    c.model.dtype = "bfloat16"
    c.optim.update(base_lr=5e-3 * 256 / c.train.batch_size, warmup_epochs=0.0)
    c.train.steps = 10 * STEPS
    return c


def smooth_batch(config: Any) -> dict[str, np.ndarray]:
    """Clips with something to learn: each tubelet's pixels go with its neighbours'."""
    rng = np.random.default_rng(0)
    batch = step.random_batch(config, rng)
    b, t, h, w, _ = batch["video"].shape
    coarse = rng.integers(0, 256, (b, t // 4, h // 32, w // 32, 3), np.uint8)
    batch["video"] = coarse.repeat(4, 1).repeat(32, 2).repeat(32, 3)
    ramp = np.arange(w, dtype=np.uint8)[:, None]
    batch["video"] += ramp  # A row is not constant, which would leave nothing to normalise.
    return batch


@pytest.mark.parametrize(
    ("mask", "task"),
    [*((name, "pretrain") for name in masking.names()), ("", "finetune"), ("everest", "finetune")],
)
def test_bfloat16_steps_learn_within_one_program_and_one_state(mask: str, task: str) -> None:
    config, mesh, compiled = config_of(mask, task), sharding.make_mesh(), []

    def heard(event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(heard)
    losses, in_use, programs = [], [], []
    with jax.set_mesh(mesh):
        placed = train.build_step(config, train.planned(config, 1000), mesh)
        batch, state = sharding.put(smooth_batch(config), mesh), placed.init()
        for _ in range(STEPS):
            state, metrics = placed.step(state, batch)
            losses.append(float(metrics.pop("loss")))
            del metrics
            in_use.append((mesh.devices.flat[0].memory_stats() or {}).get("bytes_in_use", 0))
            programs.append(len(compiled))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.95 * np.mean(losses[:3]), losses
    assert in_use[1] == in_use[-1]  # The state is donated: a step leaves nothing behind.
    assert programs[0] == programs[-1] > 0


def relative(x: jax.Array, true: jax.Array) -> float:
    """Distance over the size of what it should be."""
    x, true = (np.asarray(a, np.float64) for a in (x, true))
    return float(np.linalg.norm(x - true) / np.linalg.norm(true))


@pytest.mark.parametrize(
    ("queries", "tokens", "heads", "width"),
    [(1568, 1568, 8, 64), (2048, 2048, 16, 88), (156, 156, 12, 64), (314, 470, 6, 64)],
    ids=["decoder", "giant", "few", "cross"],
)
def test_cudnn_attends_as_xla_does(queries: int, tokens: int, heads: int, width: int) -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = [queries, tokens, tokens, queries]
    q, k, v, g = (
        jax.random.normal(key, (2, n, heads, width), jnp.bfloat16) for key, n in zip(keys, sizes)
    )

    def both(by: str, dtype: Any) -> list[jax.Array]:
        """The result and the gradients."""
        inputs = [x.astype(dtype) for x in (q, k, v)]
        out, back = jax.vjp(lambda q, k, v: attention.attend(by, q, k, v), *inputs)
        return [out, *back(g.astype(dtype))]

    with jax.default_matmul_precision("highest"):
        true = jax.jit(lambda: both("xla", jnp.float32))()
    xla = jax.jit(lambda: both("xla", jnp.bfloat16))()
    cudnn = jax.jit(lambda: both("cudnn", jnp.bfloat16))()
    for name, a, b, c in zip(("out", "q", "k", "v"), cudnn, xla, true):
        # A number of bfloat16 has eight bits: 0.4 %, and sums of products of such a few times that.
        assert a.dtype == jnp.bfloat16
        assert relative(a, c) < max(0.015, 2 * relative(b, c)), name
        assert relative(a, b) < 0.02, name


@pytest.mark.parametrize(
    "name", [name for name in masking.names() if not masking.build(name, GRID).needs_tokens]
)
def test_masks_are_those_of_the_cpu(name: str) -> None:
    strategy = masking.build(name, GRID)

    def draw(platform: str) -> Any:
        with jax.default_device(jax.devices(platform)[0]):
            tokens = jnp.zeros((4, GRID.n, 1))
            return jax.jit(lambda key, x: strategy.sample(key, x))(jax.random.key(7), tokens)

    for here, there in zip(draw("gpu"), draw("cpu")):
        np.testing.assert_array_equal(here, there)
