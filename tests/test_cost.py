"""Costs: the published table, and a count of the matrix products in the traced forward pass."""

import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import recipes
from flax import nnx
from jax import extend

from benchmarks import step
from configs import common
from mvm import masking, objectives, optim, tasks, train
from mvm.runtime import flops as cost
from mvm.runtime import sharding

TUBE_90 = {"name": "tube", "mask_ratio": 0.9}
DUAL = {"name": "dual", "mask_ratio": 0.9}
ADAMAE = {"name": "adamae", "mask_ratio": 0.95}
TUBE_75 = {"name": "tube", "mask_ratio": 0.75}
EVEREST = {"name": "everest", "mask_ratio": 0.9, "keep_ratio": 0.3}
EVEREST_FINETUNE = {"name": "everest", "mask_ratio": 0.4, "keep_ratio": 0.6}
ALL_TOKENS = {"name": ""}


def build(mask: dict[str, Any], num_classes: int = 0, **model: Any) -> tasks.Task:
    c = common.get_config()
    c.task = "finetune" if num_classes else "pretrain"
    c.data.num_classes = num_classes
    c.mask.update(mask)
    c.model.update(model)
    return tasks.build(c)


def small(mask: dict[str, Any], num_classes: int = 0, **model: Any) -> tasks.Task:
    """Two frames by 8 pixels squared a token, 4 x 4 x 4 tokens, widths that share no factor."""
    c = common.get_config()
    c.task = "finetune" if num_classes else "pretrain"
    c.data.update(num_classes=num_classes, num_frames=8, image_size=32)
    c.model.update(size="Ti", width=40, depth=3, heads=5, tubelet=(2, 8, 8))
    c.model.update(decoder_width=20, decoder_heads=2, **model)
    c.mask.update(mask)
    return tasks.build(c)


def test_costs_that_papers_print_beside_those_of_their_recipes() -> None:
    """GMAC of ViT-B, from the shapes of the released models; tests/recipes.py has the others."""
    for depth, mask, gmac in (
        (4, {**EVEREST, "keep_ratio": 0.4}, 21.5),
        (4, {**DUAL, "decoder_ratio": 0.25}, 31.59),
        (4, {**DUAL, "decoder_ratio": 0.75}, 21.03),
        (4, {**ADAMAE, "mask_ratio": 0.8}, 64.6),
        (1, ADAMAE, 29.0),
        (8, ADAMAE, 61.7),
    ):
        found = sum(build(mask, decoder_depth=depth).macs().values()) / 1e9
        assert found == pytest.approx(gmac, rel=0.005), (depth, mask)


def test_everest_saves_what_its_figure_says() -> None:
    """-44.2 % and -65.5 % in pre-training, -45.7 % in fine-tuning, ViT-B."""

    def total(mask: dict[str, Any], num_classes: int = 0) -> int:
        return sum(build(mask, num_classes).macs().values())

    everest = total(EVEREST)
    assert 100 * (1 - everest / total(TUBE_90)) == pytest.approx(44.2, abs=0.1)
    assert 100 * (1 - everest / total(TUBE_75)) == pytest.approx(65.5, abs=0.1)
    saved = 1 - total(EVEREST_FINETUNE, 101) / total(ALL_TOKENS, 101)
    assert 100 * saved == pytest.approx(45.7, abs=0.1)


def walk(jaxpr: Any) -> int:
    """MACs of every product in a jaxpr; the body of a scan counts `length` times."""
    total = 0
    for equation in jaxpr.eqns:
        assert equation.primitive.name not in ("while", "cond") or not walk_all(equation.params)
        assert equation.primitive.name != "conv_general_dilated"
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            summed = math.prod(left[axis] for axis in contracted)
            total += summed * math.prod(equation.outvars[0].aval.shape)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * walk_all(equation.params)
    return total


def walk_all(params: dict[str, Any]) -> int:
    """MACs of all jaxprs among an equation's parameters; how often they run is its own matter."""
    total = 0
    for value in params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            if isinstance(inner, extend.core.ClosedJaxpr):
                total += walk(inner.jaxpr)
            elif isinstance(inner, extend.core.Jaxpr):
                total += walk(inner)
    return total


