"""The labelled set of moving shapes (`shapes`) as real H.264 files with their lists."""

import functools
import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from input_pipeline.sources.records import DataError
from input_pipeline.synthetic import shapes
from input_pipeline.video import whole
from input_pipeline.workers import each

SPLITS = ("unlabelled", "train", "val", "test")
_RECIPE = 2  # raise it when `shapes` draws the same clips otherwise: old sets are then rewritten
Key = tuple[int, int, int]  # Of a file: seed, number of the split, number within it.


class Lists(NamedTuple):
    """The list files of a set: `path label` lines, paths relative to the folder of the list."""

    pretrain: pathlib.Path
    train: pathlib.Path
    val: pathlib.Path
    test: pathlib.Path
    classes: pathlib.Path


def lists_in(root: str | os.PathLike[str]) -> Lists:
    """Where the list files of a set are, written or not."""
    return Lists(*(pathlib.Path(root) / f"{name}.txt" for name in Lists._fields))


def name_of(key: Key) -> str:
    return f"videos/{SPLITS[key[1]]}_{key[2]:06}.mp4"


def events_of(key: Key, long: int) -> tuple[shapes.Event, ...]:
    """When something happens in a long video; by a generator of its own."""
    return shapes.moments(np.random.default_rng((*key, 1)), long, shapes.NUM_FRAMES)


def _write(root: pathlib.Path, long: int, pan: float, key: Key, lost: str) -> str:
    if lost:
        raise DataError(f"{name_of(key)}: {lost}")
    # A generator per file: its frames depend on nothing but its own number.
    rng, label = np.random.default_rng(key), key[2] % len(shapes.CLASSES)
    events = events_of(key, long) if long else ()
    frames = shapes.render(rng, label, long or shapes.NUM_FRAMES, events=events, pan=pan)
    whole.write(root / name_of(key), shapes.encode(frames))
    return name_of(key)  # grain leaves out what is None.


def write(
    root: str | os.PathLike[str],
    *,
    num_unlabelled: int,
    num_train: int,
    num_val: int,
    num_test: int,
    long: int = 0,
    pan: float = 0.0,
    seed: int = 0,
    workers: int = 0,
) -> Lists:
    """Writes the set: `videos/*.mp4`, the list files, `classes.txt`, `synthetic.json`.

    Files appear whole and the lists last, so a set with lists is complete. A call that was killed
    is repeated unchanged and writes what is missing; other parameters replace the whole set.
    Every split takes the classes in turn, and its clips do not depend on the size of the others.
    Frames before encoding are equal on every machine; another x264 stores them a little otherwise.

    `pretrain.txt` has those without labels and those of `train.txt`, all with label 0. `long` is
    frames per file of a set of long videos, in which the shape rests but for one or two events of
    `shapes.NUM_FRAMES`; 0 makes short and busy ones. `pan` is that of `shapes.render`.
    `workers=0` is a process per core.
    """
    counts = {"unlabelled": num_unlabelled, "train": num_train, "val": num_val, "test": num_test}
    if 0 < long < 4 * shapes.NUM_FRAMES:
        raise DataError(f"synthetic.long={long}; make it {4 * shapes.NUM_FRAMES} or more, or 0")
    root = pathlib.Path(root)
    parameters: dict[str, float] = {
        "recipe": _RECIPE,
        "seed": seed,
        "long": long,
        "pan": pan,
        **counts,
    }
    _begin(root, parameters)
    lists = lists_in(root)
    keys = {
        split: [(seed, part, number) for number in range(counts[split])]
        for part, split in enumerate(SPLITS)
    }
    missing = [
        key for every in keys.values() for key in every if not (root / name_of(key)).exists()
    ]
    if missing:
        for path in lists:
            path.unlink(missing_ok=True)
        for _ in each(functools.partial(_write, root, long, pan), missing, workers):
            pass
    for split in ("train", "val", "test"):
        rows = [f"{name_of(key)} {key[2] % len(shapes.CLASSES)}" for key in keys[split]]
        _lines(root / f"{split}.txt", rows)
    _lines(lists.pretrain, [f"{name_of(key)} 0" for key in keys["unlabelled"] + keys["train"]])
    _lines(lists.classes, shapes.CLASSES)
    return lists


def _begin(root: pathlib.Path, parameters: dict[str, float]) -> None:
    """Makes the folder; what was written with other parameters is deleted."""
    videos, record = root / "videos", root / "synthetic.json"
    if not record.exists() or {"pan": 0.0} | json.loads(record.read_bytes()) != parameters:
        for path in (*lists_in(root), videos):
            if path.exists() and not record.exists():
                raise FileExistsError(f"{path} is not a synthetic set's; give an empty folder")
        for path in lists_in(root):
            path.unlink(missing_ok=True)
        shutil.rmtree(videos, ignore_errors=True)
        root.mkdir(parents=True, exist_ok=True)
        whole.write(record, json.dumps(parameters, indent=1).encode())
    videos.mkdir(exist_ok=True)


def _lines(path: pathlib.Path, lines: Sequence[str]) -> None:
    whole.write(path, "".join(f"{line}\n" for line in lines).encode())
