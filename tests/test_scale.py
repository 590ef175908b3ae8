"""What crosses between devices, and what one device holds, read from the compiled step."""

import functools
import itertools
import json
import math
import os
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from configs import common
from mvm import train
from mvm.models import vit
from mvm.optim import Schedule
from mvm.runtime import chip, sharding

pytestmark = pytest.mark.xdist_group("scale")  # They share compiled steps.

ROOT = pathlib.Path(__file__).resolve().parent.parent

SCHEDULE = Schedule(peak=1e-2, end=0.0, warmup_steps=2, total_steps=10)
CLIPS, DEPTH, DECODER_DEPTH = 16, 3, 4
DOTS = {"task_name": "pretrain", "accumulate": 1, "clips": CLIPS, "remat": "dots"}
SPLIT = {"attention/qkv", "attention/proj", "mlp/fc1", "mlp/fc2"}  # Kernels of a block.


def config_of(task, **model):
    c = common.finish(common.get_config(), f"{task},smoke")
    c.data.num_frames = 4
    c.model.update(width=64, depth=DEPTH, heads=4, dtype="float32", attention="xla")
    c.model.update(decoder_width=64, decoder_heads=4, decoder_depth=DECODER_DEPTH)
    c.model.update(**model)
    if task == "finetune":
        common.finetuning(c)
        c.mask.update(keep_ratio=0.6, mask_ratio=0.4)
    return c


class Lowered(NamedTuple):
    """A step before it is compiled, and the shapes of its state."""

    step: jax.stages.Lowered
    state: dict


@functools.cache
def lower(task_name="pretrain", fsdp=8, accumulate=1, clips=CLIPS, **model):
    config, mesh = config_of(task_name, **model), sharding.make_mesh(fsdp)
    config.train.update(accumulate=accumulate, ema_decay=0.99)
    with jax.set_mesh(mesh):
        placed = train.build_step(config, SCHEDULE, mesh)
        batch = {
            "video": jax.ShapeDtypeStruct((clips, 4, 32, 32, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((clips,), jnp.int32),
        }
        return Lowered(placed.step.lower(placed.state, batch), placed.state)


@functools.cache
def compiled(*args, **kwargs):
    return lower(*args, **kwargs).step.compile()


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
        if ("blocks/" in name) == stacked and any(sharding.spec(name, leaf.shape, 8)):
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
    params, text = lower(**of).state["params"], compiled(**of).as_text()
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
    # Nor does an array hold all weights of a stack, of which a device keeps an eighth.
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
    program, current = compiled(**DOTS), lower(**DOTS).state
    roots = re.findall(r" = f32\[([\d,]*)\]\S* sqrt\(", program.as_text())
    sizes = {math.prod(int(n) for n in s.split(",") if n) for s in roots}
    for path, leaf in jax.tree_util.tree_leaves_with_path(current["params"]):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if any(sharding.spec(name, leaf.shape, 8)):
            assert leaf.size // 8 in sizes, name
            assert leaf.size not in sizes, name
    held = program.memory_analysis().argument_size_in_bytes
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(current))
    assert held < 0.3 * whole


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_split_weights_keep_no_more_of_a_block_than_whole_ones(remat):
    """For the backward pass, beside the stack's own weights; by hand for whole ones."""
    size, clips, tokens = vit.Size(64, DEPTH, 4), CLIPS, 40

    def kept(fsdp):
        run = vit.Run(remat=remat, gather=sharding.gather if fsdp > 1 else None)
        make = functools.partial(vit.stack, DEPTH, size, "xavier", run)
        graphdef, params = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
        x = jax.ShapeDtypeStruct((clips, tokens, 64), jnp.float32)

        def apply(params, x):
            return vit.apply_stack(nnx.merge(graphdef, params), x, run)

        with jax.set_mesh(sharding.make_mesh(fsdp)):
            pullback = jax.eval_shape(lambda *given: jax.vjp(apply, *given)[1], params, x)
        leaves = jax.tree.leaves(pullback)
        return sum(leaf.size for leaf in leaves if leaf.shape[1:3] == (clips, tokens))

    width = DEPTH * clips * tokens * 64
    # Tokens before both halves, queries, keys, values, the hidden layer; what attention gave.
    assert kept(1) == {"none": 10, "dots": 9, "full": 1}[remat] * width
    assert width <= kept(8) <= kept(1)


@pytest.mark.slow
def test_accumulation_holds_one_more_set_of_gradients_however_many_parts():
    clips = 8  # Of a part.
    of = {parts: {"fsdp": 1, "accumulate": parts, "clips": clips * parts} for parts in (1, 2, 4)}
    temporary = {parts: chip.planned(compiled(**of[parts]))[0] for parts in of}
    gradients = sum(leaf.size * 4 for leaf in jax.tree.leaves(lower(**of[1]).state["params"]))
    video = 4 * 32 * 32 * 3  # Bytes of a part's clips on a device.
    assert temporary[2] - temporary[1] < 1.2 * gradients + 4 * video
    assert temporary[4] - temporary[2] < 0.1 * gradients + 8 * video


# --- benchmarks.plan -----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_giant_fits_on_64_devices_of_80_gb(tmp_path):
    out = tmp_path / "plan.json"
    command = [sys.executable, "-m", "benchmarks.plan", "--json", str(out)]
    command += ["--config", "configs/videomaev2_hybrid.py:g"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    subprocess.run(command, cwd=ROOT, env=env, check=True)
    numbers = json.loads(out.read_text())
    assert numbers["clips"] == 8192
    # Float32: four bytes of 1.03 billion weights over 64 devices, and two moments of each.
    assert numbers["params_gb"] == pytest.approx(4 * numbers["parameters"] / 64e9, rel=0.05)
    assert numbers["moments_gb"] == pytest.approx(2 * numbers["params_gb"], rel=1e-3)
    assert numbers["total_gb"] < 80
