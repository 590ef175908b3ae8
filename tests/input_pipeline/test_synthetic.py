"""The moving shapes: real files, the same bytes always, and a class that only motion shows."""

import collections
import itertools
import pathlib
import shutil
from typing import Any

import av
import cv2
import numpy as np
import pytest

from input_pipeline import shapes, synthetic

COUNTS: dict[str, Any] = {"num_unlabelled": 24, "num_train": 16, "num_val": 8, "num_test": 16}


def contents(root: pathlib.Path) -> dict[str, bytes]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def read_list(path: pathlib.Path) -> list[tuple[pathlib.Path, int]]:
    rows = [line.split(" ") for line in path.read_text().splitlines()]
    return [(path.parent / name, int(label)) for name, label in rows]


def decode(path: pathlib.Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> synthetic.Lists:
    return synthetic.write(tmp_path_factory.mktemp("made") / "set", **COUNTS, workers=1)


def test_bytes_do_not_depend_on_workers(made: synthetic.Lists, tmp_path: pathlib.Path) -> None:
    again = synthetic.write(tmp_path, **COUNTS, workers=2)
    assert contents(again.train.parent) == contents(made.train.parent)
    few = {**COUNTS, "num_unlabelled": 0, "num_train": 1}
    other = synthetic.write(tmp_path, **few, seed=1, workers=1)
    first, second = read_list(other.test)[0][0], read_list(made.test)[0][0]
    assert first.name == second.name
    assert first.read_bytes() != second.read_bytes()


def test_a_clip_does_not_depend_on_the_size_of_other_splits(
    made: synthetic.Lists, tmp_path: pathlib.Path
) -> None:
    small = synthetic.write(tmp_path, num_unlabelled=0, num_train=3, num_val=0, num_test=2)
    large = contents(made.train.parent)
    videos = {name: data for name, data in contents(tmp_path).items() if name.endswith(".mp4")}
    assert len(videos) == 5
    assert all(large[name] == data for name, data in videos.items())
    assert small.val.read_text() == ""


def test_lists_are_complete_balanced_and_disjoint(made: synthetic.Lists) -> None:
    parts = {name: read_list(getattr(made, name)) for name in ("train", "val", "test")}
    for name, rows in parts.items():
        assert len(rows) == COUNTS[f"num_{name}"]
        assert set(collections.Counter(label for _, label in rows).values()) == {len(rows) // 8}
    pretrain = read_list(made.pretrain)
    assert len(pretrain) == COUNTS["num_unlabelled"] + COUNTS["num_train"]
    assert {label for _, label in pretrain} == {0}
    assert {path for path, _ in parts["train"]} < {path for path, _ in pretrain}
    evaluated = [path for name in ("val", "test") for path, _ in parts[name]]
    everything = {path for path, _ in pretrain} | set(evaluated)
    assert len(everything) == sum(COUNTS.values()) == len(pretrain) + len(evaluated)
    assert everything == set(made.train.parent.glob("videos/*"))
    assert made.classes.read_text().split() == list(shapes.CLASSES)


def test_files_show_what_was_rendered(made: synthetic.Lists) -> None:
    for number, (path, label) in enumerate(read_list(made.test)):
        video = decode(path)
        assert video.shape == (shapes.NUM_FRAMES, shapes.SIZE, shapes.SIZE, 3)
        # Split 3 is the test part: the file's generator is addressed by (seed, split, number).
        clip = shapes.render(np.random.default_rng((0, 3, number)), label)
        error = video.mean(axis=-1) - clip.mean(axis=-1)
        assert 10 * np.log10(255**2 / np.mean(error**2)) > 30, path
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == shapes.FPS
        assert stream.frames == shapes.NUM_FRAMES


def test_an_existing_set_is_kept_and_holes_are_filled(
    made: synthetic.Lists, tmp_path: pathlib.Path
) -> None:
    root = tmp_path / "set"
    shutil.copytree(made.train.parent, root)
    whole = contents(root)
    calls: list[tuple[int, int]] = []

    def note(done: int, total: int) -> None:
        calls.append((done, total))

    synthetic.write(root, **COUNTS, progress=note)
    assert calls == []
    for path in sorted(root.glob("videos/*"))[::20]:
        path.rename(path.with_name(path.name + ".part"))  # as a kill in the middle leaves it
    (root / "val.txt").unlink()
    synthetic.write(root, **COUNTS, workers=1, progress=note)
    assert calls == [(n, 4) for n in (1, 2, 3, 4)]
    assert contents(root) == whole


def test_a_killed_writer_leaves_no_lists(made: synthetic.Lists, tmp_path: pathlib.Path) -> None:
    def kill(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    # On the way from one complete set to another, so that there are old lists to mistake.
    synthetic.write(tmp_path, num_unlabelled=0, num_train=1, num_val=1, num_test=1, seed=5)
    with pytest.raises(KeyboardInterrupt):
        synthetic.write(tmp_path, **COUNTS, workers=1, progress=kill)
    assert list(tmp_path.glob("*.txt")) == []
    assert len(list(tmp_path.glob("videos/*.mp4"))) == sum(COUNTS.values()) // 2
    synthetic.write(tmp_path, **COUNTS, workers=1)
    assert contents(tmp_path) == contents(made.train.parent)


def test_wrong_numbers_and_foreign_folders_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="size is 47"):
        synthetic.write(tmp_path, size=47)
    with pytest.raises(ValueError, match="num_val is -1"):
        synthetic.write(tmp_path, num_val=-1)
    mine = tmp_path / "videos" / "holiday.mp4"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="videos"):
        synthetic.write(tmp_path, **COUNTS)
    assert contents(tmp_path) == {"videos/holiday.mp4": b"mine"}


# What a single frame tells, and what motion tells.


def test_pairs_are_time_reversals_and_even_classes_share_their_first_frame() -> None:
    for seed in range(4):
        clips = [shapes.render(np.random.default_rng(seed), label) for label in range(8)]
        for forward, backward in zip(clips[::2], clips[1::2]):
            np.testing.assert_array_equal(forward[::-1], backward)
        for clip in clips[2::2]:
            np.testing.assert_array_equal(clip[0], clips[0][0])
            assert np.any(clip[1] != clips[0][1])


def flow(clip: np.ndarray) -> np.ndarray:
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


def test_flow_names_the_class(made: synthetic.Lists) -> None:
    rows = read_list(made.train) + read_list(made.val) + read_list(made.test)
    signed = {(0, -1): "left", (0, 1): "right", (1, -1): "up", (1, 1): "down"}
    signed |= {(2, 1): "clockwise", (2, -1): "anticlockwise", (3, 1): "grow", (3, -1): "shrink"}
    right = 0
    for path, label in rows:
        velocity = flow(decode(path))
        strongest = int(np.abs(velocity).argmax())
        name = signed[strongest, int(np.sign(velocity[strongest]))]
        right += name == shapes.CLASSES[label]
    assert right / len(rows) > 0.7  # 1/8 by chance


def probe(inputs: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy of the better of a linear and a nearest-neighbour classifier, on the second half."""
    flat = inputs.reshape(len(inputs), -1).astype(np.float64)
    flat = (flat - flat.mean(axis=0)) / flat.std(axis=0).mean()
    half = len(flat) // 2
    known, asked, wanted = flat[:half], flat[half:], np.eye(8)[labels[:half]]
    kernel = known @ known.T
    weights = np.linalg.solve(kernel + 0.1 * np.trace(kernel) / half * np.eye(half), wanted - 1 / 8)
    linear = (asked @ known.T @ weights).argmax(axis=-1)
    distance = (asked**2).sum(axis=-1)[:, None] + (known**2).sum(axis=-1) - 2 * asked @ known.T
    nearest = labels[:half][distance.argmin(axis=-1)]
    return max(np.mean(linear == labels[half:]), np.mean(nearest == labels[half:]))


def test_a_single_frame_does_not_name_the_class() -> None:
    labels = np.arange(640) % 8
    clips = [shapes.render(np.random.default_rng((7, n)), n % 8, 12, 32) for n in range(640)]
    small = np.stack([[cv2.resize(f, (16, 16)).mean(axis=-1) for f in c] for c in clips])
    # Chance is 1/8, with a standard error of .0185 on 320 clips.
    for frame in (0, 6, 11):
        assert probe(small[:, frame], labels) < 0.125 + 4 * 0.0185
    # The same classifiers do see the class in where over the frame something changes.
    changes = np.stack([np.abs(np.diff(clip, axis=0)).mean(axis=0) for clip in small])
    assert probe(changes, labels) > 0.125 + 4 * 0.0185
