"""A labelled folder of one's own, from Hugging Face weights to the names of its classes."""

import csv
import json
import logging
import pathlib
import re
import runpy
import shutil

import pytest
from models_on_disk import write_run

import mvm
from configs import common, my_clips, sweep_lr, videomae_k400
from mvm import config as schema
from mvm import convert, sweep


def test_class_folders_become_a_classifier_that_names_them(folder, tmp_path, no_figures):
    write_run(tmp_path / "before", videomae_k400.get_config("S,smoke"))
    convert.translate(tmp_path / "before", tmp_path / "weights", "huggingface")
    config = my_clips.get_config("smoke")
    config.init_from = str(tmp_path / "weights")
    config.eval.num_crops = 3
    config.data.update(train=str(folder), test=str(folder))
    scores = sweep.run(config, tmp_path / "run")
    # Not as many as the videos that a smoke variant would write.
    assert json.loads((tmp_path / "run/config.json").read_text())["data"]["num_classes"] == 3
    names = (tmp_path / "run/classes.txt").read_text().split()
    assert names == sorted(path.name for path in folder.iterdir())

    again = my_clips.get_config("evaluate,smoke")
    again.init_from = str(tmp_path / "run")
    again.eval.num_crops = 3
    (tmp_path / "list").mkdir()  # Classes in another order.
    (tmp_path / "list/classes.txt").write_text("\n".join(names[::-1]))
    kept = [f"{path} {2 - names.index(path.parent.name)}\n" for path in folder.glob("*/*")]
    (tmp_path / "list/test.txt").write_text("".join(kept))
    again.data.test = str(tmp_path / "list" / "test.txt")
    assert sweep.run(again, tmp_path / "scored")["test_top1"] == scores["test_top1"]

    model = mvm.load(tmp_path / "run")
    rows = list(csv.DictReader((tmp_path / "run/predictions.csv").open()))
    assert len(rows) == len(kept)
    videos = [folder / row["video"] for row in rows]
    for row, best in zip(rows, model.classify(videos, views="2x3", top=1)):
        assert best == [(row["top1"], pytest.approx(float(row["probability1"]), abs=1e-4))]


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

    classes = sorted(path.name for path in folder.iterdir())
    run("pretrain", "before")
    lists = texts(tmp_path / "before", "split/*.txt")
    assert "train 9, val 3, test 3, classes 3, test and val drawn class by class" in caplog.text
    assert lists["classes.txt"].split() == classes
    shutil.copytree(folder / classes[0], folder / "later")
    start = {"init_from": str(tmp_path / "before"), "data.crop": "fit", "train.save_every": 1}
    scores = run("full", "run", **start)
    assert texts(tmp_path / "run", "split/*.txt") == lists
    assert "where 5 of the folder are not" in caplog.text
    # Killed after its first step, with the folder changed again.
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again/checkpoints/2")
    shutil.rmtree(folder / "later")
    assert run("full", "again", **start) == scores
    assert texts(tmp_path / "again", "metr*") == texts(tmp_path / "run", "metr*")
    # Folder, test videos and crop are those of the run, also where the folder has moved.
    there = {"init_from": str(tmp_path / "run"), "data.root": ""}
    assert run("full,evaluate", "e1", **there)["test_top1"] == scores["test_top1"]
    assert json.loads((tmp_path / "e1/results.json").read_text())["views"] == "2x1"
    there["data.root"] = str(folder.rename(tmp_path / "moved"))
    for _ in range(2):
        assert run("full,evaluate", "e2", **there)["test_top1"] == scores["test_top1"]
    # Of other videos all are scored.
    for n, file in enumerate(sorted((tmp_path / "moved").glob("*/*"))):
        file.rename(file.with_name(f"{n}.mp4"))
    assert run("full,evaluate", "e3", **there)["test_num_videos"] == 15


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
    assert "as in init_from=" in caplog.text


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
