"""The labelled set of moving shapes (`shapes`) as real H.264 files with their lists."""

import functools
import json
import os
import pathlib

import numpy as np

from input_pipeline.sources.records import DataError
from input_pipeline.synthetic import shapes
from input_pipeline.video import whole
from input_pipeline.workers import each

SPLITS = ("unlabelled", "train", "val", "test")
_RECIPE = 2  # Raise it when `shapes` draws otherwise: old sets are then refused.
Key = tuple[int, int, int]  # Of a file: seed, number of the split, number within it.


def _scene(long: int, pan: float, key: Key) -> tuple[shapes.Scene, tuple[shapes.Event, ...]]:
    # Generators per file: its frames depend on nothing but its own number.
    length, events = long or shapes.NUM_FRAMES, tuple[shapes.Event, ...]()
    if long:
        events = shapes.moments(np.random.default_rng((*key, 1)), long, shapes.NUM_FRAMES)
    return shapes.scene(np.random.default_rng(key), _label(key), length, events, pan), events


def _write(root: pathlib.Path, long: int, pan: float, key: Key, lost: str) -> str:
    if lost:
        raise DataError(f"{_name(key)}: {lost}")
    frames = shapes.render(_scene(long, pan, key)[0])
    whole.write(root / _name(key), shapes.encode(frames))
    return _name(key)  # grain leaves out what is None.


def _boxes(long: int, pan: float, key: Key) -> str:
    """Rows of AVA's form: what the shape does at a second at which it moves; the others rest."""
    scene, events = _scene(long, pan, key)
    start = events[0][0] if events else 0
    second = round((start + shapes.NUM_FRAMES / 2) / shapes.FPS)
    found = shapes.boxes(scene, second * shapes.FPS).round(4).tolist()
    actions = [len(shapes.CLASSES)] * shapes.NUM_RESTING + [_label(key)]
    rows = ([pathlib.Path(_name(key)).stem, second, *b, 1 + n] for b, n in zip(found, actions))
    return "".join(",".join(map(str, row)) + "\n" for row in rows)


def _label(key: Key) -> int:
    return key[2] % len(shapes.CLASSES)


def _name(key: Key) -> str:
    return f"videos/{SPLITS[key[1]]}_{key[2]:06}.mp4"


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
) -> pathlib.Path:
    """Writes the set: `videos/*.mp4`, `{pretrain,train,val,test}.txt`, `classes.txt`; and `boxes/`,
    a key frame of each labelled video in AVA's form, with a class more, of what rests.

    Files appear whole, so that a call which was killed is repeated unchanged and writes what is
    missing; a folder keeps the parameters that it was begun with.
    Every split takes the classes in turn, and its clips do not depend on the size of the others.
    Frames before encoding are equal on every machine; another x264 stores them a little otherwise.

    `pretrain.txt` has those without labels and those of `train.txt`, all with label 0. `long` is
    frames per file of a set of long videos, in which the shape rests but for one or two events of
    `shapes.NUM_FRAMES`; 0 makes short and busy ones. `pan` is that of `shapes.scene`.
    `workers=0` is a process per core.
    """
    counts = {"unlabelled": num_unlabelled, "train": num_train, "val": num_val, "test": num_test}
    if 0 < long < 4 * shapes.NUM_FRAMES:
        raise DataError(f"synthetic.long={long}; make it {4 * shapes.NUM_FRAMES} or more, or 0")
    root = pathlib.Path(root)
    parameters: dict[str, float]
    parameters = {"recipe": _RECIPE, "seed": seed, "long": long, "pan": pan, **counts}
    record = root / "synthetic.json"
    if record.exists():
        if {"pan": 0.0} | json.loads(record.read_bytes()) != parameters:
            raise DataError(f"{root} holds moving shapes of other parameters; delete that folder")
    elif there := [*root.glob("*.txt"), *root.glob("videos")]:
        raise DataError(f"{there[0]} is not of moving shapes; give an empty folder")
    root.mkdir(parents=True, exist_ok=True)
    whole.write(record, json.dumps(parameters, indent=1))
    (root / "videos").mkdir(exist_ok=True)
    keys = {
        split: [(seed, part, number) for number in range(counts[split])]
        for part, split in enumerate(SPLITS)
    }
    missing = [key for of in keys.values() for key in of if not (root / _name(key)).exists()]
    if missing:
        for _ in each(functools.partial(_write, root, long, pan), missing, workers):
            pass
    texts = {"classes.txt": "".join(f"{name}\n" for name in shapes.CLASSES)}
    texts["boxes/classes.txt"] = texts["classes.txt"] + "rests\n"
    for split in SPLITS[1:]:
        texts[f"{split}.txt"] = "".join(f"{_name(key)} {_label(key)}\n" for key in keys[split])
        if not (root / f"boxes/{split}.csv").exists():
            texts[f"boxes/{split}.csv"] = "".join(_boxes(long, pan, key) for key in keys[split])
    every = keys["unlabelled"] + keys["train"]
    texts["pretrain.txt"] = "".join(f"{_name(key)} 0\n" for key in every)
    (root / "boxes").mkdir(exist_ok=True)
    for name, text in texts.items():
        whole.write(root / name, text)
    return root
