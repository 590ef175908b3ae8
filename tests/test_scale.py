"""What crosses between devices, and what one device holds, read from the compiled step."""

import functools
import itertools
import math
import re
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
import tiny

from mvm import train
from mvm.optim import Schedule
from mvm.runtime import sharding

SCHEDULE = Schedule(peak=1e-2, end=0.0, warmup_steps=2, total_steps=10)
CLIPS, DEPTH, DECODER_DEPTH = 16, 3, 4
DOTS = {"task_name": "pretrain", "accumulate": 1, "clips": CLIPS, "remat": "dots"}
SPLIT = {"attention/qkv", "attention/proj", "mlp/fc1", "mlp/fc2"}  # Kernels of a block.


def config_of(task, **model):
    sizes = {"width": 64, "depth": DEPTH, "heads": 4, "decoder_width": 64, "decoder_heads": 4}
    sizes |= {"decoder_depth": DECODER_DEPTH, "dtype": "float32", "attention": "xla"}
    return tiny.config_of(task, **{**sizes, **model})


@functools.cache
def lower(task_name="pretrain", fsdp=4, accumulate=1, clips=CLIPS, **model):
    """A step before it is compiled, and the shapes of its state."""
    config, mesh = config_of(task_name, **model), sharding.make_mesh(fsdp)
    config.train.update(accumulate=accumulate, ema_decay=0.99)
    with jax.set_mesh(mesh):
        placed = train.build_step(config, SCHEDULE, mesh)
        batch = {
            "video": jax.ShapeDtypeStruct((clips, 4, 32, 32, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((clips,), jnp.int32),
        }
        return placed.step.lower(placed.state, batch), placed.state


@functools.cache
def compiled(*args, **kwargs):
    return lower(*args, **kwargs)[0].compile()


class Op(NamedTuple):
    """A collective operation: the loop it is in ("" outside), its name, its result's shapes."""

    loop: str
    name: str
    shapes: tuple[tuple[int, ...], ...]


def collectives(text):
    """Those of a compiled program; a loop's are listed once, however often it turns."""
    found, inside = [], ""
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    for line in text.splitlines():
        if not line.startswith(" ") and line.rstrip().endswith("{"):
            inside = "" if line.startswith("ENTRY") else line.split()[0]
        elif m := re.search(rf" = (.*?) ({kinds})(?:-start)?\(", line):
            shapes = re.findall(r"[a-z]\w*\[([\d,]*)\]", m[1])
            sides = (tuple(int(n) for n in s.split(",") if n) for s in shapes)
            found.append(Op(inside, m[2], tuple(sides)))
    return found


def kernels(params, *, stacked):
    """Shapes of the split matrices, without their layer axis."""
    out = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if ("blocks/" in name) == stacked and any(sharding.spec(name, leaf.shape, 4)):
            out.append(leaf.shape[1:] if stacked else leaf.shape)
    return sorted(out)


@pytest.mark.parametrize(
    ("task", "remat", "accumulate"),
    [
        ("pretrain", "dots", 1),
        pytest.param("pretrain", "full", 2, marks=pytest.mark.slow),
        pytest.param("finetune", "none", 1, marks=pytest.mark.slow),
    ],
)
def test_each_pass_gathers_each_layer_once_and_nothing_else_moves(task, remat, accumulate):
    of = {"task_name": task, "accumulate": accumulate, "clips": CLIPS * accumulate, "remat": remat}
    params, text = lower(**of)[1]["params"], compiled(**of).as_text()
    ops = collectives(text)
    assert {op.name for op in ops} <= {"all-gather", "all-reduce", "reduce-scatter"}
    gathers = [op for op in ops if op.name == "all-gather"]
    # A mask is drawn by all scores of the batch at a time: one number for each token.
    scores = [op for op in gathers if op.shapes[0][0] == CLIPS and len(op.shapes[0]) == 2]
    assert sum(math.prod(op.shapes[0]) for op in scores) <= 2 * CLIPS * 32
    weights = [op for op in gathers if op not in scores]
    layers = kernels(params, stacked=True)
    stacks = 2 if task == "pretrain" else 1
    assert len(layers) == stacks * len(SPLIT)
    one = sorted(layers[::stacks])
    loops = {}
    for op in weights:
        (shape,) = op.shapes
        loops.setdefault(op.loop, []).append(shape)
    per_loop = [sorted(shapes) for shapes in loops.values()]
    # Forward and backward of each stack: every policy gathers again.
    assert per_loop.count(one) == 2 * stacks
    rest = [shape for shapes in per_loop if shapes != one for shape in shapes]
    assert sorted(rest) == kernels(params, stacked=False)
    # Nor does an array hold all weights of a stack, of which a device keeps a quarter.
    for shape, depth in itertools.product(set(layers) - {(64, 64)}, (DEPTH, DECODER_DEPTH - 1)):
        assert f"[{depth},{shape[0]},{shape[1]}]" not in text


def test_weights_are_cast_before_they_are_sent():
    step, current = lower(remat="full", dtype="bfloat16")
    whole = re.findall(
        r"sdy\.sharding_constraint %\S+ <@mesh, \[(?:\{\}(?:, )?)+\]> "
        r": tensor<([\dx]+)x(\w+)>",
        step.as_text(),
    )
    sides = lambda shape: tuple(int(n) for n in shape.split("x"))  # noqa: E731
    params = current["params"]
    wanted = kernels(params, stacked=True) + kernels(params, stacked=False)
    sent = [(sides(shape), dtype) for shape, dtype in whole if sides(shape) in wanted]
    assert {dtype for _, dtype in sent} == {"bf16"}
    assert {shape for shape, _ in sent} == set(wanted)


def test_each_device_updates_its_own_shard():
    """AdamW's square root, which only the second moment takes, works on shards."""
    program, current = compiled(**DOTS), lower(**DOTS)[1]
    roots = re.findall(r" = f32\[([\d,]*)\]\S* sqrt\(", program.as_text())
    found = Counter(math.prod(int(n) for n in s.split(",") if n) for s in roots)
    wanted, whole = Counter(), set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(current["params"]):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        split = any(sharding.spec(name, leaf.shape, 4))
        wanted[leaf.size // 4 if split else leaf.size] += 1
        whole |= {leaf.size} if split else set()
    # As many of each size as leaves: some are as large, whole, as a shard of another.
    for size in whole | {size // 4 for size in whole}:
        assert found[size] == wanted[size], size
    held = program.memory_analysis().argument_size_in_bytes
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(current))
    assert held < 0.3 * whole
