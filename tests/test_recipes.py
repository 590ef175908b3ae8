"""Every recipe has the values of its paper and script, and is documented where users look."""

import functools
import importlib
import json
import pathlib
import re

import pytest
import recipes

from configs import common
from mvm import tasks, train
from mvm.step import count

ROOT = pathlib.Path(common.__file__).parent.parent
LEAVES = sorted({leaf for leaf, _, _ in recipes.known()})
RUNS = [run for run in recipes.known() if run[2] != "evaluate"]


def of_all(runs):
    """One test that goes over all runs and tells which failed."""

    def decorated(check):
        def test():
            failed = {}
            for run in runs:
                try:
                    check(*run)
                except AssertionError as error:
                    failed[run] = str(error)
            assert not failed

        return test

    return decorated


def load(leaf, *words):
    """The recipe as the command line gets it."""
    return importlib.import_module(f"configs.{leaf}").get_config(",".join(filter(None, words)))


@functools.cache
def build(config):
    return tasks.build(importlib.import_module("ml_collections").ConfigDict(json.loads(config)))


def built(config):
    """The abstract task; one for all recipes that differ in data and schedule alone."""
    c = config.copy_and_resolve_references().unlock()
    c.model.update(drop_path=0.0, head_dropout=0.0, remat="none")
    alike = common.get_config()
    alike.update({"task": c.task, "model": c.model.to_dict(), "mask": c.mask.to_dict()})
    for name in ("num_classes", "num_frames", "num_candidates", "keep_ratio", "image_size"):
        alike.data[name] = c.data[name]
    return build(json.dumps(alike.to_dict(), sort_keys=True))


def same(count, printed):
    """Equal, or equal as far as it is printed."""
    if isinstance(printed, int):
        return count == printed
    digits = len(str(printed).split(".")[1])
    return count / 1e6 == pytest.approx(printed, abs=1.1 * 10**-digits)


def test_the_table_knows_every_size_of_its_recipes():
    for leaf in LEAVES:
        sizes = importlib.import_module(f"configs.{leaf}").get_config.sizes
        assert set(sizes) == {size for name, size, _ in recipes.known() if name == leaf}


@of_all(RUNS)
def test_models_masks_and_costs_are_the_published_ones(leaf, size, task):
    c = load(leaf, size, task)
    said = (recipes.PRETRAIN if task == "pretrain" else recipes.FINETUNE)[leaf, size]
    model = built(c)
    assert c.data.num_frames == 16
    assert c.data.num_classes == recipes.data_of(leaf).classes
    assert same(count(model.abstract), said.parameters)
    seen = (model.grid.n, 0)
    if model.strategy:
        seen = (model.strategy.num_visible, model.strategy.num_target)
    assert seen == (said.visible, said.target if task == "pretrain" else 0)
    macs = model.macs()
    assert sum(macs.values()) / 1e9 == pytest.approx(said.gmac, rel=0.005)


@of_all(RUNS)
def test_schedules_are_the_published_ones(leaf, size, task):
    c = load(leaf, size, task)
    said = (recipes.PRETRAIN if task == "pretrain" else recipes.FINETUNE)[leaf, size]
    records = recipes.data_of(leaf).records or 10_000
    plan = train.planned(c, records)
    an_epoch = records // said.batch
    assert plan.total_steps == said.epochs * an_epoch
    assert plan.warmup_steps == said.warmup * an_epoch
    assert plan.peak == pytest.approx(said.peak)
    assert (c.train.batch_size, c.data.repeats) == (said.batch, said.repeats)
    assert c.optim.b2 == (0.95 if task == "pretrain" else 0.999)
    if task == "pretrain":
        assert (c.optim.layer_decay, c.model.drop_path, c.optim.weight_decay) == (1.0, 0.0, 0.05)
        assert (c.data.crop, c.data.sampling) == ("multi_scale", c.data.sampling)
        return
    assert c.optim.layer_decay == said.layer_decay
    assert (c.model.drop_path, c.model.head_dropout) == (said.drop_path, said.head_dropout)
    assert c.optim.weight_decay == said.weight_decay
    assert (c.data.mixup, c.data.cutmix) == ((0.8, 1.0) if said.mixed else (0.0, 0.0))
    assert (c.optim.smoothing, c.data.erasing) == (0.1, 0.25)


def test_detectors_are_the_published_ones():
    for (leaf, size), said in recipes.DETECT.items():
        c = load(leaf, size)
        model, plan = tasks.build(c), train.planned(c, 12_800)
        assert same(count(model.abstract), said.parameters), (leaf, size)
        assert sum(model.macs().values()) / 1e9 == pytest.approx(said.gmac, rel=0.005)
        assert plan.total_steps == 100 * said.epochs
        assert plan.warmup_steps == 100 * said.warmup
        assert plan.peak == pytest.approx(said.peak)
        assert (c.optim.layer_decay, c.model.drop_path) == (said.layer_decay, said.drop_path)
        assert (c.optim.weight_decay, c.data.num_classes, c.optim.smoothing) == (0.05, 80, 0.0)
        _, *frame = model.clips["test"].boxes
        assert frame == ([252, (14, 14)] if size == "g" else [256, (16, 16)])


