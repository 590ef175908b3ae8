"""Key frames: their files become records, records clips, and boxes stay on what they were on."""

import json
import logging

import numpy as np
import pytest

from input_pipeline import loader
from input_pipeline.elements import ClipSpec
from input_pipeline.encode import Options, h264
from input_pipeline.sources import key_frames
from input_pipeline.sources.records import DataError, Failures
from input_pipeline.transforms import boxes as geometry

LABELS = 'item {\n  name: "left"\n  id: 1\n}\nitem {\n  name: "right"\n  id: 3\n}\n'
BOX = (0.25, 0.25, 0.5, 0.75)
SPEC = ClipSpec(
    num_frames=4,
    frame_stride=2,
    image_size=32,
    flip=True,
    boxes=geometry.BoxSpec(40, (8, 8)),
)


def frames(h, w):
    """Grey frames that grow brighter, with a red rectangle at `BOX`."""
    video = np.empty((20, h, w, 3), np.uint8)
    video[:] = 40 + 4 * np.arange(20)[:, None, None, None]
    video[:, h // 4 : 3 * h // 4, w // 4 : w // 2] = (220, 30, 30)
    return video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two videos of 10 frames a second, wide and high, and a csv with key frames of both."""
    root = tmp_path_factory.mktemp("people")
    (root / "deep").mkdir()
    for name, size in (("wide.mp4", (48, 96)), ("deep/high_000100_000102.mkv", (80, 64))):
        (root / name).write_bytes(h264(frames(*size), 10, Options()))
    corners = ",".join(map(str, BOX))
    rows = [
        f"wide,1,{corners},1,0",
        f"wide,1,{corners},3,0",
        "wide,1,0.0,0.0,0.05,1.0,1,1",
        f"high,101,{corners},3,0",
        f"wide,0,{corners},1,0",
        "wide,1.5,,,,,,",
    ]
    (root / "boxes.csv").write_text("\n".join(rows))
    (root / "map.pbtxt").write_text(LABELS)
    return root


def load(folder, **more):
    options = {"label_map": str(folder / "map.pbtxt")} | more
    return key_frames.load(str(folder / "boxes.csv"), str(folder), **options)


def test_a_csv_becomes_records(folder, caplog):
    with caplog.at_level(logging.WARNING):
        found = load(folder)
    assert "1 of 3 key frames have no box" not in caplog.text  # 1.5 s is key frame 1.
    assert [record.id for record in found] == ["wide,0001", "high,0101", "wide,0000"]
    assert found.names == ["left", "2", "right"]
    first, second, _ = (key_frames.key_frame(record) for record in found)
    assert first.boxes.shape == (2, 4)
    assert first.label.tolist() == [[1, 0, 0], [1, 0, 1]]
    assert second.score.tolist() == [1, 0]
    assert second.seconds == pytest.approx(1)  # The file begins at 100 s.
    assert found[1].path.endswith("deep/high_000100_000102.mkv")
    assert len(first.truth[1]) == 3


def test_detected_people_are_looked_at_instead(folder, tmp_path):
    people = [
        {"image_id": "wide,0001", "bbox": [24, 12, 24, 24], "score": 0.9},
        {"image_id": 7, "bbox": [0, 0, 32, 40], "score": 0.8},
        {"image_id": "wide,0001", "bbox": [0, 0, 9, 9], "score": 0.79},
        {"image_id": "other,0001", "bbox": [0, 0, 9, 9], "score": 1.0},
        {"image_id": "high,0100", "bbox": [0, 0, 9, 9], "score": 1.0},
    ]
    image = {"id": 7, "movie": "high", "timestamp": 101, "width": 64, "height": 80}
    (tmp_path / "people.json").write_text(json.dumps(people))
    (tmp_path / "images.json").write_text(json.dumps({"images": [image]}))
    files = {name: str(tmp_path / f"{name}.json") for name in ("images", "people")}
    options = {"split": "test", "person_boxes": files["people"], "images": files["images"]}
    found = load(folder, **options)
    assert [record.id for record in found] == ["wide,0001", "high,0101", "wide,0000", "high,0100"]
    wide, high, empty, more = (key_frames.key_frame(record) for record in found)
    assert wide.boxes.tolist() == [list(BOX)]
    assert (wide.score[0], high.score[0], empty.score[0]) == (np.float32(0.9), np.float32(0.8), 0)
    assert high.boxes.tolist() == [[0, 0, 0.5, 0.5]]
    assert (wide.size, high.size, len(more.truth[1])) == ((48, 96), (80, 64), 0)
    with pytest.raises(DataError, match=r"needs options\.images"):
        load(folder, **options | {"images": ""})
    (tmp_path / "out.csv").write_text("wide,0001\n")
    kept = load(folder, split="test", excluded=str(tmp_path / "out.csv"))
    assert [record.id for record in kept] == ["high,0101", "wide,0000"]


def test_labelled_videos_are_whole_frames(folder, tmp_path):
    (tmp_path / "train.txt").write_text("wide.mp4 2\n")
    (record,) = key_frames.load(str(tmp_path / "train.txt"), str(folder), num_classes=3)
    known = key_frames.key_frame(record)
    assert (record.id, known.seconds, known.boxes.tolist()) == ("wide,0000", 0, [[0, 0, 1, 1]])
    assert known.label.tolist() == [[0, 0, 1]]


def red(image):
    """The box (x1, y1, x2, y2) of what is red in a frame."""
    y, x = np.nonzero((image[..., 0].astype(int) - image[..., 1]) > 90)
    return np.array([x.min(), y.min(), x.max(), y.max()])


def test_boxes_move_with_the_pixels(folder, caplog):
    records = load(folder)
    with caplog.at_level(logging.WARNING):
        batches = loader.train_batches(records, SPEC, batch_size=3, seed=0, threads=1)
        seen = [next(batches) for _ in range(8)]
        batches.close()
    assert caplog.text.count("boxes outside their crop are left out") == 1
    shapes = {name: (array.shape, str(array.dtype)) for name, array in seen[0].items()}
    assert shapes["boxes"] == ((3, 2, 4), "float32")
    assert shapes["box_label"] == ((3, 2, 3), "uint8")
    assert shapes["box_valid"] == ((3, 2), "bool")
    compared = 0
    for batch in seen:
        for row, position in enumerate(batch["index"]):
            label, valid = batch["box_label"][row], batch["box_valid"][row]
            assert not batch["boxes"][row][~valid].any()
            assert not label[~valid].any()
            # The red one is alone, or with the strip on the left.
            for k in np.flatnonzero(valid & (label[:, 2] if position < 2 else label[:, 0])):
                for image in batch["video"][row][1:3]:
                    close = np.abs(red(image) - batch["boxes"][row, k].clip(0, 31)).max() <= 1.6
                    assert close, (position, batch["boxes"][row, k], red(image))
                    compared += 1
    assert compared > 30


def test_evaluated_frames_are_whole_and_of_one_size_at_a_time(folder):
    records, spec = load(folder, split="test"), SPEC._replace(flip=False)
    options = {"batch_size": 2, "threads": 1}
    batches = list(loader.eval_batches(records, spec, **options))
    assert [batch["video"].shape for batch in batches] == [
        (2, 1, 4, 40, 80, 3),
        (2, 1, 4, 56, 40, 3),
    ]
    assert [batch["index"].tolist() for batch in batches] == [[0, 2], [1, -1]]
    assert [batch["valid"].tolist() for batch in batches] == [[True, True], [True, False]]
    for batch in batches:
        for row in np.flatnonzero(batch["valid"]):
            score = batch["box_score"][row]
            box = batch["boxes"][row][score > 0][-1]
            tight = red(batch["video"][row, 0, 1])
            wide = (tight[2:] - tight[:2] + 1) * (0.05, 0.025)
            assert np.abs(box - tight - [*-wide, *wide]).max() <= 1.6
    # The filling is none of the picture: 80 x 64 is 50 x 40, in 56 rows.
    assert (batches[1]["video"][0, 0, :, 50:] == geometry.FILL).all()
    assert (batches[1]["video"][0, 0, :, 48] != geometry.FILL).any()
    for more in ({"workers": 1}, {"threads": 2}):
        again = loader.eval_batches(records, spec, **options | more)
        for one, other in zip(batches, again):
            assert all(np.array_equal(one[name], other[name]) for name in one)
        again.close()
    # Both hosts make the same number of batches, of the same shapes.
    hosts = [list(loader.eval_batches(records, spec, **options, shard=(i, 2))) for i in (0, 1)]
    assert [[b["index"].tolist() for b in host] for host in hosts] == [[[0], [1]], [[2], [-1]]]


def test_the_clip_lies_around_its_key_frame():
    # 64 frames around frame 32: 1, 5, ... 61, the key time between the 8th and 9th.
    assert geometry.around(32, 64, 16, 4).tolist() == list(range(1, 64, 4))
    assert geometry.around(0, 3, 4, 2).tolist() == [0, 0, 0, 2]
    assert geometry.around(9, 10, 4, 2).tolist() == [5, 7, 9, 9]


def test_geometry_is_the_released_one(shared):
    golden = np.load(shared / "golden" / "downstream_ava_model.npz")
    for length in (60, 64, 80):
        found = geometry.around(length // 2, length, 16, 4)
        assert found.tolist() == golden[f"boxes/temporal_index_{length}"].tolist()
    w, h = golden["boxes/wh"].tolist()
    x, y, bw, bh = golden["boxes/xywh"].T
    fractions = np.stack([x / w, y / h, (x + bw) / w, (y + bh) / h], axis=1)
    found = geometry.corners(fractions.clip(0, 1), h, w)
    found = found[~geometry.empty(found)]
    assert np.abs(found - golden["boxes/clipped_nonempty"]).max() < 1e-4
    new_w, new_h = golden["boxes/resize_wh"].tolist()
    resized = found * np.array([new_w / w, new_h / h] * 2, np.float32)
    assert np.abs(resized - golden["boxes/resized"]).max() < 1e-4
    left, top, right, bottom = golden["boxes/crop"].tolist()
    cropped = geometry.cropped(resized, top, left, bottom - top, right - left)
    assert np.abs(cropped - golden["boxes/cropped"]).max() < 1e-4
    assert np.abs(geometry.flipped(cropped, 224) - golden["boxes/flipped"]).max() < 1e-4
    kept = fractions[~geometry.empty(geometry.corners(fractions.clip(0, 1), h, w))].clip(0, 1)
    ones = np.ones(len(kept), np.float32)
    frame = key_frames.KeyFrame(0.0, (h, w), kept, ones, ones[:, None], (kept, ones))
    wider = geometry.extended(frame, (new_h, new_w))
    assert np.abs(wider - golden["boxes/extended"]).max() < 1e-4


WRONG = [
    ("wide,1,0.5,0.2,0.1,0.9,1\n", {}, "line 1: box 0.5,0.2,0.1,0.9 is out of order"),
    ("wide,1,0.1,0.2,1.1,0.9,1\n", {}, "reaches outside the frame"),
    ("wide,1,0.1,0.2,0.3,0.9,4\n", {}, "line 1: action 4 is none of 1..3"),
    ("wide,1,0.1,0.2,0.3,0.9,1\n", {"label_map": ""}, "give options.label_map"),
    ("wide,902,0.1,0.2,0.3,0.9,1\n", {}, "first wide,0902 at 902 s of the 2 s of"),
    ("wide,1,,,,,\n", {}, "no key frames in it"),
]


def test_mistakes_are_one_line(folder, tmp_path):
    for text, options, word in WRONG:
        (tmp_path / "wrong.csv").write_text(text)
        given = {"label_map": str(folder / "map.pbtxt")} | options
        with pytest.raises(DataError) as caught:
            key_frames.load(str(tmp_path / "wrong.csv"), str(folder), **given)
        assert word in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_time_beyond_the_end_is_said_and_costs_one_record(folder, tmp_path, caplog):
    rows = ["wide,1,0.1,0.2,0.3,0.9,1", "wide,7,0.1,0.2,0.3,0.9,1", "gone,1,0.1,0.2,0.3,0.9,1"]
    (tmp_path / "some.csv").write_text("\n".join(rows))
    with caplog.at_level(logging.WARNING):
        found = key_frames.load(
            str(tmp_path / "some.csv"), str(folder), split="test", num_classes=3
        )
    assert "1 of 2 key frames are outside their video, first wide,0007 at 7 s" in caplog.text
    failures = Failures()
    batches = list(loader.eval_batches(found, SPEC, batch_size=1, threads=1, failures=failures))
    assert sum(int(batch["valid"][0]) for batch in batches) == 1
    reasons = dict(failures.items)
    assert reasons["wide,0007"] == "its key frame at 7 s is outside it"
    assert "no such file" in reasons["gone,0001"]
