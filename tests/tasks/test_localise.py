"""Temporal detection: from files of features to scores, its recipes, and what is wrong."""

import json

import numpy as np
import pytest

from configs import fineaction, thumos14
from mvm import sweep, tasks, train
from mvm.tasks import localise

COLUMNS = 8


def write(folder, counts):
    """Noise with a direction of its own within each segment of a class; the last has no file."""
    rng, videos = np.random.default_rng(0), {}
    classes = 3 * rng.normal(size=(2, COLUMNS))
    for subset, number in ((s, i) for s, count in counts.items() for i in range(count)):
        rows, fps, found = int(rng.integers(40, 90)), float(rng.choice([15, 30])), []
        features, start = rng.normal(size=(rows, COLUMNS)), int(rng.integers(2, 9))
        while (end := start + int(rng.integers(5, 20))) < rows - 2:
            label = int(rng.integers(2))
            features[start:end] += classes[label]
            segment = [(6 + 4 * row) / fps for row in (start, end)]
            found.append({"label": f"c{label}", "segment": segment, "label_id": label})
            start = end + int(rng.integers(3, 12))
        seconds = (4 * rows + 12) / fps
        video = {"subset": subset, "duration": seconds, "fps": fps, "annotations": found}
        videos[f"{subset}{number}"] = video
        if (subset, number) != ("Test", counts[subset] - 1):
            np.save(folder / f"{subset}{number}.npy", features.astype(np.float32))
    (folder / "truth.json").write_text(json.dumps({"database": videos}))


def configure(folder, leaf=thumos14, argument="", **options):
    c = leaf.get_config(argument)
    c.data.update(train=str(folder / "truth.json"), test=str(folder / "truth.json"))
    c.options.update(columns=COLUMNS, length=64, attention=9, **options)
    c.model.update(width=32, heads=2, depth=4)
    c.train.update(batch_size=8, steps=64, log_every=32, save_every=32, ema_decay=0.95)
    c.optim.update(base_lr=0.1, warmup_epochs=1.0)
    c.eval.batch_size = 8
    return c


@pytest.mark.long
def test_a_run_learns_is_scored_and_evaluated_again(tmp_path, capfd):
    write(tmp_path, {"Validation": 48, "Test": 12})
    (tmp_path / "Validation7.npy").write_bytes(b"broken")
    run, again = tmp_path / "run", tmp_path / "again"
    config = configure(tmp_path)
    config.data.max_bad_fraction = 0.1
    values = sweep.run(config, run)
    results = json.loads((run / "results.json").read_text())
    assert results["average_mAP"] == values["test_average_mAP"]
    assert results["average_mAP"] > 40
    assert [one["id"] for one in results["unreadable"]] == ["Test11"]
    assert (run / "per_class.csv").read_text().startswith("class,mAP@0.3,")
    assert (run / "figures" / "timeline.png").exists()
    # The files are what the command reads: its score is that of the run.
    given = [f"--truth={tmp_path / 'truth.json'}", "--subset=Test"]
    capfd.readouterr()
    localise.main([*given, f"--predictions={run / 'predictions.json'}"])
    said = json.loads(capfd.readouterr().out)
    np.testing.assert_allclose(100 * said["average_mAP"], results["average_mAP"], rtol=1e-9)
    # The normaliser goes on where it was.
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["normaliser"] != 100
    assert rows[-1]["skipped"] > 4  # Each time that it was drawn.
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
    assert task.abstract["classes"]["last"]["bias"].shape == (1,)
    rows = [[4.0, 9.0, 0.9, 0], [4.0, 4.0, 0.5, 0]]
    one, truths = {"segments": np.array([rows] * 2)}, tasks.Truths(*[()] * 2, names, [0, 1], found)
    scored = task.score(one, truths)
    scored.files["predictions.json"](tmp_path / "found.json")
    said = json.loads((tmp_path / "found.json").read_text())["results"]["validation0"]
    assert [row["label"] for row in said] == ["c1", "c0"]
    np.testing.assert_allclose([row["score"] for row in said], np.sqrt([0.36, 0.09]), atol=1e-5)
    c.options.classifier = ""
    alone = tasks.build(c).score(one, truths)
    assert [row[0] for row in alone.tables["per_class"]] == ["class", "action"]


def test_the_recipes_are_those_of_the_released_files():
    for leaf, records, steps, peak in ((thumos14, 200, 3500, 1e-4), (fineaction, 1600, 2500, 1e-3)):
        plan = train.planned(leaf.get_config(), records)
        assert (plan.total_steps, plan.warmup_steps) == (steps, 500)
        assert (plan.peak, plan.end) == pytest.approx((peak, 1e-8))
    assert thumos14.get_config("B,evaluate").options.columns == 768


def test_values_that_do_not_fit_are_one_line(tmp_path):
    write(tmp_path, {"Validation": 1, "Test": 2})
    for changes, said in (
        ({"options": {"length": 62}}, "options.length=62; make it a multiple of 4"),
        ({"data": {"test": ""}}, "give --config.data.test=FILE.json"),
        ({"options": {"thresholds": "0.5;1"}}, "thresholds=0.5;1; give numbers such as"),
        ({"data": {"root": "nowhere"}}, "no annotated video has features in data.root=nowhere"),
    ):
        c = configure(tmp_path)
        c.update(changes)
        with pytest.raises(ValueError, match=said) as caught:
            tasks.build(c) and localise.records(c, "test")
        assert "\n" not in str(caught.value)
