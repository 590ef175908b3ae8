"""Accuracies by hand, odd-sized sets over several devices, and the files of an evaluation."""

import csv
import functools
import json
import types

import jax
import numpy as np
import pytest

from configs import common
from mvm import data, evaluate, tasks
from mvm.runtime import sharding
from mvm.runtime.steps import Progress
from mvm.tasks import finetune


def rows_of(label, probability, names, position):
    """As `evaluate.run` gives them; of a name it has the bytes."""
    text = np.array(names, "S256").view(np.uint8).reshape(-1, 256)
    found = {"position": np.array(position), "label": np.array(label, int), "id": text}
    return found | {"probability": np.array(probability)}


@functools.cache
def classifier(num_classes=8, average="probabilities", **mesh):
    config = common.finish(common.get_config(), "finetune,smoke")
    config.mask.name, config.eval.average = "", average
    config.data.num_classes = num_classes
    return tasks.build(config, **mesh)


def views_of(lines):
    """`name [score, ...] label segment crop` lines -> name -> (label, view -> scores)."""
    videos = {}
    for line in lines:
        name, rest = line.split(" [")
        scores, rest = rest.split("] ")
        label, segment, crop = rest.split(" ")
        views = videos.setdefault(name, (int(label), {}))[1]
        # The released logs name a view by both numbers in a row, so that (1, 11) is (11, 1).
        views.setdefault(segment + crop, [float(x) for x in scores.split(",")])
    return videos


def test_views_are_merged_as_released(shared):
    for file, part, average in (
        ("merge_videomae", "merge", "probabilities"),
        ("merge_videomaev2", "merge/prob", "probabilities"),
        ("merge_videomaev2", "merge/score", "logits"),
        ("merge_adamae", "merge", "logits"),
    ):
        golden = np.load(shared / "golden" / f"{file}.npz")
        videos = views_of([*golden["file0_lines"][1:], *golden["file1_lines"][1:]])
        names = golden[f"{part}/video_names"].tolist()
        assert sorted(names) == sorted(videos)
        assert [len(videos[name][1]) for name in names] == golden[f"{part}/n_views"].tolist()
        logits = [np.array(list(videos[name][1].values()), np.float32)[:, None] for name in names]
        merged = np.concatenate([finetune.merge(one, average) for one in logits])
        mean = golden[f"{part}/mean_score"]
        expected = mean if average == "probabilities" else jax.nn.softmax(mean)
        np.testing.assert_allclose(merged, expected, rtol=2e-5, atol=2e-6)
        assert merged.argmax(axis=1).tolist() == golden[f"{part}/pred"].tolist()
        label = np.array([videos[name][0] for name in names])
        assert label.tolist() == golden[f"{part}/label"].tolist()
        found = rows_of(label, merged, [""] * len(names), range(len(names)))
        scores = evaluate.score(classifier(merged.shape[1]), found, range(len(names))).values
        assert scores["top1"] == pytest.approx(float(golden[f"{part}/top1"]))
        assert scores["top5"] == pytest.approx(float(golden[f"{part}/top5"]))


@pytest.mark.parametrize(("average", "fsdp"), [("logits", 1), ("probabilities", 4)])
def test_the_predictor_averages_over_views_as_told(average, fsdp):
    task = classifier(8, average)
    split = classifier(8, average, gather=sharding.gather) if fsdp > 1 else task
    params, _ = jax.jit(task.init)(jax.random.key(0))
    params["head"]["kernel"] *= 3e4  # Far from even, so that the two averages differ.
    views = np.random.default_rng(0).integers(0, 256, (8, 2, 16, 32, 32, 3), dtype=np.uint8)
    run = jax.jit(task.model(params, {}).__call__)
    logits = np.stack([run(views[:, i]) for i in range(2)])
    expected = {
        "probabilities": np.mean(jax.nn.softmax(logits), axis=0),
        "logits": jax.nn.softmax(logits.mean(axis=0)),
    }
    assert np.abs(expected["probabilities"] - expected["logits"]).max() > 1e-3
    mesh = sharding.make_mesh(fsdp)
    params = jax.device_put(params, sharding.of_state(mesh, params))
    with jax.set_mesh(mesh):
        found = evaluate.predictor(split, mesh)(params, {}, {"video": views})
    np.testing.assert_allclose(found["probability"], expected[average], atol=1e-5)


def test_the_files_of_an_evaluation(tmp_path, monkeypatch):
    probability = [[0.9, 0.1, 0], [0.6, 0.4, 0], [0, 1, 0]]
    out = rows_of([0, 1, 1], probability, ("a.mp4", "ç.mp4".encode(), "d.mp4"), [0, 2, 3])
    monkeypatch.setattr(evaluate, "run", lambda *_: out)
    nothing = types.SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(data, "eval_batches", lambda *_: nothing)
    found = [types.SimpleNamespace(id=f"{i}.mp4") for i in range(4)]
    names = ["run, fast", "jump", "sit"]
    evaluate.test(classifier(3), tmp_path, None, found, None, 8, names, Progress(7, 0, 0))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["top1"] == pytest.approx(200 / 3)
    assert results["loss"] == pytest.approx(-np.log([0.9, 0.4, 1.0]).mean())
    assert (results["mean_class"], results["step"]) == (75.0, 7)  # No video is of the third.
    assert (results["num_videos"], results["num_unreadable"]) == (3, 1)
    assert results["unreadable"] == [{"id": "1.mp4", "reason": "see the log of its process"}]
    _, *classes = csv.reader((tmp_path / "per_class.csv").open())
    assert classes == [
        ["run, fast", "1", "2", "1", "100.00"],
        ["jump", "2", "1", "1", "50.00"],
        ["sit", "0", "0", "0", ""],
    ]
    head, *rows = csv.reader((tmp_path / "predictions.csv").open())
    assert head[:6] == ["video", "label", "rank", "probability", "top1", "probability1"]
    assert [row[:8] for row in rows] == [
        ["a.mp4", "run, fast", "1", "0.9000", "run, fast", "0.9000", "jump", "0.1000"],
        ["ç.mp4", "jump", "2", "0.4000", "run, fast", "0.6000", "jump", "0.4000"],
        ["d.mp4", "jump", "1", "1.0000", "jump", "1.0000", "run, fast", "0.0000"],
    ]
