"""Every recipe is what docs/recipes.md and its paper say; all of it is typed, nothing computed."""

import importlib
import itertools
import json
import pathlib
import re
from functools import partial
from typing import NamedTuple

import pytest
from models_on_disk import refused

from configs import common
from mvm import config, tasks, train
from mvm.step import count

ROOT = pathlib.Path(common.__file__).parent.parent
LEAVES = {
    p.stem: importlib.import_module(f"configs.{p.stem}") for p in ROOT.glob("configs/[a-z]*.py")
}


def load(leaf, *words):
    """The recipe as the command line gets it; without an argument, its default."""
    argument = [",".join(word for word in words if word)] if words else []
    return LEAVES[leaf].get_config(*argument)


def variants():
    """(leaf, its recipe, size, task) of all leaves, also of those that no table lists."""
    for leaf, module in LEAVES.items():
        if isinstance(recipe := getattr(module, "get_config", None), common.Recipe):
            yield from ((leaf, recipe, s, t) for s in recipe.sizes for t in recipe.tasks)


class Said(NamedTuple):
    """What the table says of one task of a recipe."""

    epochs: int
    batch: int
    repeats: int
    visible: int
    target: int
    gmac: float
    published: str


def table():
    """`Said` by (leaf, size, task)."""
    found = {}
    for line in (ROOT / "docs" / "recipes.md").read_text().splitlines():
        if not (match := re.match(r"\| `configs/(\w+)\.py(?::(\w+))?` \|", line)):
            continue
        leaf, size = match[1], match[2] or ""
        *_, epochs, batch, published, tokens, gmac = (c.strip() for c in line.split("|")[2:-1])
        trained = [task for task in LEAVES[leaf].get_config.tasks if task != "evaluate"]
        columns = (cell.split(", ") for cell in (epochs, batch, tokens, gmac))
        for task, e, b, t, g in zip(trained, *columns, strict=True):
            (videos, _, repeats), (visible, _, target) = b.partition(" x "), t.partition(" + ")
            counts = map(int, (e, videos, repeats or 1, visible, target or 0))
            found[leaf, size, task] = Said(*counts, float(g), published)
    return found


TABLE = table()
RUNS = sorted(TABLE)


CLASSES = {"ucf101": 101, "hmdb51": 51, "k400": 400, "k600": 600, "k710": 710, "ssv2": 174}
CLASSES |= {"oscc": 2, "hybrid": 0, "ava": 80}
VIEWS = {"hmdb51": (10, 3), "ssv2": (2, 3), "oscc": (1, 3)}  # Of others (5, 3).
# Where a script departs from what is usual for its data.
VIEWS |= {"videomaev2_hmdb51_from_k710": (5, 3), "mae_st_k400": (10, 3)}


def data_of(leaf):
    """The data set in the leaf's name; `<method>_<data>` or `<method>_<data>_<more>`."""
    (name,) = [word for word in leaf.removesuffix("_from_k710").split("_") if word in CLASSES]
    return name


