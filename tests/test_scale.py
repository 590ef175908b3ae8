"""What crosses between devices, and what one device holds, read from the compiled step."""

import itertools
import math
import re
from collections import Counter

import jax
import pytest
import tiny

from benchmarks.step import batch_shapes
from mvm import train
from mvm.runtime import sharding

CLIPS, DEPTH, DECODER_DEPTH = 16, 3, 4
SIZES = {"width": 64, "depth": DEPTH, "heads": 4, "decoder_width": 64, "decoder_heads": 4}
SIZES |= {"decoder_depth": DECODER_DEPTH, "dtype": "float32", "attention": "xla"}


def lower(task="pretrain", accumulate=1, **model):
    """A step on four devices before it is compiled, and the shapes of its state."""
    config, mesh = tiny.config_of(task, **SIZES | model), sharding.make_mesh(4)
    config.train.update(accumulate=accumulate, ema_decay=0.99, batch_size=CLIPS * accumulate)
    with jax.set_mesh(mesh):
        placed = train.build_step(config, tiny.SCHEDULE, mesh)
        return placed.step.lower(placed.state, batch_shapes(config)), placed.state


def sides(shape):
    return tuple(int(n) for n in re.findall(r"\d+", shape))


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
    step, current = lower(task, accumulate, remat=remat)
    params, program = current["params"], step.compile()
    text = program.as_text()
    assert not re.search(r" (all-to-all|collective-permute|collective-broadcast)", text)
    gathered = re.findall(r" = [a-z]\w*(\[[\d,]*\])\S* all-gather\(", text)
    assert text.count(" all-gather") == len(gathered)
    gathered = Counter(map(sides, gathered))
    # A mask is drawn by all scores of the batch at a time: one number for each token.
    scores = [shape for shape in gathered if shape[0] == CLIPS and len(shape) == 2]
    assert sum(math.prod(shape) * gathered.pop(shape) for shape in scores) <= 2 * CLIPS * 32
    layers = kernels(params, stacked=True)
    assert len(layers) == (8 if task == "pretrain" else 4)  # qkv, proj, fc1 and fc2 of each stack.
    # In the loops, forward and backward, whatever the policy; outside of them once.
    assert gathered == Counter(2 * layers + kernels(params, stacked=False))
    # Nor does an array hold all weights of a stack, of which a device keeps a quarter.
    for shape, depth in itertools.product(set(layers) - {(64, 64)}, (DEPTH, DECODER_DEPTH - 1)):
        assert f"[{depth},{shape[0]},{shape[1]}]" not in text
    # Nor is a moment gathered, so each device updates its own shard.
    held = program.memory_analysis().argument_size_in_bytes
    assert held < 0.3 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(current))


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
