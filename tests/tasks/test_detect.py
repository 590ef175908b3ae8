"""Detection end to end: trained, tested, scored, and its files read again."""

import json
import shutil

import jax
import numpy as np
import pytest
from models_on_disk import refused, video

from configs import ava_v22
from input_pipeline.encode import Options, h264
from input_pipeline.sources.records import DataError
from mvm import data, initial, sweep, tasks, train
from mvm.tasks import detect


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Four videos of two sizes, two key frames of each, two people whose colour is their action."""
    root, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    rows, colours = [], 40 + 180 * np.eye(3)
    for number, (h, w) in enumerate([(48, 64), (64, 48), (48, 64), (48, 64)]):
        left, right = rng.permutation(3)[:2]
        frames = np.full((20, h, w, 3), 128, np.uint8)
        frames[:, h // 8 : -h // 8, 2 : w // 2] = colours[left]
        frames[:, :, w // 2 :] = colours[right]
        (root / f"v{number}.mp4").write_bytes(h264(frames, 10, Options()))
        for second in (0, 1):
            frame = f"v{number},{second:04d}"
            rows += [f"{frame},0.03,0.125,0.5,0.875,{left + 1}", f"{frame},0.5,0,1,1,{right + 1}"]
    (root / "boxes.csv").write_text("\n".join(rows))
    items = (f'item {{\n  name: "act {i}"\n  id: {i}\n}}\n' for i in (1, 2, 3))
    (root / "map.pbtxt").write_text("".join(items))
    return root


def config_of(people, **data):
    c = ava_v22.get_config("S,smoke").copy_and_resolve_references()
    given = {split: str(people / "boxes.csv") for split in ("train", "val", "test")}
    c.data.update(**{**given, "root": str(people), "num_classes": 0, "threads": 1, **data})
    c.data.update(num_frames=4, workers=0, image_size=16)
    c.options.label_map = str(people / "map.pbtxt")
    c.train.update(batch_size=8, steps=100, save_every=100, log_every=20)
    c.optim.update(base_lr=0.3, layer_decay=1.0, warmup_epochs=5.0)
    c.model.update(depth=1, width=24)
    return c


@pytest.mark.long
def test_a_run_learns_what_is_in_a_box_and_writes_what_the_evaluator_reads(people, tmp_path):
    final = sweep.run(config_of(people), tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["num_videos"], results["num_unreadable"]) == (8, 0)
    assert final["test_mAP@0.5"] == results["mAP@0.5"] == pytest.approx(final["val_mAP@0.5"])
    assert results["mAP@0.5"] > 90
    files = people / "boxes.csv", tmp_path / "predictions.csv", people / "map.pbtxt"
    assert len(files[1].read_text().splitlines()) == 8 * 2 * 3
    again = detect.evaluate(*map(str, files))
    assert 100 * again["mAP@0.5"] == pytest.approx(results["mAP@0.5"], abs=1e-9)
    assert (tmp_path / "per_class.csv").read_text().splitlines()[0] == "class,boxes,AP"
    assert (tmp_path / "figures" / "boxes.png").exists()


def test_smoke_looks_at_each_thing_that_is_drawn(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(train, "train", lambda config, workdir: given.append(config) or {})
    sweep.run(ava_v22.get_config("S,smoke"), tmp_path)
    for split, count in (("train", 16), ("val", 8), ("test", 8)):
        records, names = tasks.spec("detect").records(given[0], split)
        actions = [sorted(record.truth.truth[:, 4].tolist()) for record in records]
        assert actions == [[1 + i % 8, 9, 9] for i in range(count)]
    assert names[1:9:7] == ["right", "rests"]


def test_scores_do_not_depend_on_the_batch(people):
    task = tasks.build(config_of(people))
    params = task.init(jax.random.key(0))[0]
    params["head"]["kernel"] = params["head"]["kernel"] * 1e3
    batch, predict = {"video": video(3, 1, 4, 16, 24)}, jax.jit(task.predict)
    batch["boxes"] = np.array([[[0, 0, 9, 15], [4, 3, 20, 11]]] * 3, np.float32)
    batch["box_score"] = np.array([[1.0, 0.5], [1.0, 0.0], [0.9, 1.0]], np.float32)
    whole = predict(params, {}, batch)["score"]
    alone = predict(params, {}, {name: array[1:2] for name, array in batch.items()})["score"]
    assert np.allclose(whole[1:2], alone, atol=1e-6)
    assert not whole[1, 1].any()
    assert np.ptp(whole[:, 0]) > 1e-3


def test_what_cannot_be_read_is_missed(people):
    """As the official evaluator counts it: a key frame without detections."""
    task, box = tasks.build(config_of(people)), np.array([[0, 0, 1, 1, 1.0]])
    known = data.boxes.KeyFrame(0.0, (48, 64), box, box, 1)
    records = [data.Record(f"v{i},0000", "", -1, truth=known) for i in range(2)]
    score = np.array([[[0.9, 0.1, 0.1]]], np.float32)
    for position, mean in (([1], 50), ([], 0)):
        truths = tasks.Truths(np.zeros(0), [], (), np.array(position, int), records)
        found = task.score({"score": score[: len(position)]}, truths)
        assert found.values == {"mAP@0.5": mean}


def test_splits_name_the_same_actions(shapes, tmp_path):
    other = shutil.copytree(shapes / "boxes", tmp_path / "boxes")
    names = tuple((other / "classes.txt").read_text().split())
    (other / "classes.txt").write_text("\n".join(names[::-1]))
    given = {"train": str(shapes / "boxes/train.csv"), "test": str(other / "test.csv")}
    config = config_of(shapes, **given)
    config.options.label_map = ""
    with pytest.raises(DataError, match="names other classes"):
        initial.records(config, ["train", "test"], initial.Head())
    (other / "classes.txt").unlink()  # Numbers name nothing.
    assert initial.records(config, ["train", "test"], initial.Head())[2].names == names


def test_what_does_not_fit_is_one_line(people):
    said = r"has action 3, but data\.num_classes=2"
    refused(said, tasks.build, config_of(people, num_classes=2))
