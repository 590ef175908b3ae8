"""The benchmark of exact savings: each plain version is another program, for the same result."""

import json
import math
from collections import Counter
from contextlib import nullcontext

import jax
import pytest
from flax import nnx

from benchmarks import plain, results, savings, step
from benchmarks.in_turn import SideError
from configs import everest_ucf101, videomae_ucf101
from mvm import placement, sharding, tasks, tubelets
from mvm.models import attention, vit
from mvm.models.autoencoder import Autoencoder
from mvm.models.encoder import Encoder
from mvm.types import UserError

CLIPS = 2


def tiny():
    """32 tokens of 384 pixels, 3 visible and 6 targets; one encoder block, three of the decoder."""
    config = everest_ucf101.get_config("smoke")
    config.data.num_frames, config.train.batch_size = 4, CLIPS
    config.model.depth, config.model.decoder_depth = 1, 3
    return config


def walk(jaxpr):
    """All equations, those of inner jaxprs too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in savings._inside(equation):
            yield from walk(inner)


@pytest.fixture(scope="module")
def program():
    """The gradient of a step's loss with one saving off, as a jaxpr; "" leaves all on."""
    off = {saving.name: saving.off for saving in plain.SAVINGS}
    key, made = jax.eval_shape(lambda: jax.random.key(0)), {}

    def of(name):
        if name not in made:
            config = tiny()
            with off.get(name, nullcontext)():
                task = tasks.build(config)
                loss = tasks.loss_of(config, task)

                def objective(params, key, batch):
                    return loss(nnx.merge(task.graphdef, params), key, batch)[0]

                trace = jax.make_jaxpr(jax.value_and_grad(objective))
                made[name] = trace(task.abstract, key, step.batch_shapes(config)).jaxpr
        return made[name]

    return of


# MACs of the step's products beyond those of a run, for one clip: 32 tokens, widths 48 and 32.
TOKENS, VISIBLE, TARGET, WIDE, NARROW = 32, 3, 6, 48, 32
SEEN = VISIBLE + TARGET
LAST = 3 * (VISIBLE * 10 * NARROW**2 + 2 * VISIBLE * SEEN * NARROW) + VISIBLE * SEEN * NARROW
# The products of queries and keys, which are computed again because softmax is.
AGAIN = VISIBLE**2 * WIDE + 2 * SEEN**2 * NARROW + TARGET * SEEN * NARROW


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("embed", 2 * (TOKENS - VISIBLE) * 384 * WIDE),  # Forward, and the weights' gradient.
        ("last_block", LAST),
        ("again", -AGAIN),
        ("first_block", 3 * 3 * NARROW**2 * (TOKENS // CLIPS - TARGET)),
        ("targets", 0),
        ("bytes", 0),
        ("qkv", 0),
        ("attention", 0),
        ("unroll", 0),
    ],
)
def test_products_of_the_plain_versions(program, name, macs):
    more = savings.product_flops(program(name)) - savings.product_flops(program(""))
    assert more == 2 * CLIPS * macs


def count(jaxpr, names):
    return sum(equation.primitive.name in names for equation in walk(jaxpr))


def made(jaxpr, shape):
    """How many arrays of that shape are computed."""
    return sum(out.aval.shape == shape for equation in walk(jaxpr) for out in equation.outvars)


def test_plain_versions_are_other_programs(program):
    on = program("")
    # Targets: pixels by channel, of six tubelets or of all.
    some, every = (CLIPS, TARGET, 128, 3), (CLIPS, TOKENS, 128, 3)
    assert made(on, some)
    assert not made(on, every)
    assert made(program("targets"), every)
    # Bytes: tubelets are cut, that is transposed, as they come or as floats.
    cut = lambda jaxpr: {  # noqa: E731
        str(e.outvars[0].aval.dtype)
        for e in walk(jaxpr)
        if e.primitive.name == "transpose" and e.outvars[0].aval.ndim == 8
    }
    assert (cut(on), cut(program("bytes"))) == ({"uint8"}, {"float32"})
    # Forward and two backward: two more in both loops' bodies, one more in the last block.
    assert count(program("qkv"), ("dot_general",)) - count(on, ("dot_general",)) == 3 * 5
    # Nothing is marked to be computed again.
    assert count(on, ("remat2", "checkpoint", "remat")) > 0
    assert count(program("again"), ("remat2", "checkpoint", "remat")) == 0
    # Loops over layers, forward and backward, and how much of each is unrolled.
    loops = lambda jaxpr: Counter(  # noqa: E731
        (e.params["length"], e.params["unroll"]) for e in walk(jaxpr) if e.primitive.name == "scan"
    )
    assert loops(on) == {(1, 1): 2, (2, 1): 2}
    assert loops(program("unroll")) == {(1, 1): 2, (2, 2): 2}
    kinds = lambda jaxpr: Counter(e.primitive.name for e in walk(jaxpr))  # noqa: E731
    assert kinds(program("attention")) != kinds(on)


