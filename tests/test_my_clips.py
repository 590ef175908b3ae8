"""A labelled folder of one's own, from Hugging Face weights to the names of its classes."""

import csv
import json
import logging
import pathlib
import re
import runpy
import shutil

import pytest

import mvm
from configs import common, my_clips, sweep_lr
from mvm import config as schema
from mvm import sweep


@pytest.fixture
def folder(shapes, tmp_path):
    """Class folders of three shapes, five videos each."""
    folder, names = tmp_path / "clips", (shapes / "classes.txt").read_text().split()
    rows = [r.split() for s in ("train", "test") for r in (shapes / f"{s}.txt").open()]
    for label in ("0", "1", "2"):
        (folder / names[int(label)]).mkdir(parents=True)
        for path in [path for path, own in rows if own == label][:5]:
            shutil.copy(shapes / path, folder / names[int(label)])
    return folder


def texts(run, pattern):
    return {file.name: file.read_text() for file in run.glob(pattern)}


@pytest.mark.slow
def test_a_folder_alone_has_one_split_from_pre_training_to_an_evaluation(
    folder, tmp_path, no_figures, caplog
):
    def run(argument, name, **values):
        c = my_clips.get_config(f"{argument},smoke")
        c.data.root, c.eval.num_crops = str(folder), 3
        c.update_from_flattened_dict(values)
        caplog.clear()
        with caplog.at_level(logging.INFO, "mvm"):
            return sweep.run(c, tmp_path / name)

    classes, tuned = sorted(path.name for path in folder.iterdir()), tmp_path / "run"
    run("pretrain", "before")
    lists = texts(tmp_path / "before", "split/*.txt")
    assert "train 9, val 3, test 3, classes 3, test and val drawn class by class" in caplog.text
    assert lists["classes.txt"].split() == classes
    shutil.copytree(folder / classes[0], folder / "later")
    start = {"init_from": str(tmp_path / "before"), "data.crop": "fit", "train.save_every": 1}
    scores = run("full", "run", **start)
    assert texts(tuned, "split/*.txt") == lists
    assert "where 5 of the folder are not" in caplog.text
    # Not as many classes as the videos that a smoke variant would write, and their names.
    assert json.loads((tuned / "config.json").read_text())["data"]["num_classes"] == 3
    assert (tuned / "classes.txt").read_text().split() == classes
    # Killed after its first step, with the folder changed again.
    shutil.copytree(tuned, tmp_path / "again")
    shutil.rmtree(tmp_path / "again/checkpoints/2")
    shutil.rmtree(folder / "later")
    assert run("full", "again", **start) == scores
    assert texts(tmp_path / "again", "metr*") == texts(tuned, "metr*")
    # A list of the same videos whose classes are in another order.
    (tmp_path / "list").mkdir()
    (tmp_path / "list/classes.txt").write_text("\n".join(classes[::-1]))
    rows = csv.reader(lists["test.txt"].splitlines(), delimiter=" ")
    other = [f"{folder / path} {2 - int(label)}\n" for path, label in rows]
    (tmp_path / "list/test.txt").write_text("".join(other))
    there = {"init_from": str(tuned), "data.root": ""}
    listed = there | {"data.test": str(tmp_path / "list/test.txt")}
    assert run("full,evaluate", "e0", **listed)["test_top1"] == scores["test_top1"]
    # A loaded model answers as the run did.
    model = mvm.load(tuned)
    rows = list(csv.DictReader((tuned / "predictions.csv").open()))
    videos = [folder / row["video"] for row in rows]
    for row, best in zip(rows, model.classify(videos, views="2x1", top=1), strict=True):
        assert best == [(row["top1"], pytest.approx(float(row["probability1"]), abs=1e-4))]
    # Folder, test videos and crop are those of the run, also where the folder has moved.
    assert run("full,evaluate", "e1", **there)["test_top1"] == scores["test_top1"]
    assert json.loads((tmp_path / "e1/results.json").read_text())["views"] == "2x1"
    there["data.root"] = str(folder.rename(tmp_path / "moved"))
    for _ in range(2):
        assert run("full,evaluate", "e2", **there)["test_top1"] == scores["test_top1"]
    # Of other videos all are scored.
    for n, file in enumerate(sorted((tmp_path / "moved").glob("*/*"))):
        file.rename(file.with_name(f"{n}.mp4"))
    assert run("full,evaluate", "e3", **there)["test_num_videos"] == 15


@pytest.mark.slow
def test_stages_share_one_split_of_a_folder(folder, tmp_path, no_figures, monkeypatch, caplog):
    monkeypatch.setattr(sweep_lr, "FACTORS", (0.5, 1.0))
    config = sweep_lr.get_config("smoke")
    config.init_from, config.data.root = "", str(folder)
    sweep.run(config, tmp_path / "run")
    lists = texts(tmp_path / "run", "split/*.txt")
    shutil.copytree(next(folder.iterdir()), folder / "later")
    caplog.set_level(logging.INFO, "mvm")
    sweep.run(config, tmp_path / "run")  # Finished: nothing more.
    assert "stage lr_0_008 is finished" in caplog.text
    one, two = (tmp_path / "run" / name for name in config.stages)
    assert texts(tmp_path / "run", "split/*.txt") == lists
    assert str(tmp_path / "run/split/train.txt") in (one / "config.json").read_text()
    page = (tmp_path / "run/report.html").read_text()
    assert page.index("<td>lr_0_004</td><td>") < page.index("best by validation: lr_0_0")
    # A run of it is scored on its own test videos, with its model and clips.
    alone = my_clips.get_config("evaluate")
    alone.init_from = str(two)
    scores = sweep.run(alone, tmp_path / "alone", ["init_from"])
    results = json.loads((two / "results.json").read_text())
    assert scores["test_num_videos"] == results["num_videos"] < 15
    assert scores["test_loss"] == pytest.approx(results["loss"], rel=1e-5)


def test_the_recipe_of_the_guide_runs(tmp_path):
    guide = (pathlib.Path(common.__file__).parent.parent / "docs/recipes_howto.md").read_text()
    (code,) = re.findall(r"```python\n(# configs/kitchen\.py\n.*?)```", guide, re.DOTALL)
    (tmp_path / "kitchen.py").write_text(code)
    recipe = runpy.run_path(str(tmp_path / "kitchen.py"))["get_config"]
    for command in re.findall(r"configs/kitchen\.py:?(\S*)", guide.partition(code)[2]):
        schema.validate(recipe(command))
    assert recipe("side,evaluate").init_from == f"runs/{recipe('side').name}"
    assert recipe("side").name == "kitchen_side_finetune"
    assert (recipe("side").data.root, recipe().data.root) == ("kitchen/side", "kitchen/above")
