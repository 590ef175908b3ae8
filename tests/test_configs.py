"""Every recipe loads, is locked and builds; the released ones have the released values."""

import functools
import importlib
import pathlib

import pytest

from configs import common
from mvm import stages, state, tasks

FOLDER = pathlib.Path(common.__file__).parent
LEAVES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in ("__init__", "common", "demo"))
VARIANTS = [f"{task}{smoke}" for smoke in ("", ",smoke") for task in common.TASKS]


@functools.cache
def load(leaf, *argument):
    """The recipe as the command line gets it; without an argument, its default."""
    return importlib.import_module(f"configs.{leaf}").get_config(*argument)


def keys(config):
    return set(config.to_dict()) | {
        f"{k}.{inner}" for k, v in config.to_dict().items() if isinstance(v, dict) for inner in v
    }


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("argument", VARIANTS)
def test_every_variant_loads_locked_and_has_the_common_keys_alone(leaf, argument):
    c = load(leaf, argument)
    task, smoke = common.variant(argument)
    assert c.task == task
    assert keys(c) == keys(common.get_config())
    assert c.is_locked
    with pytest.raises(AttributeError):
        c.no_such_key = 1
    with pytest.raises(AttributeError):
        c.model.no_such_key = 1
    with pytest.raises((AttributeError, KeyError)):
        c.update({"optim": {"no_such_key": 1}})
    suffix = ("" if task == "pretrain" else f"_{task}") + ("_smoke" if smoke else "")
    assert c.name == leaf + suffix
    before = {"pretrain": "", "finetune": f"runs/{leaf}", "evaluate": f"runs/{leaf}_finetune"}
    assert c.init_from == ("" if smoke else before[task])


@pytest.mark.parametrize("leaf", LEAVES)
def test_the_default_is_pretraining_and_smoke_alone_too(leaf):
    assert load(leaf).to_dict() == load(leaf, "pretrain").to_dict()
    assert load(leaf, "smoke").to_dict() == load(leaf, "pretrain,smoke").to_dict()


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("argument", ["finetun", "pretrain,finetune", "smoke,test"])
def test_an_unknown_variant_names_the_known_ones(leaf, argument):
    with pytest.raises(ValueError, match="choose pretrain, finetune, evaluate or smoke"):
        load(leaf, argument)


SEEN = {
    ("everest_ucf101", "pretrain"): (156, 314),
    ("everest_ucf101", "finetune"): (940, 0),
    ("everest_hmdb51", "pretrain"): (156, 314),
    ("everest_hmdb51", "finetune"): (940, 0),
    ("videomae_ucf101", "pretrain"): (392, 1176),
    ("videomae_ucf101", "finetune"): None,  # All tokens.
}
HEAD = {"everest_ucf101": 101, "everest_hmdb51": 51, "videomae_ucf101": 101}


def test_the_tables_below_know_every_recipe():
    assert set(HEAD) <= set(LEAVES)
    assert set(SEEN) == {(leaf, task) for leaf in HEAD for task in ("pretrain", "finetune")}


@pytest.mark.parametrize(("leaf", "variant"), SEEN)
def test_the_released_models_and_masks(leaf, variant):
    task = tasks.build(load(leaf, variant))
    assert task.grid == (8, 14, 14)
    mask = task.strategy
    assert (mask and (mask.num_visible, mask.num_target)) == SEEN[leaf, variant]
    classes = HEAD[leaf]
    finetuned = 86_227_200 + 768 * classes + classes
    assert state.count(task.abstract) == (94_210_944 if variant == "pretrain" else finetuned)
    if variant == "finetune":  # Evaluation sees the same.
        tested = load(leaf, "evaluate")
        assert tested.mask == load(leaf, "finetune").mask
        assert tested.model == load(leaf, "finetune").model


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("variant", ["pretrain,smoke", "finetune,smoke"])
def test_smoke_runs_are_tiny(leaf, variant):
    c = load(leaf, variant)
    task = tasks.build(c)
    assert task.grid == (8, 4, 4)
    assert state.count(task.abstract) < 200_000
    assert c.train.steps == 2


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
    plan = tasks.plan(load(leaf, variant), records)
    assert plan.total_steps == plan.schedule.total_steps == total
    assert plan.schedule.warmup_steps == warmup
    assert plan.schedule.peak == pytest.approx(peak)
    assert plan.schedule.end == pytest.approx(end)


@pytest.mark.parametrize(
    ("leaf", "stride", "views", "layer_decay", "drop_path", "mixup", "cutmix", "dropout"),
    [
        ("everest_ucf101", 4, (5, 3), 0.75, 0.1, 0.0, 0.0, 0.0),
        ("everest_hmdb51", 2, (10, 3), 0.75, 0.1, 0.0, 0.0, 0.0),
        ("videomae_ucf101", 4, (5, 3), 0.7, 0.2, 0.8, 1.0, 0.5),
    ],
)
def test_the_released_recipes(leaf, stride, views, layer_decay, drop_path, mixup, cutmix, dropout):
    before, c = load(leaf, "pretrain"), load(leaf, "finetune")
    assert (before.train.batch_size, c.train.batch_size) == (192, 128)
    assert (before.optim.b1, before.optim.b2) == (0.9, 0.95)
    assert (c.optim.b1, c.optim.b2) == (0.9, 0.999)
    assert before.optim.weight_decay == c.optim.weight_decay == 0.05
    assert (before.model.decoder_depth, before.model.size, c.model.size) == (4, "B", "B")
    assert (before.optim.layer_decay, before.model.drop_path) == (1.0, 0.0)
    assert (c.optim.layer_decay, c.model.drop_path) == (layer_decay, drop_path)
    assert (c.data.mixup, c.data.cutmix, c.model.head_dropout) == (mixup, cutmix, dropout)
    assert (c.optim.smoothing, c.data.erasing) == (0.1, 0.25)
    for one in (before, c, load(leaf, "evaluate")):
        assert (one.data.num_frames, one.data.frame_stride) == (16, stride)
        assert (one.eval.num_segments, one.eval.num_crops) == views


def test_a_list_smaller_than_a_batch_is_refused_with_the_cure():
    with pytest.raises(tasks.UserError, match=r"larger than the 100 .*train.batch_size=100"):
        tasks.plan(load("everest_ucf101", "pretrain"), 100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"size": "XL"}}, "model.size='XL' is unknown; choose Ti, S, B, L, H"),
        ({"model": {"heads": 7}}, "width 48 is not divisible by its 7 heads"),
        ({"model": {"decoder_heads": 5}}, "model.decoder: width 32 is not divisible by its 5"),
        ({"model": {"remat": "all"}}, "model.remat='all' is unknown; choose none, dots or full"),
        ({"model": {"dtype": "float16"}}, "model.dtype='float16' is unknown; choose auto"),
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
        tasks.build(c)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("argument", ["", "compare"])
def test_the_stages_of_the_demo_build(argument, tmp_path):
    c = load("demo", argument)
    assert c.is_locked
    assert keys(c) - {k for k in keys(c) if k.startswith("stages.")} == keys(common.get_config())
    built = stages.configs(c, tmp_path)
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
