"""Schedules, layer-wise decay and weight decay are the released ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from mvm import optim, tasks
from mvm.weights import convert


def test_the_schedule_is_the_released_one(shared):
    golden = np.load(shared / "golden" / "schedule.npz", allow_pickle=False)
    for name, warmup in (("lr", 35), ("lr_warmup_steps10", 10), ("lr_warmup0", 0)):
        schedule = optim.Schedule(1e-3, 1e-5, warmup, 140)
        rates = jax.vmap(schedule)(jnp.arange(140))
        np.testing.assert_allclose(rates, golden[name], rtol=2e-6, atol=1e-10)


GROUPS = {
    "videomae_finetune_depth12_ld0.75": {},
    "videomaev2_finetune_cos_layerscale_depth12_ld0.75": {
        "cosine_attention": True,
        "layer_scale": 0.1,
    },
    "videomae_pretrain": {},
    "everest_pretrain": {},
    "adamae_pretrain": {},
    "videomaev2_pretrain_cos": {"cosine_attention": True},
}


@pytest.mark.parametrize("case", GROUPS)
def test_parameter_groups_are_the_released_ones(shared, case):
    golden = np.load(shared / "golden" / "param_groups.npz", allow_pickle=False)
    names = [str(name) for name in golden[f"{case}/names"]]
    tuned, c = "finetune" in case, common.get_config()
    encoder_depth, decoder_depth = (
        len({name.split(".")[2] for name in names if name.startswith(f"{part}.blocks.")})
        for part in ("encoder", "decoder")
    )
    encoder_depth = encoder_depth or 12
    c.task, c.data.num_classes = ("finetune", 5) if tuned else ("pretrain", 0)
    c.mask.name = "" if tuned else "adamae" if case.startswith("adamae") else "everest"
    c.model.update(width=16, depth=encoder_depth, heads=2, **GROUPS[case])
    c.model.update(decoder_width=8, decoder_heads=2, decoder_depth=decoder_depth or 1)
    abstract = tasks.build(c).abstract

    def named(function):
        """What it says of each path, by official name."""

        def spread(path, leaf):
            said = function(optim.path_of(path), leaf)
            return np.broadcast_to(np.asarray(said, np.float32), leaf.shape)

        return convert.from_params(jax.tree_util.tree_map_with_path(spread, abstract))

    rate = 0.75 if tuned else 1.0
    scales = named(partial(optim.layer_rate, decay=rate, depth=encoder_depth))
    decays = named(lambda path, leaf: optim.decays(path))
    assert sorted(scales) == sorted(names)
    for name, rate, decayed in zip(names, golden[f"{case}/lr_scale"], golden[f"{case}/decayed"]):
        np.testing.assert_allclose(scales[name], rate, rtol=1e-6, err_msg=name)
        np.testing.assert_array_equal(decays[name], decayed, err_msg=name)
