"""The vote of the nearest: by hand, against golden numbers, and from videos to results.json."""

import json

import numpy as np
import pytest
import tiny
from models_on_disk import refused

from configs import knn as recipe
from mvm import objectives, sweep
from mvm.runtime import metrics


def test_the_earlier_of_equals_votes_all_where_there_are_few_and_nobody_for_itself():
    gallery, label = np.array([[2.0, 0], [0, 3], [1, 1], [-1, 0]]), np.array([0, 1, 1, 2])
    same = objectives.vote(np.ones((1, 2)), np.ones((3, 2)), np.array([1, 0, 0]), 2, k=1)
    np.testing.assert_array_equal(same, [[0, 1]])
    assert objectives.vote(gallery, gallery, label, 3, k=99).shape == (4, 3)
    alone = objectives.vote(gallery, gallery, label, 3, k=1, leave_one_out=True)
    np.testing.assert_array_equal(alone.argmax(axis=1), [1, 1, 0, 1])


def test_accuracies_are_those_of_dinos_code(shared):
    golden = np.load(shared / "golden" / "downstream_frozen.npz")
    train, test = (golden[f"knn/{split}_features"] for split in ("train", "test"))
    label, truth = golden["knn/train_labels"], golden["knn/test_labels"]
    for k in (5, 10, 20, 100):
        votes = objectives.vote(test, train, label, int(label.max()) + 1, k=k)
        hits = np.argsort(-votes, axis=1, kind="stable") == truth[:, None]
        found = 100 * hits[:, 0].mean(), 100 * hits[:, :5].any(axis=1).mean()
        # Classes without a vote tie for the top five of five neighbours.
        count = 1 if k == 5 else 2
        np.testing.assert_allclose(found[:count], golden[f"knn/top1_top5_k{k}"][:count])


def test_a_run_keeps_features_and_writes_scores(shapes, pretrained, tmp_path):
    config = tiny.frozen(recipe, shapes, pretrained, splits=("train", "test"))
    values = sweep.run(config, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["top1"] == values["test_top1"]
    said = {"stage": "pretrain", "norm": "tokens", "views": "1x1", "clip": "16x1", "resolution": 32}
    said |= {"k": 20, "gallery": 24, "selection": "none", "weights": config.init_from}
    assert results.items() >= said.items()
    kept = sorted((tmp_path / "features" / "train").rglob("*.npy"))
    assert [np.load(path).shape for path in kept] == [(1, 48)] * 24
    config.data.crop = "center"  # That of the weights counts.
    assert sweep.run(config, tmp_path) == values


@pytest.mark.slow
def test_pre_training_is_scored_on_the_way(shapes, no_figures, tmp_path):
    config = tiny.configure(shapes, probe_every=4)
    config.data.val = str(shapes / "val.txt")
    sweep.run(config, tmp_path / "run")
    rows = metrics.read_rows(tmp_path / "run" / "metrics.jsonl")
    scores = {row["step"]: row["val_knn"] for row in rows if "val_knn" in row}
    assert list(scores) == [4, 6]
    assert all(0 <= score <= 100 for score in scores.values())
    config = tiny.configure(shapes, "finetune,smoke", probe_every=4)
    config.init_from = ""
    refused("train.probe_every=4 is for pre-training", sweep.run, config, tmp_path / "other")