# Exact where whole; floats are millions, as printed.
PARAMETERS = {
    ("everest_ucf101", "", "pretrain"): 94_210_944,
    ("everest_k400", "S", "pretrain"): 24_029_376,
    ("adamae_k400", "", "pretrain"): 102_501_505,
    ("videomae_k400", "L", "pretrain"): 342_996_992,
    ("videomae_k400", "H", "pretrain"): 692_487_296,
    # ViT-L with a decoder of 4: half the head's 512 x 1536 + 1536, and (8 + 196) x 1536 positions.
    ("mae_st_k400", "", "pretrain"): 317_701_376,
    ("videomaev2_hybrid", "H", "pretrain"): 645.66,
    ("videomaev2_hybrid", "g", "pretrain"): 1026.31,
    ("everest_ucf101", "", "finetune"): 86_304_869,
    ("videomae_k400", "H", "finetune"): 632_119_440,
    ("mae_st_k400", "", "finetune"): 304_270_736 + 208_896,  # Positions are parameters here.
    ("videomaev2_k400", "g", "finetune"): 1012.174,
    ("ava_v22", "B", "detect"): 86_288_720,
}
# One script of each kind: epochs of warm-up, the highest rate after scaling by batch, layer decay,
# drop path, dropout of the head, weight decay.
SCHEDULES = {
    ("everest_ucf101", "", "pretrain"): (40, 7.5e-4, 1.0, 0.0, 0.0, 0.05),
    ("videomae_ucf101", "", "pretrain"): (40, 2.25e-4, 1.0, 0.0, 0.0, 0.05),
    ("motion_tube_ssv2", "", "pretrain"): (10, 1.5e-3, 1.0, 0.0, 0.0, 0.05),
    ("mae_st_k400", "", "pretrain"): (5, 8e-4, 1.0, 0.0, 0.0, 0.05),
    ("videomaev2_hybrid", "g", "pretrain"): (30, 4.8e-3, 1.0, 0.0, 0.0, 0.05),
    ("everest_ucf101", "", "finetune"): (5, 5e-4, 0.75, 0.1, 0.0, 0.05),
    ("videomae_ucf101", "", "finetune"): (5, 2.5e-4, 0.7, 0.2, 0.5, 0.05),
    ("videomae_k400", "H", "finetune"): (5, 2e-3, 0.75, 0.2, 0.5, 0.05),
    ("adamae_k400", "", "finetune"): (5, 2e-3, 0.75, 0.1, 0.0, 0.05),
    ("mae_st_k400", "", "finetune"): (5, 2.4e-3, 0.75, 0.2, 0.3, 0.05),
    ("videomaev2_k710", "g", "finetune"): (5, 3.75e-4, 0.9, 0.3, 0.0, 0.1),
    ("videomaev2_k400_from_k710", "", "finetune"): (1, 3.75e-6, 0.9, 0.25, 0.0, 0.1),
    ("videomaev2_ssv2", "B", "finetune"): (5, 2e-3, 0.65, 0.1, 0.0, 0.05),
    ("ava_v22", "S", "detect"): (5, 5e-4, 0.6, 0.2, 0.0, 0.05),
    ("ava_v22", "g", "detect"): (2, 1.5e-4, 0.9, 0.3, 0.0, 0.05),
}


of_each = partial(pytest.mark.parametrize, ("leaf", "size", "task"))
BUILT = {}


def built(c):
    """The task; one for all recipes that differ in data and schedule alone."""
    model = {k: c.model[k] for k in c.model if k not in ("drop_path", "head_dropout", "remat")}
    names = ("num_classes", "num_frames", "num_candidates", "keep_ratio", "image_size")
    key = str((c.task, model, c.mask, c.options, [c.data[name] for name in names]))
    if key not in BUILT:
        BUILT[key] = tasks.build(c)
    return BUILT[key]


def same(count, printed):
    """Equal, or equal as far as it is printed."""
    if isinstance(printed, int):
        return count == printed
    digits = len(str(printed).split(".")[1])
    return count / 1e6 == pytest.approx(printed, abs=1.1 * 10**-digits)


def test_the_table_has_every_recipe_of_a_paper_and_numbers_that_its_file_has():
    others = {"demo", "features", "fineaction", "knn", "my_clips", "probe", "sweep_lr", "thumos14"}
    others |= {"videomaev2_k710_distill"}
    known = {
        (leaf, size, task)
        for leaf, _, size, task in variants()
        if leaf not in others and task != "evaluate"
    }
    assert set(TABLE) == known
    for (leaf, *_), said in TABLE.items():
        number = said.published.split()[0]
        assert number == "-" or number in LEAVES[leaf].__doc__, (leaf, number)


@of_each(RUNS)
def test_models_masks_and_costs_are_the_published_ones(leaf, size, task):
    c, said = load(leaf, size, task), TABLE[leaf, size, task]
    model = built(c)
    assert c.data.num_frames == 16
    assert c.data.num_classes == CLASSES[data_of(leaf)]
    seen = (model.grid.n, 0)
    if model.strategy:
        seen = (model.strategy.num_visible, model.strategy.num_target)
    assert seen == (said.visible, said.target)
    macs = sum(model.macs().values()) / 1e9
    assert macs == pytest.approx(said.gmac, rel=0.0005, abs=0.06)
    if (leaf, size, task) in PARAMETERS:
        assert same(count(model.abstract), PARAMETERS[leaf, size, task])