def traced(task: tasks.Task, num_classes: int) -> tuple[int, int]:
    """MACs per clip of the real forward pass and of forward and backward pass together."""
    batch = 3
    video = jax.ShapeDtypeStruct((batch, 8, 32, 32, 3), jnp.uint8)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def forward(params: Any, key: Any, video: Any) -> Any:
        model = nnx.merge(task.graphdef, params)
        if num_classes:
            return model(video, task.strategy, key).sum()
        out = model(key, video, task.strategy)
        error = objectives.token_error(out.predicted, out.target)
        learns = task.strategy.loss
        return error.sum() + (learns(out.scores, error, out.mask) if learns else 0.0)

    def count(function: Any) -> int:
        macs = walk(jax.make_jaxpr(function)(task.abstract, key, video).jaxpr)
        assert macs % batch == 0
        return macs // batch

    return count(forward), count(jax.value_and_grad(forward))


def logits(task: tasks.Task) -> int:
    """MACs of queries times keys in all blocks: of the forward pass, all that is computed twice."""
    visible = task.strategy.num_visible if task.strategy else task.grid.n
    total = task.encoder.depth * visible**2 * task.encoder.width
    for path, leaf in jax.tree_util.tree_leaves_with_path(task.abstract.get("sampler", {})):
        if optim.path_of(path).endswith("qkv/kernel"):
            total += len(leaf) * task.grid.n**2 * leaf.shape[1]
    if "decoder" in task.abstract:
        size, target = task.decoder, task.strategy.num_target
        n = visible + target
        total += ((size.depth - 1) * n**2 + target * n) * size.width
    return total


def test_executed_macs_are_those_of_the_trace() -> None:
    cases = [({"name": name, "mask_ratio": 0.75}, 0, 3) for name in masking.names()]
    cases += [(EVEREST, 0, 1), (EVEREST_FINETUNE, 7, 4), (ALL_TOKENS, 7, 4)]
    for mask, classes, depth in cases:
        task = small(mask, classes, decoder_depth=depth)
        macs = task.macs(executed=True)
        forward, both = traced(task, classes)
        assert sum(macs.values()) == forward, mask
        # The one thing that train_flops counts and nobody computes: the gradient of the pixels.
        assert cost.train_flops(macs) == 2 * (both - logits(task) + macs["embed"]), mask


def check_whole_step(leaf: str, size: str, task_name: str) -> None:
    """To the last product, but for the gradient of the pixels, at most 2 % that nobody computes."""
    words = [word for word in (size, "" if task_name == "pretrain" else task_name) if word]
    module = importlib.import_module(f"configs.{leaf}")
    config = module.get_config(*([",".join(words)] * bool(words)))
    config.train.batch_size, config.train.accumulate = 8, 1  # The devices of the tests.
    config.model.update(remat="none", attention="xla")
    mesh, batch = sharding.make_mesh(), step.batch_shapes(config)
    with jax.set_mesh(mesh):
        placed = train.place(config, optim.Schedule(1e-3, 0.0, 2, 10), mesh)
        macs = walk(jax.make_jaxpr(placed.step)(placed.state, batch).jaxpr)
    clips = batch["label"].shape[0]
    assert macs % clips == 0
    found = macs // clips - logits(placed.task)  # What is computed twice counts once.
    executed = placed.task.macs(executed=True)
    flops = cost.train_flops(executed)
    assert 2 * (found + executed["embed"]) == flops, (leaf, size, task_name)
    assert flops == pytest.approx(2 * found, rel=0.02)


FEW = ("everest_oscc", "adamae_k400")
"""Their parts are all that there are; the other recipes differ in counts."""


@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_train_flops_are_those_of_the_whole_step(few: bool) -> None:
    sizes = {leaf: size for leaf, size, _ in reversed(recipes.known())}  # One of each leaf.
    for leaf, size, task in recipes.known():
        if task != "evaluate" and sizes[leaf] == size and (leaf in FEW) == few:
            check_whole_step(leaf, size, task)
