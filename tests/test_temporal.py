"""Suppression and scores of segments: worked by hand, as the released code, and as a command."""

import json

import numpy as np
import pytest

from mvm.detections import temporal
from mvm.tasks import localise


def rows(*given):
    return temporal.table(("v", (start, end), label, score) for start, end, label, score in given)


def test_soft_suppression_decays_what_overlaps_and_keeps_the_order_of_equals():
    segment = np.array([[0, 4], [0, 4], [10, 12], [3, 5]], np.float32)
    score = np.array([0.5, 0.9, 0.9, 0.4], np.float32)
    index, new = temporal.soft_nms(segment, score, sigma=0.5, min_score=0.07, most=9)
    assert index.tolist() == [1, 2, 3]  # The first decays to 0.5 exp(-2) = 0.068.
    np.testing.assert_allclose(new[:2], 0.9)
    np.testing.assert_allclose(new[2], 0.4 * np.exp(-2 * 0.2**2), rtol=1e-5)
    label = np.array([0, 1, 1, 0])
    kept = temporal.suppress(segment, score, label, sigma=0.5, min_score=0.0, most=3, by_class=True)
    assert kept[2].tolist() == [1, 1, 0]
    moved, *_ = temporal.suppress(
        segment, score, label, sigma=0.5, min_score=0.0, most=9, by_class=False, voting=0.15
    )
    weights = np.array([0.5, 0.9, 0.4 * 0.2])
    np.testing.assert_allclose(moved[0], weights @ segment[[0, 1, 3]] / weights.sum(), rtol=1e-5)
    both = temporal.with_classes(segment[:2], score[:2], np.array([0.1, 0.4, 0.3]))
    assert both[2].tolist() == [1, 1, 2, 2]
    np.testing.assert_allclose(both[1][:2], np.sqrt(0.4 * score[:2]), rtol=1e-6)


def test_precision_of_a_worked_example():
    truth = rows((0, 10, "a", 1), (0, 10.0005, "a", 1), (20, 30, "a", 1), (5, 5.0005, "b", 1))
    found = rows((0, 9, "a", 0.8), (21, 30, "a", 0.5), (40, 50, "a", 0.6), (0, 10, "c", 0.9))
    precise = temporal.precision(truth, found, (0.5, 0.95))
    assert precise.classes == ["a"]  # b is too short, c has no truth.
    np.testing.assert_allclose(precise.average[:, 0], [(1 + 2 / 3) / 2, 0])
    np.testing.assert_allclose(precise.recall[1][:, 0], [0.5, 0])  # Of 3, the best 2 are asked.
    np.testing.assert_allclose(precise.recall[5][:, 0], [1, 0])
    # A truth that is taken leaves the next best.
    near = rows((0, 10, "a", 1), (2, 12, "a", 1))
    twice = rows((0, 10, "a", 0.9), (0.5, 10, "a", 0.8))
    assert temporal.precision(near, twice, (0.5,)).average.tolist() == [[1.0]]
    nothing = temporal.precision(truth, rows(), (0.5,)).as_json()
    assert nothing["average_mAP"] == 0
    assert nothing["recall_at_5x"] == [0]


def test_the_command_prints_json_and_says_what_is_odd(tmp_path, capsys):
    truth, found = tmp_path / "truth.json", tmp_path / "found.json"
    video = {"subset": "Test", "annotations": [{"label": "a", "segment": [0, 10]}]}
    video["annotations"].append({"label": "Ambiguous", "segment": [0, 10]})
    truth.write_text(json.dumps({"v_x": video, "v_y": {**video, "subset": "Train"}}))
    row = {"label": "a", "segment": [0, 9], "score": 0.5}
    found.write_text(json.dumps({"results": {"x": [row, {**row, "label": "Ambiguous"}]}}))
    given = ["--truth", str(truth), "--predictions", str(found)]
    localise.main([*given, "--subset", "Test", "--thresholds", "0.5,0.95"])
    out, err = capsys.readouterr()
    assert json.loads(out)["mAP"] == [1, 0]
    assert json.loads(out)["per_class_AP"] == {"a": [1, 0]}
    assert "lacks 1 classes, first 'Ambiguous'" in err
    mistakes = {
        "--subset=test": "no video of subset 'test', only Test, Train",
        f"--truth={found}x": "cannot be read",
        f"--predictions={truth}": "it is JSON",
        "--thresholds=0.5,5": "above 0",
    }
    for mistake, said in mistakes.items():
        with pytest.raises(SystemExit) as stopped:
            localise.main([*given, mistake])
        assert stopped.value.code == 2
        err = capsys.readouterr().err
        assert said in err, err
        assert err.count("\n") == 1


