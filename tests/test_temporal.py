"""Suppression and scores of segments: as the released code, and as a command."""

import functools
import json
from collections import defaultdict

import numpy as np
import pytest

from input_pipeline import segments
from mvm.detections import temporal
from mvm.tasks import localise


def test_mistakes_of_the_command_are_one_line(tmp_path, capsys):
    truth, found = tmp_path / "truth.json", tmp_path / "found.json"
    video = {"subset": "Test", "annotations": [{"label": "a", "segment": [0, 10]}]}
    truth.write_text(json.dumps({"v_x": video, "v_y": {**video, "subset": "Train"}}))
    row = {"label": "a", "segment": [0, 9], "score": float("nan")}
    found.write_text(json.dumps({"results": {"x": [row]}}))
    for mistake, said in {
        "--subset=test": "no video of subset 'test', only Test, Train",
        f"--truth={found}x": "cannot be read",
        f"--predictions={truth}": "give JSON",
        f"--predictions={found}": "is not finite",
        "--thresholds=0.5;5": "numbers such as",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            localise.main([f"--truth={truth}", f"--predictions={found}", mistake])
        err = capsys.readouterr().err
        assert (stopped.value.code, said in err, err.count("\n")) == (2, True, 1), err


def test_suppression_as_released(shared):
    golden = np.load(shared / "golden" / "downstream_nms.npz")
    for case in sorted({key.partition("/")[0] for key in golden.files}):
        given = json.loads(str(golden[f"{case}/params"]))
        if not given["use_soft_nms"]:
            continue
        rows, out = (
            np.column_stack([golden[f"{case}/{way}_{n}"] for n in ("segments", "scores", "labels")])
            for way in ("in", "out")
        )
        more = {"sigma": given["sigma"], "least": given["min_score"]}
        every = {"most": len(rows), "by_class": False}
        kept = temporal.suppress(rows.astype(np.float32), **every, **more)
        np.testing.assert_array_equal(kept[:, :2], rows[golden[f"{case}/raw_keep"], :2])
        np.testing.assert_allclose(kept[:, 2], golden[f"{case}/raw_dets"][:, 2], atol=1e-6)
        more |= {"by_class": given["multiclass"], "voting": given["voting_thresh"]}
        kept = temporal.suppress(rows.astype(np.float32), most=given["max_seg_num"], **more)
        np.testing.assert_allclose(kept, out, atol=2e-5, err_msg=case)


def test_precision_as_released(shared, tmp_path):
    cases = json.loads((shared / "golden" / "downstream_tad_map.json").read_text())["cases"]
    for name, case in cases.items():
        (tmp_path / "truth.json").write_text(json.dumps(case["database"]))
        videos = segments.read(tmp_path / "truth.json", "test")
        truth, found = {v: videos[v]["annotations"] for v in videos}, defaultdict(list)
        columns = ("video-id", "t-start", "t-end", "label", "score")
        for video, *segment, label, score in zip(*(case["predictions"][c] for c in columns)):
            row = {"label": f"class{label}", "segment": segment, "score": score}
            found[video].append(row)
        said = temporal.precision(truth, found, case["tiou"])
        expected = case.get("expected_clean", case["expected"])
        close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-9, err_msg=name)
        close(np.transpose([*said["per_class_AP"].values()]), expected["AP"])
        recall = np.stack([said["recall_at_1x"], said["recall_at_5x"]], axis=1)
        close(recall, np.mean(expected["recall"], axis=-1))
        close(said["average_mAP"], expected["average_mAP"])


def test_precision_of_files_as_released(shared, capsys):
    folder = shared / "data" / "thumos14"
    expected = json.loads((folder / "expected.json").read_text())
    given = [f"--truth={folder / 'thumos14.json'}", f"--predictions={folder / 'predictions.json'}"]
    localise.main([*given, "--subset=Test"])
    said = json.loads(capsys.readouterr().out)
    for key in ("mAP", "average_mAP", "recall_at_1x", "recall_at_5x"):
        np.testing.assert_allclose(said[key], expected[key], rtol=0, atol=1e-6)
    for name, average in expected["per_class_AP"].items():
        np.testing.assert_allclose(said["per_class_AP"][name], average, rtol=0, atol=1e-6)
