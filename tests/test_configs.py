"""The list of keys, how a recipe is misused, and configurations of older runs."""

import importlib
import itertools
import json
import pathlib

import pytest

from configs import common
from mvm import config, tasks
from mvm.types import UserError

LEAVES = sorted({p.stem for p in pathlib.Path(common.__file__).parent.glob("[a-z]*.py")})


def load(leaf, *words):
    """The recipe as the command line gets it; without an argument, its default."""
    argument = [",".join(word for word in words if word)] if words else []
    return importlib.import_module(f"configs.{leaf}").get_config(*argument)


def variants():
    """(leaf, its recipe, size, task) of all leaves, also of those that no table lists."""
    for leaf in LEAVES:
        recipe = getattr(importlib.import_module(f"configs.{leaf}"), "get_config", None)
        if isinstance(recipe, common.Recipe):
            yield from ((leaf, recipe, s, t) for s in recipe.sizes for t in recipe.tasks)


def test_every_variant_is_locked_and_valid_and_starts_from_a_run_of_some_recipe():
    runs, starts = set(), set()
    for leaf, _, size, task in variants():
        for smoke in ("", "smoke"):
            c = load(leaf, size, task, smoke)
            assert c.evaluate == (task == "evaluate")
            assert c.is_locked
            assert c.name.endswith("_smoke") == bool(smoke)
            config.validate(c)
            assert config.completed(json.loads(c.to_json_best_effort())).model == c.model
            runs.add(c.name)
            if not smoke and "/" not in c.init_from.removeprefix("runs/"):
                starts.add(c.init_from.removeprefix("runs/"))
    assert starts - {""} <= runs
    with pytest.raises(AttributeError):
        c.model.no_such_key = 1


def test_the_default_is_the_first_task_and_size_and_smoke_alone_too():
    for leaf, recipe in {leaf: recipe for leaf, recipe, *_ in variants()}.items():
        first = (recipe.sizes[0], recipe.tasks[0])
        assert load(leaf).to_dict() == load(leaf, "").to_dict() == load(leaf, *first).to_dict()
        assert load(leaf, "smoke").to_dict() == load(leaf, *first, "smoke").to_dict()
        known = {*recipe.tasks, *recipe.sizes, *itertools.chain(*recipe.words.values()), "smoke"}
        for argument in ("finetun", "pretrain,finetune", "smoke,test", "XL", "S,B"):
            with pytest.raises(ValueError, match=f"{argument!r} is unknown; choose ") as error:
                load(leaf, argument)
            listed = str(error.value).partition("choose ")[2].split(", ")
            assert known - {""} == {*listed} - {"one of a kind"}


def test_a_mixture_and_options_of_a_task_are_checked():
    c = load("videomaev2_hybrid", "B,smoke").copy_and_resolve_references()
    assert c.data.mix.ssv2.stride == 2
    config.validate(c)
    with c.unlocked():
        c.data.mix.ssv2.wieght = 2.0
    with pytest.raises(UserError, match=r"data\.mix\.ssv2\.wieght .*weight"):
        config.validate(c)
    c = load("everest_ucf101", "smoke").copy_and_resolve_references().unlock()
    c.options.head = "linear"
    with pytest.raises(UserError, match=r"options\.head.* pretrain"):
        tasks.build(c)


def test_an_older_configuration_is_read():
    """A key that it lacks has its default, one that is gone is left out."""
    c = load("everest_ucf101", "finetune")
    old = json.loads(c.to_json_best_effort())
    del old["data"]["fps"], old["eval"], old["options"], old["data"]["mix"]
    old["model"]["gone"] = 1
    again = config.completed(old)
    assert again == c
    assert (again.model.tubelet, again.data.fps) == ((2, 16, 16), 0.0)
    assert config.changes(old, again) == {"never": {}, "always": {}, "asked": {}}


def test_a_value_of_another_type_is_refused():
    for group, key, value in (
        ("data", "flip", "false"),
        ("data", "num_frames", 16.7),
        ("model", "size", None),
        ("model", "position_grid", [8, 14]),
    ):
        with pytest.raises(UserError, match=rf"^{group}\.{key}="):
            config.completed({group: {key: value}})
    assert config.completed({"data": {"fps": 25}}).data.fps == 25.0
