"""`optim.train`: what is trained of a model, and what leaves a run that adapts its encoder."""

import jax
import numpy as np
import pytest
from models_on_disk import random_params, refused, same, write_run
from models_on_disk import video as random_video

import mvm
from configs import common
from mvm import convert as command
from mvm import initial, step, tasks
from mvm.models import lora
from mvm.optim import Schedule, adamw, path_of
from mvm.runtime import sharding
from mvm.runtime.checkpoint import leaves
from mvm.weights import convert, files

SCHEDULE = Schedule(1e-2, 1e-2, 0, 10)


def config_of(train, **optim):
    c = common.finish(common.get_config(), "finetune,smoke")
    c.data.update(num_frames=4, image_size=16)
    c.mask.name = ""
    c.optim.update(train=train, **optim)
    return c


def batch_of(seed=0):
    return {"video": random_video(8, 4, 16, 16, seed=seed), "label": np.arange(8)}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A run of two steps from the weights of another one; its task, first and last state."""
    folder, mesh = tmp_path_factory.mktemp("run"), sharding.make_mesh(devices=jax.devices()[:1])
    config = config_of("lora", lora_rank=4, lora_alpha=8.0)
    with jax.set_mesh(mesh):
        task = tasks.build(config)
        optimizer = adamw(SCHEDULE, b2=0.999, weight_decay=0.0, layer_decay=0.5, depth=task.depth)
        program = step.jitted(task, optimizer, SCHEDULE, mesh)
        still = lambda path, leaf: leaf * ("/up/" not in path_of(path))  # noqa: E731
        start = jax.tree_util.tree_map_with_path(still, random_params(task.abstract))
        base = lora.without(start)
        state = program.init()
        state["params"], state["frozen"] = task.parted(start)
        before = jax.device_get(state)
        for number in range(2):
            state, _ = program.step(state, sharding.put(batch_of(number), mesh))
        write_run(folder, config, state)
    return folder, task, base, before, jax.device_get(state)


def test_only_what_is_trained_has_moments_and_changes(adapted):
    _, task, _, before, after = adapted
    paths = leaves(task.abstract)
    low = {path for path in paths if lora.is_low_rank(path)}
    assert {path.split("/")[3] for path in low} == {"qkv_lora", "proj_lora"}
    head = {path for path in paths if path.startswith(("fc_norm/", "head/"))}
    trained, frozen = leaves(after["params"]), leaves(after["frozen"])
    assert set(trained) == low | head
    assert set(frozen) == set(leaves(lora.without(task.abstract))) - head
    counts = [leaf.size for leaf in jax.tree.leaves(after["opt"])]
    assert sum(counts) - 2 == 2 * step.count(after["params"])  # Two counters, two moments.
    same(frozen, leaves(before["frozen"]))
    for path, leaf in leaves(before["params"]).items():
        assert (trained[path] != leaf).any(), path
    only_head = tasks.build(config_of("head"))
    assert set(filter(only_head.trains, leaves(only_head.abstract))) == head


def test_it_starts_as_the_function_that_it_adapts_and_becomes_that_of_its_sum(adapted):
    _, task, base, before, after = adapted
    video, plain = batch_of()["video"], tasks.build(config_of("all"))
    low, plain = (jax.jit(lambda p, t=t: t.model(p, {})(video)) for t in (task, plain))
    first, last = (tasks.joined(state["params"], state["frozen"]) for state in (before, after))
    np.testing.assert_array_equal(low(first), plain(base))
    np.testing.assert_allclose(low(last), plain(lora.merged(last, 8.0 / 4)), atol=2e-5)
    assert np.abs(low(last) - plain(base)).max() > 0.1


def test_what_leaves_the_run_has_plain_weights(adapted, tmp_path):
    folder, task, _, _, after = adapted
    plain = leaves(lora.merged(tasks.joined(after["params"], after["frozen"]), 8.0 / 4))
    # What another run starts from, plain or adapting anew.
    for train in ("all", "lora"):
        like = tasks.build(config_of(train)).abstract
        same(leaves(initial.params(str(folder), like)), plain)
    command.translate(folder, tmp_path / "a.safetensors")
    command.translate(folder, tmp_path / "hub", "huggingface")
    command.translate(folder, tmp_path / "copy")
    like = lora.without(task.abstract)
    for form in ("a.safetensors", "hub"):
        found, _ = convert.to_params(files.read(tmp_path / form).weights, like)
        same(leaves(found), plain)
    for form in (folder, tmp_path / "copy"):
        same(jax.device_get(leaves(mvm.load(form).network.params)), plain)
    assert mvm.load(tmp_path / "copy").config.optim.train == "all"
    with pytest.raises(convert.ConvertError, match=r"_lora/.*has no official name"):
        convert.from_params(after["params"])


def test_values_that_cannot_be_are_one_line():
    for task, train, said in (
        ("finetune", "half", r"optim\.train='half'.*all, head, lora"),
        ("probe", "lora", r"optim\.train=lora: task probe trains no encoder"),
    ):
        config = config_of(train)
        config.task = task
        refused(said, lambda c: mvm.config.validate(c) or tasks.build(c), config)
