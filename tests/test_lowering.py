"""The steps can be lowered for GPUs and TPUs from a machine that has neither."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from mvm import masking, tasks, train
from mvm.optim import Schedule
from mvm.runtime import sharding
from mvm.types import UserError

SCHEDULE = Schedule(peak=1e-2, end=0.0, warmup_steps=2, total_steps=10)


def config_of(task, mask, **model):
    c = tiny.config_of(task, **{"dtype": "bfloat16", "attention": "xla", **model})
    c.mask.name = mask
    if task == "finetune":
        c.data.update(mixup=0.8, cutmix=1.0)
        c.model.head_dropout = 0.5
    return c


@functools.cache
def traced(task_name, mask, fsdp, remat="full", accumulate=1):
    """A step, traced but not yet lowered."""
    config, mesh = config_of(task_name, mask, remat=remat), sharding.make_mesh(fsdp)
    config.train.update(accumulate=accumulate, ema_decay=0.99)
    with jax.set_mesh(mesh):
        return trace(config, mesh)


def trace(config, mesh):
    placed = train.build_step(config, SCHEDULE, mesh)
    shape = functools.partial(jax.ShapeDtypeStruct, sharding=sharding.of_batch(mesh))
    batch = {
        "video": shape((16, 4, 32, 32, 3), jnp.uint8),
        "label": shape((16,), jnp.int32),
        "skipped": shape((16,), jnp.int32),
    }
    if config.task == "finetune":
        batch["erase"] = batch["box"] = shape((16, 4), jnp.int32)
        batch["lam"] = shape((16,), jnp.float32)
    return placed.step.trace(placed.state, batch)


def check(*args):
    for platform in ("tpu", "cuda"):
        text = traced(*args).lower(lowering_platforms=(platform,)).as_text()
        assert "bf16" in text, args
        assert "tensor<16x4x32x32x3xui8>" in text, args


def test_pretraining_on_accelerators():
    check("pretrain", "everest", 8)


@pytest.mark.slow
def test_every_task_policy_and_strategy_on_accelerators():
    check("finetune", "everest", 4)
    check("pretrain", "tube", 1, "none", 2)
    text = traced("pretrain", "tube", 1, "offload", 2).lower(lowering_platforms=("tpu",)).as_text()
    assert "pinned_host" in text
    for mask in masking.names():
        strategy = tasks.build(config_of("pretrain", mask)).strategy
        tokens = jnp.zeros((2, strategy.grid.n, 48), jnp.bfloat16)
        scores = jnp.zeros((2, strategy.grid.n))
        drawn = jax.jit(strategy.sample).trace(jax.random.key(0), tokens, scores)
        for platform in ("tpu", "cuda"):
            assert drawn.lower(lowering_platforms=(platform,)).as_text(), mask


# --- who attends ---------------------------------------------------------------------------------


def test_attention_by_platform(monkeypatch):
    for platform, dtype, auto in (
        *(("cpu", "bfloat16", "cpu"), ("tpu", "bfloat16", "xla")),
        *(("gpu", "float32", "xla"), ("gpu", "bfloat16", "auto")),
    ):
        monkeypatch.setattr(sharding, "platform", lambda platform=platform: platform)

        def chosen(name, dtype=dtype):
            config = config_of("pretrain", "tube", attention=name, dtype=dtype)
            return tasks.build(config).run.attention

        assert chosen("auto") == auto
        for name, able in (("cudnn", auto == "auto"), ("splash", platform == "tpu")):
            if able:
                assert chosen(name) == name
                continue
            with pytest.raises(UserError, match=rf"attention={name} .* {platform} .* to auto"):
                chosen(name)


def tpus(data, fsdp):
    """A mesh of TPUs that are not here."""
    axes, device = (AxisType.Auto, AxisType.Auto), AbstractDevice("TPU v5 lite", 1, "tpu")
    return AbstractMesh((data, fsdp), ("data", "fsdp"), axes, abstract_device=device)


def test_splash_attends_on_a_tpu_each_chip_to_its_own_clips():
    config, mesh = config_of("pretrain", "everest", attention="splash"), tpus(2, 4)
    with jax.sharding.use_abstract_mesh(mesh):
        text = trace(config, mesh).lower(lowering_platforms=("tpu",)).as_text()
    calls = [line for line in text.splitlines() if "custom_call @tpu_custom_call" in line]
    kernels = []
    for body in text.split("func.func ")[1:]:  # Equal ones are written once and called twice.
        times = len(re.findall(rf"call {re.search(r'@[^(]+', body).group()}\(", text))
        kernels += re.findall(r'kernel_name = "splash_mha_(fwd|dkv)_', body) * max(times, 1)
    # The encoder's stack, the decoder's and its last block; forward and backward.
    assert sorted(kernels) == ["dkv"] * 3 + ["fwd"] * 3
    clips = {re.search(r"tensor<(\d+)x\d+x\d+x\d+xbf16>", line).group(1) for line in calls}
    assert clips == {"2"}
