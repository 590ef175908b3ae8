"""Frame mAP: by hand, by the values that the official evaluators give, and as a command."""

import csv
import json

import pytest

from input_pipeline.sources.records import DataError
from mvm.tasks import detect

LABELS = 'item {\n  name: "sit"\n  id: 1\n}\nlabel {\n  name: "stand"\n  label_id: 4\n}\n'
TRUTH = """a,0902,0.1,0.1,0.5,0.5,1,0
a,0902,0.1,0.1,0.5,0.5,2,0
c,0904,0.1,0.1,0.5,0.5,1,0
"""
# The same person twice, out of order, of no class, and on a key frame that may be excluded.
FOUND = """a,902.4,0.1,0.1,0.5,0.45,1,0.9
a,902,0.1,0.1,0.5,0.5,1,0.8
a,902,0.9,0.1,0.6,0.5,1,0.95
a,902,0.1,0.1,0.5,0.5,2,0.99
c,904,0.6,0.1,0.9,0.5,1,0.99
"""


@pytest.fixture
def files(tmp_path):
    texts = {"truth": TRUTH, "predictions": FOUND, "labels": LABELS, "excluded": "c,0904\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return {name: str(tmp_path / name) for name in texts}


def test_the_command_prints_one_object(files, capsys, caplog, monkeypatch):
    arguments = [word for name, path in files.items() for word in (f"--{name}", path)]
    monkeypatch.setattr("sys.argv", ["detect", *arguments])
    detect.main()
    found = json.loads(capsys.readouterr().out)
    assert found["mAP@0.5"] == found["AP_by_action_id"]["1"] == 1
    assert found["per_class_AP"] == {"sit": 1, "stand": None}
    assert "predictions: 1 boxes out of order are left out" in caplog.text
    assert "truth: actions not in the label map, not scored: 2" in caplog.text
    alone = detect.evaluate(files["truth"], files["predictions"], files["labels"])
    assert alone["mAP@0.5"] == pytest.approx(1 / 4)


def test_wrong_files_are_one_line(files, tmp_path):
    path = tmp_path / "wrong"
    for name, text, word in (
        ("predictions", "a,0902,0.1,0.1,0.5,nan,1,1\n", "line 1"),
        ("labels", "1 sit\n", "no class"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=f"{path}.*{word}") as caught:
            detect.evaluate(**{**files, name: str(path)})
        assert "\n" not in str(caught.value)


def official(folder, names, mean, classes, excluded="", of="per_class_AP", far=1e-6):
    """Asserts mean and APs of truth, detections and labels in a folder."""
    given = [str(folder / name) for name in names]
    found = detect.evaluate(*given, excluded=str(folder / excluded) if excluded else "")
    assert found["mAP@0.5"] == pytest.approx(mean, abs=far)
    for name, value in classes.items():
        assert found[of][name] == (value and pytest.approx(value, abs=far)), name


def test_values_of_the_official_evaluators(shared, tmp_path):
    golden = json.loads((shared / "golden" / "downstream_ava_map.json").read_text())
    for name in ("ground_truth", "detections", "exclusions"):
        with (tmp_path / f"{name}.csv").open("w") as file:
            csv.writer(file).writerows(golden[name])
    (tmp_path / "map.pbtxt").write_text(golden["label_map_pbtxt"])
    names = ("ground_truth.csv", "detections.csv", "map.pbtxt")
    for excluded, key in (("exclusions.csv", "expected"), ("", "expected_no_exclusions")):
        said = {name.rpartition("/")[2]: value for name, value in golden[key].items()}
        official(tmp_path, names, said.pop("mAP@0.5IOU"), said, excluded, far=1e-12)

    folder = shared / "data" / "ava_v2.1_pose14"
    expected = json.loads((folder / "expected.json").read_text())
    names = ("gt.csv", "predictions.csv", "ava_action_list_v2.1_for_activitynet_2018.pbtxt")
    for excluded, key in (
        ("excluded_timestamps.csv", "with_excluded_timestamps"),
        ("", "without_exclusions"),
    ):
        said, of = expected[key], "AP_by_action_id"
        official(folder, names, said["mAP@0.5IOU"], said[of], excluded, of)

    folder = shared / "data" / "eval_samples"
    expected = json.loads((folder / "expected.json").read_text())["eval_detection"]
    names = ("gt.csv", "pred.csv", "action_list.txt")
    found = detect.evaluate(*(str(folder / "eval_detection" / name) for name in names))
    assert found["mAP@0.5"] == pytest.approx(expected["mAP@0.5IOU"], abs=1e-8)
    assert found["per_class_AP"] == pytest.approx(expected["AP@0.5IOU"], abs=1e-8)
