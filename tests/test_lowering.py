"""The steps can be lowered for GPUs and TPUs from a machine that has neither."""

import jax
import jax.numpy as jnp
import pytest
import tiny
from models_on_disk import refused

from benchmarks import step
from mvm import masking, tasks, train
from mvm.runtime import sharding


def config_of(task, mask, **model):
    c = tiny.config_of(task, **{"dtype": "bfloat16", "attention": "xla", **model})
    c.mask.name = mask
    if task == "finetune":
        c.data.update(mixup=0.8, cutmix=1.0)
        c.model.head_dropout = 0.5
    return c


def traced(task_name, mask, fsdp, remat="full", accumulate=1):
    """A step, traced but not yet lowered."""
    config, mesh = config_of(task_name, mask, remat=remat), sharding.make_mesh(fsdp)
    config.train.update(accumulate=accumulate, ema_decay=0.99, batch_size=16)
    with jax.set_mesh(mesh):
        placed = train.build_step(config, tiny.SCHEDULE, mesh)
        where = sharding.of_batch(mesh)
        batch = {k: sharding.at(x, where) for k, x in step.batch_shapes(config).items()}
        return placed.step.trace(placed.state, batch)


def lowers(program):
    """The program for TPU and for GPU, as text."""
    return [program.lower(lowering_platforms=(name,)).as_text() for name in ("tpu", "cuda")]


def check(*args):
    for text in lowers(traced(*args)):
        assert "bf16" in text, args
        assert "tensor<16x4x32x32x3xui8>" in text, args


def test_pretraining_on_accelerators():
    check("pretrain", "everest", 4)


@pytest.mark.slow
def test_every_task_policy_and_strategy_on_accelerators():
    check("finetune", "everest", 2)
    check("pretrain", "tube", 1, "none", 2)
    text = traced("pretrain", "tube", 1, "offload", 2).lower(lowering_platforms=("tpu",)).as_text()
    assert "pinned_host" in text
    for mask in masking.names():
        strategy = tasks.build(config_of("pretrain", mask)).strategy
        tokens = jnp.zeros((2, strategy.grid.n, 48), jnp.bfloat16)
        scores = jnp.zeros((2, strategy.grid.n))
        lowers(jax.jit(strategy.sample).trace(jax.random.key(0), tokens, scores))


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
        if auto == "auto":
            assert chosen("cudnn") == "cudnn"
            continue
        refused(f"attention=cudnn .* {platform} .* to auto", chosen, "cudnn")
