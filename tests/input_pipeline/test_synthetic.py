"""The moving shapes: real files, the same frames always, and a class that only motion shows."""

import collections
import itertools

import av
import cv2
import numpy as np
import pytest

from input_pipeline.sources.records import DataError
from input_pipeline.synthetic import dataset as synthetic
from input_pipeline.synthetic import shapes

COUNTS = {"num_unlabelled": 24, "num_train": 16, "num_val": 8, "num_test": 16}


def contents(root):
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def read_list(path):
    rows = [line.split(" ") for line in path.read_text().splitlines()]
    return [(name, int(label)) for name, label in rows]


def decode(path):
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("made"), **COUNTS, workers=1)


def test_a_file_depends_on_its_number_alone(made, tmp_path):
    """Not on workers, other splits, or what was in the folder; on the seed."""
    whole, root = contents(made.train.parent), tmp_path / "set"
    few = {"num_unlabelled": 0, "num_train": 3, "num_val": 0, "num_test": 2}
    synthetic.write(root, **few, long=80)
    synthetic.write(root, **few)
    videos = {name: data for name, data in contents(root).items() if name.endswith(".mp4")}
    assert len(videos) == 5
    assert videos.items() <= whole.items()
    synthetic.write(root, **COUNTS, workers=2)
    assert contents(root) == whole
    other = synthetic.write(root, **few, seed=1).train.parent / "videos" / "test_000000.mp4"
    assert other.read_bytes() != whole["videos/test_000000.mp4"]


def test_lists_are_complete_balanced_and_disjoint(made):
    parts = {name: read_list(getattr(made, name)) for name in ("train", "val", "test")}
    for name, rows in parts.items():
        assert len(rows) == COUNTS[f"num_{name}"]
        assert set(collections.Counter(label for _, label in rows).values()) == {len(rows) // 8}
    pretrain = read_list(made.pretrain)
    assert len(pretrain) == COUNTS["num_unlabelled"] + COUNTS["num_train"]
    assert {label for _, label in pretrain} == {0}
    assert {path for path, _ in parts["train"]} < {path for path, _ in pretrain}
    everything = [path for path, _ in pretrain + parts["val"] + parts["test"]]
    assert len(set(everything)) == len(everything) == sum(COUNTS.values())
    assert set(everything) == {f"videos/{p.name}" for p in made.train.parent.glob("videos/*")}
    assert made.classes.read_text().split() == list(shapes.CLASSES)


def test_a_killed_writer_leaves_no_lists_and_is_repeated(made, tmp_path, monkeypatch):
    def killed(task, keys, workers):
        yield from synthetic_each(task, keys[: len(keys) // 2], workers)
        raise KeyboardInterrupt

    synthetic_each = synthetic.each

    # On the way from one complete set to another, so that there are old lists to mistake.
    synthetic.write(tmp_path, num_unlabelled=0, num_train=1, num_val=1, num_test=1, seed=5)
    monkeypatch.setattr(synthetic, "each", killed)
    with pytest.raises(KeyboardInterrupt):
        synthetic.write(tmp_path, **COUNTS, workers=1)
    monkeypatch.undo()
    assert 0 < len(list(tmp_path.glob("videos/*"))) < sum(COUNTS.values())
    assert list(tmp_path.glob("*.txt")) == []
    synthetic.write(tmp_path, **COUNTS, workers=1)
    assert contents(tmp_path) == contents(made.train.parent)


def test_foreign_folders_and_short_long_videos_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"synthetic\.long=79"):
        synthetic.write(tmp_path, **COUNTS, long=79)
    mine = tmp_path / "videos" / "holiday.mp4"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="videos"):
        synthetic.write(tmp_path, **COUNTS)
    assert contents(tmp_path) == {"videos/holiday.mp4": b"mine"}


def test_long_videos_move_in_their_events_alone(tmp_path):
    none = dict.fromkeys(("num_unlabelled", "num_val", "num_test"), 0)
    made = synthetic.write(tmp_path, **none, num_train=8, long=80, workers=1)
    rows, keys = read_list(made.train), [(0, 1, n) for n in range(8)]
    events = {synthetic.name_of(key): synthetic.events_of(key, 80) for key in keys}
    assert {name for name, _ in rows} == set(events)
    assert {len(found) for found in events.values()} == {1, 2}
    for name, _ in rows:
        video = decode(tmp_path / name)
        moving = np.zeros(80, bool)
        for start, end in events[name]:
            moving[start:end] = True
        change = np.abs(np.diff(video.astype(np.float32), axis=0)).mean(axis=(1, 2, 3))
        # Outside there is the shaking camera alone.
        assert change[moving[1:]].mean() > 1.1 * change[~moving[1:]].mean(), name


def test_pairs_are_time_reversals_and_even_classes_share_their_first_frame():
    for seed in range(4):
        clips = [shapes.render(np.random.default_rng(seed), label) for label in range(8)]
        for forward, backward in zip(clips[::2], clips[1::2]):
            np.testing.assert_array_equal(forward[::-1], backward)
        for clip in clips[2::2]:
            np.testing.assert_array_equal(clip[0], clips[0][0])
            assert np.any(clip[1] != clips[0][1])


def flow(clip):
    """Median velocity of what moves most `[4]`: right, down, clockwise, growing (pixels / frame).

    Least squares on brightness constancy, I_t + I_x u + I_y v = 0, around the centre of change.
    """
    grey = np.stack([cv2.GaussianBlur(f.astype(np.float32).mean(axis=-1), (0, 0), 1) for f in clip])
    size = grey.shape[1]
    y, x = np.mgrid[:size, :size].astype(np.float32)
    circle = np.exp(2j * np.pi * np.arange(size) / size)  # the frame is a torus
    found = []
    for before, after in itertools.pairwise(grey):
        change = after - before
        down, right = np.gradient((after + before) / 2)
        mass = change**2
        centre = [np.angle(mass.sum(axis=axis) @ circle) * size / 2 / np.pi for axis in (0, 1)]
        dx, dy = ((at - middle + size / 2) % size - size / 2 for at, middle in zip((x, y), centre))
        near = dx**2 + dy**2 < (0.3 * size) ** 2
        reach = 0.2 * size
        terms = (right, down, (right * -dy + down * dx) / reach, (right * dx + down * dy) / reach)
        design = np.stack([term[near] for term in terms], axis=-1)
        found.append(np.linalg.lstsq(design, -change[near], rcond=None)[0])
    return np.median(found, axis=0)


def test_flow_names_the_class(made):
    rows = read_list(made.train) + read_list(made.val) + read_list(made.test)
    signed = {(0, -1): "left", (0, 1): "right", (1, -1): "up", (1, 1): "down"}
    signed |= {(2, 1): "clockwise", (2, -1): "anticlockwise", (3, 1): "grow", (3, -1): "shrink"}
    right = 0
    for path, label in rows:
        velocity = flow(decode(made.train.parent / path))
        strongest = int(np.abs(velocity).argmax())
        name = signed[strongest, int(np.sign(velocity[strongest]))]
        right += name == shapes.CLASSES[label]
    assert right / len(rows) > 0.7  # 1/8 by chance