def test_a_step_without_donation_keeps_its_state():
    config = tiny()
    mesh = step.mesh_of(1, devices=1)
    off = {saving.name: saving.off for saving in plain.SAVINGS}["donation"]
    with jax.set_mesh(mesh):
        schedule = tasks.plan(config, num_records=100).schedule
        state = placement.build(config, schedule, mesh).state
        where = sharding.of_batch(mesh)
        batch = {k: sharding.at(x, where) for k, x in step.batch_shapes(config).items()}
        donated = [
            [x.donated for x in jax.tree.leaves(found.lower().args_info)]
            for found in (
                savings.traced(config, schedule, mesh, state, batch, context())
                for context in (nullcontext, off)
            )
        ]
    leaves = len(jax.tree.leaves(state))
    assert list(map(sum, donated)) == [leaves, 0]


def test_nothing_stays_replaced():
    def now():
        owners = (tubelets, tasks, vit, attention, vit.Block, vit.Attention, Encoder, Autoencoder)
        return [dict(vars(owner)) for owner in owners], jax.jit

    before = now()
    for saving in plain.SAVINGS:
        with saving.off():
            assert now() != before, saving.name
        assert now() == before, saving.name


def test_only_what_a_step_has():
    config = tiny()
    names = lambda config, *only: [s.name for s in plain.chosen(config, only)]  # noqa: E731
    assert names(config) == [saving.name for saving in plain.SAVINGS]
    assert names(config, "qkv", "embed") == ["qkv", "embed"]
    config.model.attention = "xla"
    assert "attention" not in names(config)
    classifier = videomae_ucf101.get_config("finetune,smoke")
    assert names(classifier) == ["bytes", "qkv", "again", "attention", "donation", "unroll"]
    with pytest.raises(
        UserError, match=r"--only=targets: .* has no such saving; choose from bytes"
    ):
        plain.chosen(classifier, ["targets"])


def test_what_cannot_be_measured():
    config = tiny()
    config.task = "evaluate"
    with pytest.raises(UserError, match="task='evaluate' has no training step"):
        savings.measure(config, 1)
    config = tiny()
    config.train.batch_size = 3
    with pytest.raises(UserError, match="batch_size=3 is not a multiple of 8 devices"):
        savings.measure(config, 1)


def test_a_saving_that_is_not_exact_is_named():
    same = {"loss": 1.0, "grad_norm": 2.0}
    savings.check_exact({savings.ON: same, "embed": {**same, "grad_norm": 2.0001}}, 1e-5)
    for other in (
        {**same, "loss": 1.0001},
        {**same, "grad_norm": 2.001},
        {**same, "loss": math.nan},
    ):
        with pytest.raises(SideError, match=r"qkv: (loss|grad_norm) of the first step is"):
            savings.check_exact({savings.ON: same, "embed": same, "qkv": other}, 1e-5)


@pytest.mark.slow
def test_they_are_exact(tmp_path):
    """Each program's first step is held against the run's; see `savings.check_exact`."""
    config, only = tiny(), ["embed", "targets", "last_block", "again", "first_block"]
    config.train.batch_size = 8
    numbers = savings.measure(config, 1, only)
    on, *others = numbers["rows"]
    assert [row["off"] for row in others] == only
    for row in others:
        assert row["loss"] == pytest.approx(on["loss"], rel=1e-6)
        assert row["grad_norm"] == pytest.approx(on["grad_norm"], rel=1e-5)
        assert row["times"]["step_min_s"] == row["step_min_s"] / on["step_min_s"]
    assert set(on["times"].values()) == {1.0}
    text = savings.table(numbers)
    assert len(text.splitlines()) == 2 + 1 + len(only)
    path = tmp_path / "savings.json"
    results.write(str(path), numbers, text, lambda path: savings.draw(path, numbers))
    assert json.loads(path.read_text())["clips"] == 8
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
