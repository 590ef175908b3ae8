"""A labelled folder of one's own, from Hugging Face weights to the names of its classes."""

import csv
import json
import shutil

import pytest
from models_on_disk import write_run

import mvm
from configs import my_clips, videomae_k400
from mvm import convert, sweep


def test_class_folders_become_a_classifier_that_names_them(shapes, tmp_path, no_figures):
    write_run(tmp_path / "before", videomae_k400.get_config("S,smoke"))
    convert.translate(tmp_path / "before", tmp_path / "weights", "huggingface")
    names = (shapes / "classes.txt").read_text().split()
    for split in ("train", "test"):
        for row in (shapes / f"{split}.txt").read_text().splitlines():
            path, label = row.split()
            if label == "7":  # Not as many as the videos that a smoke variant would write.
                continue
            (tmp_path / split / names[int(label)]).mkdir(parents=True, exist_ok=True)
            shutil.copy(shapes / path, tmp_path / split / names[int(label)])
    (tmp_path / "list").mkdir()
    (tmp_path / "list/classes.txt").write_text("".join(f"{name}\n" for name in names[:7]))
    rows = [r.split() for r in (shapes / "test.txt").read_text().splitlines()]
    kept = [f"{shapes / path} {label}\n" for path, label in rows if label != "7"]
    (tmp_path / "list/test.txt").write_text("".join(kept))
    config = my_clips.get_config("smoke")
    config.init_from = str(tmp_path / "weights")
    config.eval.num_crops = 3
    config.data.update(train=str(tmp_path / "train"), test=str(tmp_path / "test"))
    scores = sweep.run(config, tmp_path / "run")
    assert json.loads((tmp_path / "run/config.json").read_text())["data"]["num_classes"] == 7
    assert (tmp_path / "run/classes.txt").read_text().split() == sorted(names[:7]) != names[:7]

    again = my_clips.get_config("evaluate,smoke")
    again.init_from = str(tmp_path / "run")
    again.eval.num_crops = 3
    again.data.test = str(tmp_path / "list" / "test.txt")  # Classes in another order.
    assert sweep.run(again, tmp_path / "scored")["test_top1"] == scores["test_top1"]

    model = mvm.load(tmp_path / "run")
    rows = list(csv.DictReader((tmp_path / "run/predictions.csv").open()))
    assert len(rows) == len(kept)
    videos = [tmp_path / "test" / row["video"] for row in rows]
    for row, best in zip(rows, model.classify(videos, views="2x3", top=1)):
        assert best == [(row["top1"], pytest.approx(float(row["probability1"]), abs=1e-4))]