def test_what_single_scripts_say():
    assert load("videomaev2_hybrid", "g").optim.clip_norm == 0.02
    assert load("videomaev2_hybrid", "H").optim.clip_norm == 0.0
    assert load("videomaev2_k710", "g").optim.clip_norm == 5.0
    assert load("videomaev2_k400", "g").optim.clip_norm == 0.0
    assert load("mae_st_k400").optim.clip_norm == 0.02
    ends = {"videomae_ucf101": 5e-6, "videomae_k400": 2e-5, "everest_ucf101": 5e-7}
    for leaf, end in ends.items():
        c = load(leaf, "H" if leaf == "videomae_k400" else "", "finetune")
        assert train.planned(c, 10_000).end == pytest.approx(end)
    assert train.planned(load("videomaev2_hybrid", "g"), 10_000).end == pytest.approx(8e-5)
    for leaf in ("adamae_k400", "adamae_ssv2"):
        assert load(leaf, "evaluate").eval.average == "logits"
    oscc = load("everest_oscc", "evaluate").data
    assert (oscc.num_candidates, oscc.sampling) == (24, "spread")  # 1.5 times 8 pairs.
    for leaf, size in {("videomae_k400", "L"), ("videomae_k400", "H")}:
        assert load(leaf, size).model.decoder_depth == 12
    h, g = (built(load("videomaev2_hybrid", size)) for size in "Hg")
    assert (h.decoder.width, h.decoder.heads) == (g.decoder.width, g.decoder.heads) == (512, 8)
    assert int(g.decoder.width * g.decoder.mlp_ratio) == 2234
    assert built(load("videomae_k400", "H")).decoder.width == 640


def test_the_distillation_is_that_of_the_paper():
    for size, start in (("B", "runs/videomaev2_k710_B_finetune"), ("S", "")):
        c = load("videomaev2_k710_distill", size)
        assert (c.name, c.init_from) == (f"videomaev2_k710_distill_{size}", start)
        plan = train.planned(c, 658_340)
        assert (plan.total_steps, plan.warmup_steps) == (100 * 642, 5 * 642)
        assert plan.peak == pytest.approx(4e-3)
        assert (c.optim.clip_norm, c.optim.weight_decay, c.optim.layer_decay) == (1.0, 0.05, 0.75)
        assert (c.data.mixup, c.data.cutmix, c.model.drop_path) == (0.8, 1.0, 0.1)
        task = tasks.build(c)
        assert (task.temperature, task.factor, task.label_weight) == (3.0, 1.0, 0.0)
        assert (task.teacher.grid, task.teacher.strategy) == ((8, 16, 16), None)
        assert same(count(task.teacher.abstract), 1012.611)
        scored = load("videomaev2_k710_distill", size, "evaluate")
        assert (scored.init_from, scored.task) == (f"runs/{c.name}", "distill")
        student = tasks.build(scored)
        assert same(count(student.abstract), {"B": 86.773, "S": 22.153}[size])


def test_data_and_views_are_those_of_the_data_set():
    for leaf, size, task in recipes.known():
        c = load(leaf, size, task)
        labelled, ssv2 = task != "pretrain", "ssv2" in leaf
        assert (c.eval.num_segments, c.eval.num_crops) == recipes.data_of(leaf).views
        assert c.data.frame_stride == (2 if ssv2 or "hmdb51" in leaf else 4)
        assert c.data.flip == (leaf == "mae_st_k400" or (labelled and not ssv2))
        segments = "segments_v2" if leaf.startswith("videomaev2") else "segments"
        if "oscc" not in leaf:
            assert c.data.sampling == (segments if ssv2 and labelled else "released")


@of_all(recipes.known())
def test_runs_follow_each_other_and_smoke_runs_are_tiny(leaf, size, task):
    c, name = load(leaf, size, task), "_".join(word for word in (leaf, size) if word)
    assert c.name == (name if task == "pretrain" else f"{name}_{task}")
    before = {
        "pretrain": "",
        "finetune": f"runs/{recipes.START.get((leaf, size), name)}",
        "evaluate": f"runs/{name}_finetune",
    }
    assert c.init_from == before[task]
    if task == "evaluate":  # It sees what fine-tuning made.
        tuned = load(leaf, size, "finetune")
        assert (c.mask, c.model) == (tuned.mask, tuned.model)
    rows = task == "finetune" and leaf in (
        "videomaev2_k400_from_k710",
        "videomaev2_k600_from_k710",
    )
    assert bool(c.init_head_rows) == rows
    small = load(leaf, size, task, "smoke")
    assert built(small).grid == (8, 4, 4)
    assert (small.train.steps, small.init_head_rows) == (2, "")
    assert small.init_from == (f"{c.init_from}_smoke" if task == "evaluate" else "")


def rows():
    """The table of docs/recipes.md by recipe and size."""
    lines = (ROOT / "docs" / "recipes.md").read_text().splitlines()
    found = {}
    for line in lines:
        if match := re.match(r"\| `configs/(\w+)\.py(?::(\w+))?` \|", line):
            found[match[1], match[2] or ""] = [cell.strip() for cell in line.split("|")[2:-1]]
    return found


def test_the_table_of_the_documentation_is_that_of_the_recipes():
    table = rows()
    assert set(table) == {(leaf, size) for leaf, size, _ in recipes.known()} | {*recipes.DETECT}
    for (leaf, size), cells in table.items():
        _, _, _, epochs, batch, published, tokens, gmac = cells
        every = recipes.PRETRAIN, recipes.FINETUNE, recipes.DETECT
        said = [table[leaf, size] for table in every if (leaf, size) in table]
        batches = [f"{s.batch} x {s.repeats}" if s.repeats > 1 else str(s.batch) for s in said]
        assert epochs == ", ".join(str(s.epochs) for s in said)
        assert batch == ", ".join(batches)
        counts = [
            f"{s.visible} + {s.target}" if isinstance(s, recipes.Pretrain) else str(s.visible)
            for s in said
        ]
        assert tokens == ", ".join(counts)
        assert [float(g) for g in gmac.split(", ")] == pytest.approx(
            [s.gmac for s in said], rel=0.0005, abs=0.06
        )
        number = published.split()[0]
        text = importlib.import_module(f"configs.{leaf}").__doc__
        assert number == "-" or number in text, (leaf, number)
