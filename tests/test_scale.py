"""What crosses between devices, and what one device holds, read from the compiled step."""

import functools
import itertools
import math
import re
from collections import Counter, defaultdict

import jax
import jax.numpy as jnp
import pytest
import tiny

from mvm import train
from mvm.optim import Schedule
from mvm.runtime import sharding

SCHEDULE = Schedule(peak=1e-2, end=0.0, warmup_steps=2, total_steps=10)
CLIPS, DEPTH, DECODER_DEPTH = 16, 3, 4
DOTS = {"task": "pretrain", "remat": "dots", "accumulate": 1}
SIZES = {"width": 64, "depth": DEPTH, "heads": 4, "decoder_width": 64, "decoder_heads": 4}
SIZES |= {"decoder_depth": DECODER_DEPTH, "dtype": "float32", "attention": "xla"}


@functools.cache
def lower(task="pretrain", accumulate=1, **model):
    """A step on four devices before it is compiled, and the shapes of its state."""
    config, mesh = tiny.config_of(task, **SIZES | model), sharding.make_mesh(4)
    config.train.update(accumulate=accumulate, ema_decay=0.99)
    clips = CLIPS * accumulate
    with jax.set_mesh(mesh):
        placed = train.build_step(config, SCHEDULE, mesh)
        batch = {
            "video": jax.ShapeDtypeStruct((clips, 4, 32, 32, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((clips,), jnp.int32),
        }
        return placed.step.lower(placed.state, batch), placed.state


@functools.cache
def compiled(**of):
    return lower(**of)[0].compile()


def sides(shape):
    return tuple(int(n) for n in re.findall(r"\d+", shape))


def gathers(text):
    """Shapes that are gathered, by the loop they are in ("" outside), however often it turns."""
    found, inside = defaultdict(list), ""
    for line in text.splitlines():
        if not line.startswith(" ") and line.rstrip().endswith("{"):
            inside = "" if line.startswith("ENTRY") else line.split()[0]
        elif m := re.search(r" = [a-z]\w*(\[[\d,]*\])\S* all-gather\(", line):
            found[inside].append(sides(m[1]))
    assert text.count(" all-gather") == sum(map(len, found.values())) > 0
    return found


def leaves(params):
    """(leaf, whether it is in a stack, whether it is split) of each parameter."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        yield leaf, "blocks/" in name, any(sharding.spec(name, leaf.shape, 4))


def kernels(params, *, stacked):
    """Shapes of the split matrices, without their layer axis."""
    split = [
        leaf for leaf, of_stack, is_split in leaves(params) if is_split and of_stack == stacked
    ]
    return sorted(leaf.shape[1:] if stacked else leaf.shape for leaf in split)


@pytest.mark.parametrize(
    ("task", "remat", "accumulate"),
    [
        tuple(DOTS.values()),
        pytest.param("pretrain", "full", 2, marks=pytest.mark.slow),
        pytest.param("finetune", "none", 1, marks=pytest.mark.slow),
    ],
)
def test_each_pass_gathers_each_layer_once_and_nothing_else_moves(task, remat, accumulate):
    of = {"task": task, "remat": remat, "accumulate": accumulate}
    params, text = lower(**of)[1]["params"], compiled(**of).as_text()
    assert not re.search(r" (all-to-all|collective-permute|collective-broadcast)", text)
    loops, scores = [], 0
    for shapes in gathers(text).values():
        # A mask is drawn by all scores of the batch at a time: one number for each token.
        weights = [s for s in shapes if s[0] != CLIPS or len(s) != 2]
        scores += sum(math.prod(s) for s in shapes if s not in weights)
        loops.append(sorted(weights))
    assert scores <= 2 * CLIPS * 32
    layers, stacks = kernels(params, stacked=True), 2 if task == "pretrain" else 1
    assert len(layers) == 4 * stacks  # A block has qkv, proj, fc1 and fc2.
    # Forward and backward of each stack: every policy gathers again.
    one = layers[::stacks]
    assert loops.count(one) == 2 * stacks
    rest = sorted(s for weights in loops if weights != one for s in weights)
    assert rest == kernels(params, stacked=False)
    # Nor does an array hold all weights of a stack, of which a device keeps a quarter.
    for shape, depth in itertools.product(set(layers) - {(64, 64)}, (DEPTH, DECODER_DEPTH - 1)):
        assert f"[{depth},{shape[0]},{shape[1]}]" not in text


def test_weights_are_cast_before_they_are_sent():
    step, current = lower(remat="full", dtype="bfloat16")
    whole = re.findall(
        r"sdy\.sharding_constraint %\S+ <@mesh, \[(?:\{\}(?:, )?)+\]> : tensor<([\dx]+)x(\w+)>",
        step.as_text(),
    )
    wanted = {
        shape for stacked in (True, False) for shape in kernels(current["params"], stacked=stacked)
    }
    sent = {(sides(shape), dtype) for shape, dtype in whole if sides(shape) in wanted}
    assert sent == {(shape, "bf16") for shape in wanted}


def test_each_device_updates_its_own_shard():
    """AdamW's square root, which only the second moment takes, works on shards."""
    program, current = compiled(**DOTS), lower(**DOTS)[1]
    roots = re.findall(r" = f32(\[[\d,]*\])\S* sqrt\(", program.as_text())
    found = Counter(math.prod(sides(shape)) for shape in roots)
    params = list(leaves(current["params"]))
    wanted = Counter(leaf.size // 4 if split else leaf.size for leaf, _, split in params)
    # As many of each size as leaves: some are as large, whole, as a shard of another.
    for size in {leaf.size // part for leaf, _, split in params if split for part in (1, 4)}:
        assert found[size] == wanted[size], size
    held = program.memory_analysis().argument_size_in_bytes
    assert held < 0.3 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(current))