def test_results_are_written_as_they_are_read(tmp_path):
    found = rows((0.1234, 5, "a", 0.5), (1, 2, "b", 0.25))
    temporal.write_results(tmp_path / "found.json", found)
    again = temporal.read_results(tmp_path / "found.json")
    assert again.label.tolist() == ["a", "b"]
    np.testing.assert_array_equal(again.score, found.score)
    np.testing.assert_allclose(again.segment, found.segment, atol=5e-4)


def test_suppression_as_released(shared):
    golden = np.load(shared / "golden" / "downstream_nms.npz")
    for case in sorted({key.partition("/")[0] for key in golden.files}):
        given = json.loads(str(golden[f"{case}/params"]))
        if not given["use_soft_nms"]:
            continue
        names = ("segments", "scores", "labels")
        segment, score, label = (golden[f"{case}/in_{name}"] for name in names)
        more = {"sigma": given["sigma"], "min_score": given["min_score"]}
        index, new = temporal.soft_nms(segment, score, most=len(score), **more)
        np.testing.assert_array_equal(index, golden[f"{case}/raw_keep"])
        np.testing.assert_allclose(new, golden[f"{case}/raw_dets"][:, 2], atol=1e-6)
        more |= {"by_class": given["multiclass"], "voting": given["voting_thresh"]}
        kept = temporal.suppress(segment, score, label, most=given["max_seg_num"], **more)
        for name, mine in zip(names, kept):
            np.testing.assert_allclose(mine, golden[f"{case}/out_{name}"], atol=2e-5, err_msg=case)


def test_precision_as_released(shared):
    cases = json.loads((shared / "golden" / "downstream_tad_map.json").read_text())["cases"]
    for name, case in cases.items():
        truth = temporal.from_results(
            {
                video: [a for a in given["annotations"] if a["label"] != "Ambiguous"]
                for video, given in case["database"].items()
                if given["subset"] == "test"
            }
        )
        said = case["predictions"]
        labels = [f"class{label}" for label in said["label"]]
        segments = zip(said["t-start"], said["t-end"])
        found = temporal.table(zip(said["video-id"], segments, labels, said["score"]))
        precise = temporal.precision(truth, found, case["tiou"])
        expected = case.get("expected_clean", case["expected"])
        recall = np.stack([precise.recall[1], precise.recall[5]], axis=1)
        for mine, theirs in ((precise.average, expected["AP"]), (recall, expected["recall"])):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-9, err_msg=name)
        mean = precise.as_json()["average_mAP"]
        assert abs(mean - expected["average_mAP"]) < 1e-9, name


def test_precision_of_files_as_released(shared, capsys):
    thumos, samples = shared / "data" / "thumos14", shared / "data" / "eval_samples"
    some = samples / "eval_localization"
    of_thumos, of_samples = (
        json.loads((folder / "expected.json").read_text()) for folder in (thumos, samples)
    )
    cases = (
        (thumos / "thumos14.json", thumos / "predictions.json", "Test", of_thumos),
        (some / "gt.json", some / "result.json", "", of_samples["eval_localization"]),
    )
    for truth, found, subset, expected in cases:
        thresholds = ",".join(map(str, expected["tiou"]))
        given = ["--truth", str(truth), "--predictions", str(found), "--thresholds", thresholds]
        localise.main([*given, "--subset", subset])
        said = json.loads(capsys.readouterr().out)
        for key in {"mAP", "average_mAP", "recall_at_1x", "recall_at_5x"} & set(expected):
            np.testing.assert_allclose(said[key], expected[key], rtol=0, atol=1e-6)
        for name, average in expected.get("per_class_AP", {}).items():
            np.testing.assert_allclose(said["per_class_AP"][name], average, rtol=0, atol=1e-6)
