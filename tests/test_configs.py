"""Every recipe loads and is locked, speaks when misused, and the first ones are spelled out."""

import functools
import importlib
import json
import re

import pytest
import recipes

from configs import common
from mvm import config, tasks, train
from mvm import sweep as stages

LEAVES = sorted({leaf for leaf, _, _ in recipes.known()})
TASKS = {
    leaf: tuple(
        sorted({t for name, _, t in recipes.known() if name == leaf}, key=common.TASKS.index)
    )
    for leaf in LEAVES
}


@functools.cache
def load(leaf, *argument):
    """The recipe as the command line gets it; without an argument, its default."""
    return importlib.import_module(f"configs.{leaf}").get_config(*argument)


def keys(config):
    return set(config.to_dict()) | {
        f"{k}.{inner}" for k, v in config.to_dict().items() if isinstance(v, dict) for inner in v
    }


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_variant_is_locked_and_has_the_common_keys_alone(leaf):
    variants = [(size, task) for name, size, task in recipes.known() if name == leaf]
    for size, task, *smoke in (*variants, *((*one, "smoke") for one in variants)):
        words = (size, task, *smoke)
        c = load(leaf, ",".join(word for word in words if word))
        assert (c.task, c.evaluate) == (("finetune", True) if task == "evaluate" else (task, False))
        assert keys(c) == keys(common.get_config())
        assert c.is_locked
        assert c.name.endswith("_smoke") == ("smoke" in words)
        alone = task == "pretrain" or (task == "finetune" and "smoke" in words)
        assert bool(c.init_from) != alone
        with pytest.raises(AttributeError):
            c.no_such_key = 1
        with pytest.raises(AttributeError):
            c.model.no_such_key = 1
        with pytest.raises((AttributeError, KeyError)):
            c.update({"optim": {"no_such_key": 1}})


@pytest.mark.parametrize("leaf", LEAVES)
def test_the_default_is_the_first_task_and_size_and_smoke_alone_too(leaf):
    module = importlib.import_module(f"configs.{leaf}")
    size = getattr(module, "SIZES", ("",))[0]
    first = ",".join(word for word in (size, TASKS[leaf][0]) if word)
    assert load(leaf).to_dict() == load(leaf, "").to_dict() == load(leaf, first).to_dict()
    assert load(leaf, "smoke").to_dict() == load(leaf, f"{first},smoke").to_dict()


@pytest.mark.parametrize("leaf", LEAVES)
def test_an_unknown_variant_names_the_known_ones(leaf):
    sizes = getattr(importlib.import_module(f"configs.{leaf}"), "SIZES", ())
    known = f"choose {', '.join(TASKS[leaf])} or smoke"
    known += f", and a size ({', '.join(sizes)})" if sizes else ""
    for argument in ("finetun", "pretrain,finetune", "smoke,test", "XL", "S,B"):
        message = re.escape(f"variant {argument!r} is unknown; {known}")
        with pytest.raises(ValueError, match=message):
            load(leaf, argument)


@pytest.mark.parametrize(
    ("leaf", "variant", "records", "peak", "end", "warmup", "total"),
    [
        ("everest_ucf101", "pretrain", 9537, 7.5e-4, 7.5e-6, 40 * 49, 156_800),
        ("everest_ucf101", "finetune", 9537, 5e-4, 5e-7, 5 * 74, 7_400),
        ("everest_hmdb51", "pretrain", 3570, 7.5e-4, 7.5e-6, 40 * 18, 86_400),
        ("everest_hmdb51", "finetune", 3570, 5e-4, 5e-7, 5 * 27, 1_350),
        ("videomae_ucf101", "pretrain", 9537, 2.25e-4, 7.5e-6, 40 * 49, 156_800),
        ("videomae_ucf101", "finetune", 9537, 2.5e-4, 5e-6, 5 * 74, 7_400),
    ],
)
def test_the_released_schedules(leaf, variant, records, peak, end, warmup, total):
    plan = train.planned(load(leaf, variant), records)
    assert plan.total_steps == plan.schedule.total_steps == total
    assert plan.schedule.warmup_steps == warmup
    assert plan.schedule.peak == pytest.approx(peak)
    assert plan.schedule.end == pytest.approx(end)