@of_each(RUNS)
def test_schedules_are_the_published_ones(leaf, size, task):
    c, said = load(leaf, size, task), TABLE[leaf, size, task]
    plan = train.planned(c, 1_000_003)
    an_epoch = 1_000_003 // said.batch
    assert plan.total_steps == said.epochs * an_epoch
    assert (c.train.batch_size, c.data.repeats) == (said.batch, said.repeats)
    assert c.optim.b2 == (0.95 if task == "pretrain" else 0.999)
    if task == "finetune":
        assert (c.optim.smoothing, c.data.erasing) == (0.1, 0.25)
        mixed = not leaf.startswith("everest")
        assert (c.data.mixup, c.data.cutmix) == ((0.8, 1.0) if mixed else (0.0, 0.0))
    if (leaf, size, task) in SCHEDULES:
        warmup, peak, *rest = SCHEDULES[leaf, size, task]
        assert plan.warmup_steps == warmup * an_epoch
        assert plan.peak == pytest.approx(peak)
        m, o = c.model, c.optim
        assert [o.layer_decay, m.drop_path, m.head_dropout, o.weight_decay] == rest


def test_the_distillation_is_that_of_the_paper():
    for size, start in (("B", "runs/videomaev2_k710_B_finetune"), ("S", "")):
        c = load("videomaev2_k710_distill", size)
        assert (c.name, c.init_from) == (f"videomaev2_k710_distill_{size}", start)
        plan = train.planned(c, 658_340)
        assert (plan.total_steps, plan.warmup_steps) == (100 * 642, 5 * 642)
        assert plan.peak == pytest.approx(4e-3)
        task = tasks.build(c)
        assert (task.temperature, task.factor, task.label_weight) == (3.0, 1.0, 0.0)
        assert same(count(task.teacher.abstract), 1012.611)
        student = tasks.build(load("videomaev2_k710_distill", size, "evaluate"))
        assert same(count(student.abstract), {"B": 86.773, "S": 22.153}[size])


def test_data_and_views_are_those_of_the_data_set():
    for leaf, size, task in RUNS:
        if task == "detect":
            continue
        c = load(leaf, size, task)
        labelled, ssv2 = task != "pretrain", "ssv2" in leaf
        views = VIEWS.get(leaf) or VIEWS.get(data_of(leaf), (5, 3))
        assert (c.eval.num_segments, c.eval.num_crops) == views
        assert c.data.frame_stride == (2 if ssv2 or "hmdb51" in leaf else 4)
        assert c.data.flip == (leaf == "mae_st_k400" or (labelled and not ssv2))
        segments = "segments_v2" if leaf.startswith("videomaev2") else "segments"
        if "oscc" not in leaf:
            assert c.data.sampling == (segments if ssv2 and labelled else "released")


# --- the list of keys, how a recipe is misused, and configurations of older runs


def test_every_variant_is_locked_and_valid_and_starts_from_a_run_of_some_recipe():
    runs, starts = set(), set()
    for leaf, recipe, size, task in variants():
        for smoke in ("", "smoke"):
            c = load(leaf, size, task, smoke)
            assert c.evaluate == (task == "evaluate")
            if c.evaluate and "finetune" in recipe.tasks:  # It sees what fine-tuning made.
                tuned = load(leaf, size, "finetune", smoke)
                made = (tuned.mask, tuned.model, f"runs/{tuned.name}")
                assert (c.mask, c.model, c.init_from) == made
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


def test_an_older_configuration_is_read_and_what_cannot_be_is_refused():
    """A key that it lacks has its default, one that is gone is left out."""
    c = load("everest_ucf101", "finetune")
    old = json.loads(c.to_json_best_effort())
    del old["data"]["fps"], old["eval"], old["options"], old["data"]["mix"]
    old["model"]["gone"] = 1
    again = config.completed(old)
    assert again == c
    assert config.changes(old, again) == {"never": {}, "always": {}, "asked": {}}
    for group, key, value in (
        ("data", "flip", "false"),
        ("data", "num_frames", 16.7),
        ("model", "size", None),
        ("model", "position_grid", [8, 14]),
    ):
        refused(rf"^{group}\.{key}=", config.completed, {group: {key: value}})
    assert config.completed({"data": {"fps": 25}}).data.fps == 25.0
    assert load("videomaev2_hybrid", "B").data.mix.ssv2.stride == 2
    mixture = {"data": {"mix": {"ssv2": {"wieght": 2.0}}}}
    refused(r"data\.mix\.ssv2\.wieght .*weight", config.validate, mixture)
