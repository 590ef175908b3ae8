"""Costs: a count of the matrix products in the traced forward pass."""

import math

import jax
import pytest
import tiny
from jax import extend

from benchmarks import step
from configs import common
from mvm import masking, optim, train
from mvm.runtime import flops, sharding


def small(mask, num_classes, decoder_depth):
    """Two frames by 8 pixels squared a token, 4 x 4 x 4 tokens, widths that share no factor."""
    c = common.get_config()
    c.task = "finetune" if num_classes else "pretrain"
    c.data.update(num_classes=num_classes, num_frames=8, image_size=32)
    c.model.update(size="Ti", width=40, depth=3, heads=5, tubelet=(2, 8, 8), remat="none")
    c.model.update(decoder_width=20, decoder_heads=2, decoder_depth=decoder_depth, attention="xla")
    c.mask.update(mask)
    c.train.update(batch_size=8, accumulate=1)  # The devices of the tests.
    return c


def walk(jaxpr):
    """MACs of every product in a jaxpr; the body of a scan counts `length` times."""
    total = 0
    for equation in jaxpr.eqns:
        inner = sum(map(walk, extend.core.jaxprs_in_params(equation.params)))
        assert equation.primitive.name not in ("while", "cond") or not inner
        assert equation.primitive.name != "conv_general_dilated"
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            summed = math.prod(left[axis] for axis in contracted)
            total += summed * math.prod(equation.outvars[0].aval.shape)
        total += inner * (equation.params["length"] if equation.primitive.name == "scan" else 1)
    return total


def logits(task):
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


@pytest.mark.slow
def test_train_flops_are_those_of_the_whole_step_with_every_mask():
    """To the last product, but for the gradient of the pixels, which nobody computes."""
    cases = [({"name": name, "mask_ratio": 0.75}, 0, 3) for name in masking.names()]
    cases += [({"name": "everest"}, 0, 1), ({"name": ""}, 7, 4)]
    cases += [({"name": "everest", "mask_ratio": 0.4, "keep_ratio": 0.6}, 7, 4)]
    for case in cases:
        config, mesh = small(*case), sharding.make_mesh()
        with jax.set_mesh(mesh):
            placed = train.build_step(config, tiny.SCHEDULE, mesh)
            traced = jax.make_jaxpr(placed.step)(placed.state, step.batch_shapes(config))
        macs, rest = divmod(walk(traced.jaxpr), 8)
        assert rest == 0
        executed = placed.task.macs(executed=True)
        computed = macs - logits(placed.task) + executed["embed"]  # Twice computed, once told.
        assert 2 * computed == flops.train_flops(executed, placed.task.untrained), case