def test_a_list_smaller_than_a_batch_is_refused_with_the_cure():
    with pytest.raises(tasks.UserError, match=r"larger than the 100 .*train.batch_size=100"):
        train.planned(load("everest_ucf101", "pretrain"), 100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"size": "XL"}}, "model.size='XL' is unknown; choose Ti, S, B, L, H"),
        ({"model": {"heads": 7}}, "width 48 is not divisible by its 7 heads"),
        ({"model": {"decoder_heads": 5}}, "model.decoder: width 32 is not divisible by its 5"),
        (
            {"model": {"remat": "all"}},
            "model.remat='all' is unknown; choose none, dots, offload, full",
        ),
        ({"model": {"heads": -1}}, "model.heads=-1; choose 0 to 1024"),
        ({"model": {"tubelet": (2, 0, 8)}}, "model.tubelet=(2, 0, 8); choose 1 or more"),
        ({"optim": {"base_lr": float("nan")}}, "optim.base_lr=nan; choose 0 or more"),
        ({"data": {"num_frames": 10**9}}, "data.num_frames=1000000000; choose 1 to 4096"),
        ({"data": {"num_frames": 15}}, "15 frames of 32x32 px is not divisible"),
        ({"mask": {"name": "everst"}}, "did you mean 'everest'"),
        ({"mask": {"name": ""}}, "pre-training needs a mask with targets"),
        ({"mask": {"keep_ratio": 0.6, "mask_ratio": 0.4}}, "pre-training needs a mask with"),
        ({"task": "finetune", "data": {"num_classes": 1}}, "data.num_classes=1; a classifier"),
    ],
)
def test_values_that_do_not_fit_are_one_line(changes, message):
    c = load("everest_ucf101", "smoke").copy_and_resolve_references()
    c.update(changes)
    with pytest.raises(tasks.UserError) as caught:
        config.validate(c) or tasks.build(c)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("argument", ["", "compare"])
def test_the_stages_of_the_demo_build(argument, tmp_path):
    c = load("demo", argument)
    assert c.is_locked
    assert keys(c) - {k for k in keys(c) if k.startswith("stages.")} == keys(common.get_config())
    built = {name: stage.config for name, stage in stages.planned(c, tmp_path).items()}
    assert set(built) == set(c.stages)
    seen = {}
    for stage in built.values():
        seen.setdefault((stage.task, stage.mask.name), stage)
    for stage in seen.values():
        assert tasks.build(stage).grid.n > 0
    for name, changes in c.stages.items():  # A stage comes after the one it starts from.
        source = changes.to_dict().get("init_from")
        if source in built:
            assert list(built).index(source) < list(built).index(name)


def test_a_configuration_older_than_a_key_has_its_default():
    c = load("everest_ucf101", "finetune")
    old = json.loads(c.to_json_best_effort())
    del old["data"]["fps"], old["eval"]
    old["model"]["gone"] = 1
    again = config.completed(old)
    assert again == c
    assert (again.model.tubelet, again.data.fps) == ((2, 16, 16), 0.0)
    assert config.changes(old, again) == {"never": {}, "always": {}, "asked": {}}


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("data", "flip", "false"),
        ("data", "num_frames", 16.7),
        ("data", "num_frames", True),
        ("model", "size", None),
        ("model", "tubelet", [2, "16", 16]),
    ],
)
def test_a_value_of_another_type_is_refused(group, key, value):
    with pytest.raises(tasks.UserError, match=rf"^{group}\.{key}=.* is no \w+$"):
        config.completed({group: {key: value}})
    assert config.completed({"data": {"fps": 25}}).data.fps == 25.0


def test_changes_are_sorted_by_whether_a_run_may_resume_with_them():
    was = load("everest_ucf101", "finetune")
    now = was.copy_and_resolve_references()
    now.update({"seed": 1, "train": {"keep": 5, "epochs": 7.0}, "model": {"tubelet": (2, 8, 8)}})
    assert config.changes(was, now) == {
        "never": {"seed": "0 -> 1", "model.tubelet": "[2, 16, 16] -> [2, 8, 8]"},
        "asked": {"train.epochs": "100.0 -> 7.0"},
        "always": {"train.keep": "2 -> 5"},
    }


def test_a_key_that_is_gone_may_only_have_had_what_is_left():
    old = {"model": {"unroll": 4}, "mask": {"sampler_kind": "block"}, "optim": {"b1": 0.9}}
    assert "unroll" not in config.completed(old).model
    for gone in ({"mask": {"decoder_mask": "frame"}}, {"optim": {"b1": 0.8}}):
        with pytest.raises(
            UserError, match=r"(mask\.decoder_mask='frame'|optim\.b1=0.8) is no option"
        ):
            config.completed(gone)
        with pytest.raises(UserError, match="is no option any more"):
            config.changes(gone, config.defaults())
