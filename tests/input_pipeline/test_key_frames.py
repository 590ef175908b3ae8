"""Key frames: their files become records, records clips, and boxes stay on what they were on."""

import json

import numpy as np
import pytest

from input_pipeline import loader
from input_pipeline.elements import ClipSpec
from input_pipeline.encode import Options, h264
from input_pipeline.sources import boxes
from input_pipeline.sources.records import DataError, Failures
from input_pipeline.transforms import boxes as geometry

LABELS = 'item {\n  name: "left"\n  id: 1\n}\nitem {\n  name: "right"\n  id: 3\n}\n'
BOX = (0.25, 0.25, 0.5, 0.75)
SPEC = ClipSpec(
    num_frames=4,
    frame_stride=2,
    image_size=32,
    crop="window",
    flip=True,
    boxes=geometry.BoxSpec(3, 40, (8, 8)),
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
    rows = [f"wide,1,{corners},1,0", f"wide,1,{corners},3,0", "wide,1,0.0,0.0,0.05,1.0,1,1"]
    rows += [f"high,101,{corners},3,0", f"wide,0,{corners},1,0", "wide,1.5,,,,,,"]
    (root / "boxes.csv").write_text("\n".join(rows))
    (root / "map.pbtxt").write_text(LABELS)
    return root


def load(folder, name="boxes.csv", **more):
    options = {"label_map": str(folder / "map.pbtxt"), "root": str(folder)} | more
    return boxes.load(str(folder / name), **options)


def test_a_csv_becomes_records(folder, tmp_path):
    found, names = load(folder)
    assert names == ["left", "2", "right"]
    assert [record.id for record in found] == ["wide,0001", "high,0101", "wide,0000"]
    first, second, _ = (record.truth for record in found)
    assert first.people.tolist() == [[0, 0, 0.05, 1, 1], [*BOX, 1]]
    assert first.truth[:, 4].tolist() == [1, 3, 1]
    assert (first.most, second.seconds) == (2, 1)  # The second file begins at 100 s.
    assert found[1].path.endswith("deep/high_000100_000102.mkv")
    (tmp_path / "out.csv").write_text("wide,0001\n")
    kept, _ = load(folder, excluded=str(tmp_path / "out.csv"))
    assert [record.id for record in kept] == ["high,0101", "wide,0000"]


def test_detected_people_are_looked_at_instead(folder, tmp_path):
    people = [(1, 24, 24, 0.9), (2, 32, 40, 0.8), (1, 9, 9, 0.79), (3, 9, 9, 1.0), (4, 9, 9, 1.0)]
    given = [{"image_id": n, "bbox": [0, 0, w, h], "score": score} for n, w, h, score in people]
    movies, size = (("wide", 1), ("high", 101), ("other", 1), ("high", 100)), (64, 80)
    keys = ("id", "movie", "timestamp", "width", "height")
    images = [dict(zip(keys, (n, *movie, *size))) for n, movie in enumerate(movies, 1)]
    options = {"person_boxes": tmp_path / "people.json", "images": tmp_path / "images.json"}
    options["person_boxes"].write_text(json.dumps(given))
    options["images"].write_text(json.dumps({"images": images}))
    found, _ = load(folder, **{name: str(path) for name, path in options.items()}, train=False)
    assert [record.id for record in found] == ["wide,0001", "high,0101", "wide,0000", "high,0100"]
    wide, high, empty, more = (record.truth for record in found)
    assert wide.people.tolist() == [[0, 0, 0.375, 0.3, 0.9]]
    assert high.people.tolist() == [[0, 0, 0.5, 0.5, 0.8]]
    assert (len(empty.people), len(empty.truth), len(more.truth)) == (0, 1, 0)
    assert (wide.size, high.size) == ((48, 96), (80, 64))


LABEL = [[1, 0, 0], [1, 0, 1]], [[0, 0, 1], [0, 0, 0]], [[1, 0, 0], [0, 0, 0]]
"""Of the people on each of the key frames; the first of two is no red one."""


def red(image):
    """The box (x1, y1, x2, y2) of what is red in a frame."""
    y, x = np.nonzero((image[..., 0].astype(int) - image[..., 1]) > 90)
    return np.array([x.min(), y.min(), x.max(), y.max()])


def test_boxes_move_with_the_pixels(folder):
    batches = loader.train_batches(load(folder)[0], SPEC, batch_size=3, seed=0, threads=1)
    seen = [next(batches) for _ in range(8)]
    batches.close()
    arrays = [seen[0][name] for name in ("boxes", "box_label", "box_valid")]
    kinds = [(array.shape, array.dtype) for array in arrays]
    assert kinds == [((3, 2, 4), "float32"), ((3, 2, 3), "uint8"), ((3, 2), "bool")]
    compared = outside = 0
    for batch in seen:
        for row, position in enumerate(batch["index"]):
            label, valid = batch["box_label"][row], batch["box_valid"][row]
            assert not batch["boxes"][row][~valid].any()
            assert label.tolist() == LABEL[position]
            outside += int((label.any(-1) & ~valid).sum())
            for k in np.flatnonzero(valid & ((position > 0) | (np.arange(2) == 1))):  # The red one.
                for image in batch["video"][row][1:3]:
                    close = np.abs(red(image) - batch["boxes"][row, k].clip(0, 31)).max() <= 1.6
                    assert close, (position, batch["boxes"][row, k], red(image))
                    compared += 1
    assert compared > 30
    assert outside


def test_evaluated_frames_are_whole_and_of_one_size_at_a_time(folder):
    records, options = load(folder, train=False)[0], {"batch_size": 2, "threads": 1}
    batches = list(loader.eval_batches(records, SPEC, **options))
    shapes = [batch["video"].shape for batch in batches]
    assert shapes == [(2, 1, 4, 40, 80, 3), (2, 1, 4, 56, 40, 3)]
    assert [batch["index"].tolist() for batch in batches] == [[0, 2], [1, -1]]
    assert [batch["valid"].tolist() for batch in batches] == [[True, True], [True, False]]
    for batch in batches:
        assert batch["boxes"].dtype == np.float32
        for row in np.flatnonzero(batch["valid"]):
            score = batch["box_score"][row]
            box = batch["boxes"][row][score > 0][-1]
            tight = red(batch["video"][row, 0, 1])
            wide = (tight[2:] - tight[:2] + 1) * (0.05, 0.025)
            assert np.abs(box - tight - [*-wide, *wide]).max() <= 1.6
    again = list(loader.eval_batches(records, SPEC, **options, workers=1))
    np.testing.assert_equal(again, batches)
    # Both hosts make the same number of batches, of the same shapes.
    hosts = [list(loader.eval_batches(records, SPEC, **options, shard=(i, 2))) for i in (0, 1)]
    assert [[b["index"].tolist() for b in host] for host in hosts] == [[[0], [1]], [[2], [-1]]]
    # The filling is none of the picture: 80 x 64 is 50 x 40, in 56 rows.
    assert (batches[1]["video"][0, 0, :, 50:] == geometry.FILL).all()
    assert (batches[1]["video"][0, 0, :, 48] != geometry.FILL).any()


def test_geometry_is_the_released_one(shared):
    golden = np.load(shared / "golden" / "downstream_ava_model.npz")
    for length in (60, 64, 80):
        found = geometry.around(length // 2, length, 16, 4)
        assert found.tolist() == golden[f"boxes/temporal_index_{length}"].tolist()
    (w, h), (new_w, new_h) = golden["boxes/wh"].tolist(), golden["boxes/resize_wh"].tolist()
    x, y, bw, bh = golden["boxes/xywh"].T
    fractions = np.stack([x / w, y / h, (x + bw) / w, (y + bh) / h], axis=1).clip(0, 1)
    whole = (0, 0, h, w)
    found = geometry.moved(fractions, (h, w), whole, (h, w))
    there = np.all(found[:, 2:] > found[:, :2], axis=1)
    close = {"clipped_nonempty": found[there]}
    close["resized"] = geometry.moved(fractions[there], (h, w), whole, (new_h, new_w))
    left, top, right, bottom = golden["boxes/crop"].tolist()
    down, along = h / new_h, w / new_w
    size = bottom - top, right - left
    crop = top * down, left * along, size[0] * down, size[1] * along
    close["cropped"] = geometry.moved(fractions[there], (h, w), crop, size)
    close["flipped"] = geometry.flipped(close["cropped"], 224)
    close["extended"] = geometry.wider(close["resized"], (new_h, new_w))
    for name, own in close.items():
        assert np.abs(own - golden[f"boxes/{name}"]).max() < 1e-4, name


def test_mistakes_are_named(folder, tmp_path):
    for text, word in (
        ("wide,1,0.5,0.2,0.1,0.9,1\n", "line 1, 'wide,1,0.5,0.2,0.1,0.9,1'.*between 0 and 1"),
        ("wide,1,0.1,0.2,0.3,0.9,4\n", "action 4 is none of 1..3"),
        ("wide,1,,,,,\n", "no key frames in it"),
    ):
        (tmp_path / "wrong.csv").write_text(text)
        with pytest.raises(DataError, match=word):
            load(tmp_path, "wrong.csv", root=str(folder), label_map=str(folder / "map.pbtxt"))


def test_a_time_beyond_the_end_costs_one_record(folder, tmp_path):
    rows = ["wide,1,0.1,0.2,0.3,0.9,1", "wide,7,0.1,0.2,0.3,0.9,1", "gone,1,0.1,0.2,0.3,0.9,1"]
    (tmp_path / "some.csv").write_text("\n".join(rows))
    found, _ = load(tmp_path, "some.csv", root=str(folder), label_map="", train=False)
    failures = Failures()
    batches = list(loader.eval_batches(found, SPEC, batch_size=1, threads=1, failures=failures))
    assert sum(int(batch["valid"][0]) for batch in batches) == 1
    assert failures["wide,0007"] == "its key frame at 7 s is outside it"
    assert "no such file" in failures["gone,0001"]
