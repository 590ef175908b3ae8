"""The moving shapes: real files, the same frames always, and a class that only motion shows."""

import numpy as np
import pytest
from packing import refused

from input_pipeline.synthetic import dataset as synthetic
from input_pipeline.synthetic import shapes as moving


def contents(root):
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_a_file_depends_on_its_number_alone(shapes, tmp_path):
    """Not on workers or other splits; on the seed. A killed call writes what is missing."""
    whole = contents(shapes)
    few = {"num_unlabelled": 0, "num_train": 3, "num_val": 0, "num_test": 2}
    synthetic.write(tmp_path / "few", **few, workers=2)
    videos = {n: data for n, data in contents(tmp_path / "few").items() if n.endswith(".mp4")}
    assert len(videos) == 5
    assert videos.items() <= whole.items()
    (tmp_path / "few/videos/test_000001.mp4").unlink()
    synthetic.write(tmp_path / "few", **few)
    assert videos.items() <= contents(tmp_path / "few").items()
    other = synthetic.write(tmp_path / "other", **few, seed=1)
    assert (other / "videos/test_000000.mp4").read_bytes() != whole["videos/test_000000.mp4"]
    refused("other parameters; delete that", synthetic.write, other, **few, seed=2)


def test_lists_are_complete_balanced_and_disjoint(shapes):
    rows = {}
    for name, count in {"pretrain": 40, "train": 24, "val": 8, "test": 19}.items():
        found = (line.split() for line in (shapes / f"{name}.txt").read_text().splitlines())
        rows[name], labels = zip(*found)
        assert list(map(int, labels)) == [n % 8 * (name != "pretrain") for n in range(count)]
    assert {*rows["train"]} < {*rows["pretrain"]}
    everything = [*rows["pretrain"], *rows["val"], *rows["test"]]
    assert sorted(everything) == sorted(f"videos/{p.name}" for p in shapes.glob("videos/*"))
    assert (shapes / "classes.txt").read_text().split() == list(moving.CLASSES)
    rows = (shapes / "boxes/val.csv").read_text().splitlines()
    acts = [row.rpartition(",")[2] for row in rows]
    assert acts == [act for n in range(1, 9) for act in ("9", "9", str(n))]


def test_pairs_are_time_reversals_and_even_classes_share_their_first_frame():
    for seed in range(4):
        clips = [
            moving.render(moving.scene(np.random.default_rng(seed), label)) for label in range(8)
        ]
        for forward, backward in zip(clips[::2], clips[1::2]):
            np.testing.assert_array_equal(forward[::-1], backward)
        for clip in clips[2::2]:
            np.testing.assert_array_equal(clip[0], clips[0][0])
            assert np.any(clip[1] != clips[0][1])


def test_a_panning_camera_moves_everything():
    def still(pan):
        clip = moving.render(moving.scene(np.random.default_rng(0), 0, pan=pan)).astype(int)
        return (np.abs(clip[1:] - clip[:-1]).max(axis=-1) < 6).mean()

    assert still(0.0) > 0.5 > 0.2 > still(0.04)


@pytest.mark.parametrize("labels", [(0, 2), (1, 3), (4, 6), (5, 7)])
def test_two_classes_differ_in_the_boxes_of_their_shapes_alone(labels):
    seen = 0
    for seed in range(100):
        scenes = [moving.scene(np.random.default_rng(seed), label) for label in labels]
        found = [moving.boxes(scene, 12) for scene in scenes]
        np.testing.assert_array_equal(found[0][:-1], found[1][:-1])
        ends = np.rint(moving.SIZE * np.array([found[0][-1], found[1][-1]])).astype(int)
        if ends.min() == 0 or ends.max() == moving.SIZE:
            continue  # One wraps around.
        boxes = np.zeros((moving.SIZE, moving.SIZE), bool)
        for x1, y1, x2, y2 in ends:
            boxes[y1 - 1 : y2 + 1, x1 - 1 : x2 + 1] = True
        clips = [moving.render(scene) for scene in scenes]
        differs = (clips[0][12] != clips[1][12]).any(axis=-1)
        assert not differs[~boxes].any()
        assert differs[boxes].mean() > 0.4
        seen += 1
    assert seen
