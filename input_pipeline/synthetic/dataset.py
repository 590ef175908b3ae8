"""The labelled set of moving shapes (`shapes`) as real H.264 files with their lists."""

import concurrent.futures
import csv
import json
import math
import multiprocessing
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from input_pipeline.synthetic import shapes
from input_pipeline.video import whole

_RECIPE = 2  # raise it when `shapes` draws the same clips otherwise: old sets are then rewritten
_RECORD = "synthetic.json"
_EVENTS = "events.csv"
_SPLITS = ("unlabelled", "train", "val", "test")


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


class _Job(NamedTuple):
    """One file to write."""

    path: pathlib.Path
    key: tuple[int, int, int]  # seed, split, number within the split
    label: int
    num_frames: int
    events: tuple[shapes.Event, ...]


def read_events(root: str | os.PathLike[str]) -> dict[str, list[shapes.Event]]:
    """When something happens in the long videos of a set, from its `events.csv`.

    Returns:
        Path as in the lists -> `(start, end)` in frames, `end` excluded, in the order of time.

    Raises:
        FileNotFoundError: if the set is absent or its videos are short; shows the path.
    """
    found: dict[str, list[shapes.Event]] = {}
    with (pathlib.Path(root) / _EVENTS).open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["id"], []).append((int(row["start"]), int(row["end"])))
    return found


def _write_video(job: _Job) -> None:
    # A generator per file: its frames depend on nothing but its own number.
    rng = np.random.default_rng(job.key)
    frames = shapes.render(rng, job.label, job.num_frames, events=job.events)
    whole.write(job.path, shapes.encode(frames))


def _run(jobs: list[_Job], workers: int) -> Iterator[None]:
    workers = min(workers, math.ceil(len(jobs) / 32))  # a process starts in the time of 32 clips
    if workers <= 1:
        yield from map(_write_video, jobs)
        return
    # A forked copy of a process in which JAX runs its threads may deadlock.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            yield from pool.map(_write_video, jobs, chunksize=8)
        finally:
            pool.shutdown(cancel_futures=True)


def write(
    root: str | os.PathLike[str],
    *,
    num_unlabelled: int,
    num_train: int,
    num_val: int,
    num_test: int,
    long: int = 0,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Lists:
    """Writes the set: `videos/*.mp4`, the list files, `classes.txt`, `synthetic.json`.

    Files appear whole and the lists last, so a set with lists is complete. A call that was killed
    is repeated unchanged and writes what is missing; other parameters replace the whole set.
    Every split takes the classes in turn, and its clips do not depend on the size of the others.
    Frames before encoding are equal on every machine; another x264 stores them a little otherwise.

    Args:
        root: a local folder, made if absent; one writer at a time.
        num_unlabelled: clips that are in `pretrain.txt` only, with label 0 whatever they show.
        num_train: labelled clips: in `train.txt`, and in `pretrain.txt` with label 0 as well.
        num_val: clips of `val.txt`.
        num_test: clips of `test.txt`.
        long: frames per file of a set of long videos, in which the shape rests but for one or two
            events of `shapes.NUM_FRAMES`, listed in `events.csv`. 0: short and busy ones.
        seed: another seed is another set of clips.
        workers: processes, all cores by default. More than 1 needs a main module that can be
            imported again (a guarded script).
        progress: called with (files written so far, files to write) after each file.

    Raises:
        ValueError: if a number is out of range; the message names it.
        FileExistsError: if the folder holds such files, named, but no record of ours.
    """
    counts = dict(zip(_SPLITS, (num_unlabelled, num_train, num_val, num_test)))
    for split, count in counts.items():
        if count < 0:
            raise ValueError(f"num_{split} is {count}; give a number of clips, 0 or more")
    if long and long < 4 * shapes.NUM_FRAMES:
        raise ValueError(f"long is {long}; give {4 * shapes.NUM_FRAMES} frames or more, or 0")

    root = pathlib.Path(root)
    videos, record = root / "videos", root / _RECORD
    lists = lists_in(root)
    names = {
        split: [f"videos/{split}_{n:06}.mp4" for n in range(counts[split])] for split in counts
    }
    parameters = {"recipe": _RECIPE, "seed": seed, "long": long, **counts}
    if not record.exists() or json.loads(record.read_bytes()) != parameters:
        foreign = [path for path in (*lists, videos) if path.exists() and not record.exists()]
        if foreign:
            raise FileExistsError(f"{foreign[0]} is not a synthetic set's; give an empty folder")
        for path in (*lists, root / _EVENTS):
            path.unlink(missing_ok=True)
        if videos.exists():
            shutil.rmtree(videos)
        root.mkdir(parents=True, exist_ok=True)
    whole.write(record, json.dumps(parameters, indent=1).encode())
    videos.mkdir(exist_ok=True)

    events: dict[str, tuple[shapes.Event, ...]] = {}
    if long:
        for part, split in enumerate(_SPLITS):
            for number, name in enumerate(names[split]):
                # A generator of its own, so that when it happens is known without rendering.
                rng = np.random.default_rng((seed, part, number, 1))
                events[name] = shapes.moments(rng, long, shapes.NUM_FRAMES)
        rows = [f"{name},{start},{end}\n" for name in events for start, end in events[name]]
        whole.write(root / _EVENTS, "".join(["id,start,end\n", *rows]).encode())

    present = {f"videos/{entry.name}" for entry in os.scandir(videos)}
    jobs = [
        _Job(
            root / name,
            (seed, part, number),
            number % len(shapes.CLASSES),
            long or shapes.NUM_FRAMES,
            events.get(name, ()),
        )
        for part, split in enumerate(_SPLITS)
        for number, name in enumerate(names[split])
        if name not in present
    ]
    if jobs:
        for path in lists:
            path.unlink(missing_ok=True)
    for done, _ in enumerate(_run(jobs, workers or os.cpu_count() or 1), start=1):
        if progress is not None:
            progress(done, len(jobs))

    for split in _SPLITS[1:]:
        lines = [
            f"{name} {number % len(shapes.CLASSES)}\n" for number, name in enumerate(names[split])
        ]
        whole.write(root / f"{split}.txt", "".join(lines).encode())
    unlabelled = [f"{name} 0\n" for name in names["unlabelled"] + names["train"]]
    whole.write(lists.pretrain, "".join(unlabelled).encode())
    whole.write(lists.classes, "".join(f"{name}\n" for name in shapes.CLASSES).encode())
    return lists
