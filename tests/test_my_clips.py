"""A labelled folder of one's own, from Hugging Face weights to the names of its classes."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest

import mvm
from configs import my_clips, videomae_k400
from mvm import convert as convert_main
from mvm import runs, tasks
from mvm import sweep as stages
from mvm.runtime.checkpoint import Checkpoints, Progress


@pytest.fixture
def pretrained(tmp_path):
    """A Hugging Face folder of random weights, of the size of smoke runs."""
    config = videomae_k400.get_config("S,smoke")
    rng = np.random.default_rng(0)
    abstract = tasks.build(config).abstract
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype("f4"), abstract)
    checkpoints = Checkpoints(tmp_path / "before", 1)
    values = json.loads(config.to_json_best_effort())
    checkpoints.save(Progress(2, 16, 0), {"params": params}, values)
    checkpoints.close()
    runs.write_config(config, checkpoints.workdir)
    folder = tmp_path / "weights"
    convert_main.main([str(tmp_path / "before"), str(folder), "--to", "huggingface"])
    return folder


def test_class_folders_become_a_classifier_that_names_them(shapes, pretrained, tmp_path):
    names = (shapes / "classes.txt").read_text().split()
    for split in ("train", "test"):
        for row in (shapes / f"{split}.txt").read_text().splitlines():
            path, label = row.split()
            (tmp_path / split / names[int(label)]).mkdir(parents=True, exist_ok=True)
            shutil.copy(shapes / path, tmp_path / split / names[int(label)])
    config = my_clips.get_config("smoke")
    config.init_from = str(pretrained)
    config.data.update(num_classes=0, train=str(tmp_path / "train"), test=str(tmp_path / "test"))
    scores = stages.run(config, tmp_path / "run")
    assert json.loads((tmp_path / "run/config.json").read_text())["data"]["num_classes"] == 8
    assert (tmp_path / "run/classes.txt").read_text().split() == sorted(names) != names

    again = my_clips.get_config("evaluate,smoke")
    again.init_from, again.data.num_classes = str(tmp_path / "run"), 0
    again.data.test = str(shapes / "test.txt")  # The same videos, classes in another order.
    assert stages.run(again, tmp_path / "scored")["test_top1"] == scores["test_top1"]

    model = mvm.load(tmp_path / "run")
    for row in list(csv.DictReader((tmp_path / "run/predictions.csv").open()))[:2]:
        name, probability = model.classify(tmp_path / "test" / row["video"], views="2x1")[0]
        assert name == row["prediction"]
        assert probability == pytest.approx(float(row["probability"]), abs=1e-4)
