"""Temporal detection: from files of features to scores, its recipes, and what is wrong."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import fineaction, thumos14
from mvm import optim, sweep, tasks, train
from mvm.detections import temporal
from mvm.models import pyramid
from mvm.tasks import localise
from mvm.types import UserError

COLUMNS, STRIDE, WINDOW = 8, 4, 16


def write(folder, counts, seed=0):
    """Noise with a direction of its own within each segment of a class; the last has no file."""
    rng, videos = np.random.default_rng(seed), {}
    classes = 3 * rng.normal(size=(2, COLUMNS))
    for subset, count in counts.items():
        for number in range(count):
            name, rows = f"{subset}{number}", int(rng.integers(40, 90))
            features, found = rng.normal(size=(rows, COLUMNS)), []
            fps = float(rng.choice([15, 30]))
            middle = (np.arange(rows) * STRIDE + WINDOW / 2) / fps
            start = int(rng.integers(2, 9))
            while (end := start + int(rng.integers(5, 20))) < rows - 2:
                label = int(rng.integers(2))
                features[start:end] += classes[label]
                segment = (middle[start : end + 1][[0, -1]] - STRIDE / 2 / fps).tolist()
                found.append({"label": f"c{label}", "segment": segment, "label_id": label})
                start = end + int(rng.integers(3, 12))
            seconds = ((rows - 1) * STRIDE + WINDOW) / fps
            videos[name] = {"subset": subset, "duration": seconds, "fps": fps}
            videos[name]["annotations"] = found
            if (subset, number) != ("Test", count - 1):
                np.save(folder / f"{name}.npy", features.astype(np.float32))
    (folder / "truth.json").write_text(json.dumps({"database": videos}))


def configure(folder, leaf=thumos14, argument="", **options):
    c = leaf.get_config(argument)
    c.data.update(train=str(folder / "truth.json"), test=str(folder / "truth.json"))
    c.options.update(columns=COLUMNS, length=64, attention=9, **options)
    c.model.update(width=32, heads=2)
    c.train.update(batch_size=8, steps=96, log_every=32, save_every=48, ema_decay=0.95)
    c.optim.update(base_lr=0.1, warmup_epochs=1.0)
    c.eval.batch_size = 8
    return c


@pytest.mark.slow
def test_a_run_learns_is_scored_and_evaluated_again(tmp_path):
    write(tmp_path, {"Validation": 48, "Test": 12})
    run, again = tmp_path / "run", tmp_path / "again"
    values = sweep.run(configure(tmp_path), run)
    results = json.loads((run / "results.json").read_text())
    assert results["average_mAP"] == values["test_average_mAP"]
    assert results["mAP@0.3"] >= results["average_mAP"] >= results["mAP@0.7"]
    assert results["average_mAP"] > 40
    assert results["num_videos"] == 11
    assert [one["id"] for one in results["unreadable"]] == ["Test11"]
    table = list(csv.DictReader((run / "per_class.csv").read_text().splitlines()))
    assert [row["class"] for row in table] == ["c0", "c1"]
    assert {path.name for path in (run / "figures").iterdir()} >= {"timeline.png", "per_class.png"}
    # The files are what the command reads: its score is that of the run.
    found = temporal.read_results(run / "predictions.json")
    assert "Test11" not in set(found.video)
    truth = json.loads((tmp_path / "truth.json").read_text())["database"]
    known = {k: v["annotations"] for k, v in truth.items() if v["subset"] == "Test"}
    thresholds = localise.THRESHOLDS["0.3-0.7"]
    precise = temporal.precision(temporal.from_results(known), found, thresholds).as_json()
    assert abs(100 * precise["average_mAP"] - results["average_mAP"]) < 0.5
    # The normaliser goes on where it was.
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["normaliser"] != 100
    evaluation = configure(tmp_path, argument="evaluate")
    evaluation.init_from = str(run)
    assert sweep.run(evaluation, again)["test_average_mAP"] == results["average_mAP"]


def test_a_detector_without_classes_is_told_them(tmp_path):
    write(tmp_path, {"training": 1, "validation": 2})
    scores = {f"validation{n}": [0.1, 0.4] for n in range(2)}
    (tmp_path / "scores.json").write_text(json.dumps({"results": scores}))
    c = configure(tmp_path, fineaction, classifier=str(tmp_path / "scores.json"))
    c.data.num_classes = 2
    found, names = localise.records(c, "test")
    task = tasks.build(c)
    params, frozen = jax.eval_shape(task.init, jax.random.key(0))
    assert params["classes"]["last"]["bias"].shape == (1,)
    assert frozen["normaliser"].dtype == jnp.float32
    one = {"segment": np.array([[[4.0, 9.0], [4.0, 4.0]]] * 2), "score": np.array([[0.9, 0.5]] * 2)}
    one["class"] = np.zeros((2, 2), int)
    truths = tasks.Truths(np.zeros(2), [], names, [0, 1], found)
    scored = task.score(one, truths)
    scored.files["predictions.json"](tmp_path / "found.json")
    said = temporal.read_results(tmp_path / "found.json").at([0, 1])
    assert said.label.tolist() == ["c1", "c0"]
    np.testing.assert_allclose(said.score, np.sqrt([0.36, 0.09]), rtol=1e-5)
    for name in ("figures/timeline.png", "figures/per_class.png"):
        scored.files[name](tmp_path / name)
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    c.options.classifier = ""
    alone = tasks.build(c).score(one, truths)
    assert [row[0] for row in alone.tables["per_class"]] == ["class", "action"]
    (tmp_path / "scores.json").write_text(json.dumps({"results": {"validation0": [0.1, 0.4]}}))
    c.options.classifier = str(tmp_path / "scores.json")
    with pytest.raises(UserError, match="has 0 probabilities of validation1, 2 wanted"):
        localise.records(c, "test")


def test_the_running_normaliser_and_the_weights_that_decay():
    c = thumos14.get_config("S")
    c.data.num_classes = 2
    c.options.update(length=32, columns=4, attention=5)
    c.model.update(width=8, heads=2)
    task = tasks.build(c)
    assert task.frozen == ("normaliser",)
    for path, _ in jax.tree_util.tree_leaves_with_path(task.abstract):
        name = optim.path_of(path)
        assert optim.decays(name) == name.endswith("kernel")
        assert not ("norm" in name or "gamma" in name or "scales" in name) or not optim.decays(name)
    said = pyramid.Detections(jnp.zeros((1, 3, 2)), jnp.ones((1, 3, 2)), jnp.array([[1, 1, 0]]) > 0)
    target, sides = jnp.ones((1, 3, 2)), jnp.ones((1, 3, 2))
    value, parts = localise.losses(
        said, target, sides, jnp.float32(50), smoothing=0.0, regression=1.0
    )
    assert float(parts["normaliser"]) == pytest.approx(0.9 * 50 + 0.1 * 2)
    assert float(parts["loss_segments"]) == 0
    assert float(value) == pytest.approx(4 * 0.25 * np.log(2) * 0.25 / 45.2, rel=1e-5)
    assert task.updated({}, {}, parts) == {"normaliser": parts["normaliser"]}


def test_the_recipes_are_those_of_the_released_files():
    c = thumos14.get_config()
    plan = train.planned(c, 200)
    assert (plan.total_steps, plan.warmup_steps) == (3500, 500)
    assert plan.peak == pytest.approx(1e-4)
    assert plan.end == pytest.approx(1e-8)
    assert (c.options.columns, c.train.ema_decay, c.optim.clip_norm) == (1408, 0.999, 1.0)
    assert thumos14.get_config("B,evaluate").options.columns == 768
    plan = train.planned(fineaction.get_config(), 16 * 100)
    assert (plan.total_steps, plan.warmup_steps) == (2500, 500)
    assert plan.peak == pytest.approx(1e-3)


def test_values_that_do_not_fit_are_one_line(tmp_path):
    write(tmp_path, {"Validation": 1, "Test": 2})
    wrong = (
        ({"options": {"length": 60}}, "options.length=60; make it a multiple of 32"),
        ({"options": {"attention": 8}}, "options.attention=8; make it odd"),
        ({"model": {"heads": 3}}, "model.width=32 is not divisible by model.heads=3"),
        ({"data": {"test": ""}}, "give --config.data.test=FILE.json"),
        ({"options": {"classifier": "x.json"}}, "x.json cannot be read"),
    )
    for changes, said in wrong:
        c = configure(tmp_path)
        c.update(changes)
        with pytest.raises(UserError) as caught:
            tasks.build(c) and localise.records(c, "test")
        assert said in str(caught.value), caught.value
        assert "\n" not in str(caught.value)
