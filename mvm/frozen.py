"""What a frozen encoder makes of each video of a list: a .npy file for each, made once."""

import concurrent.futures
import contextlib
import io
import json
import logging
import posixpath
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from mvm import data, evaluate, inference, labels, samples, tasks
from mvm.figures import gallery, report
from mvm.runtime import metrics, multihost
from mvm.tasks import finetune
from mvm.types import UserError

log = logging.getLogger(__name__)

INDEX = "features.json"
_PERIOD = 10.0
"""Seconds between two lines of progress, and between two writes of the index."""

Make = Callable[[Any, bool], tuple[dict[str, Any], np.ndarray | None]]
"""Of the source of a video: what the index says of it, and its rows, if they are wanted."""


def keep(
    folder: epath.Path,
    found: Sequence[data.Record],
    settings: dict[str, Any],
    make: Make,
    threads: int,
) -> dict[str, Any]:
    """Writes `<name>.npy` for each video that has none yet; each process takes its share.

    Returns:
        What `features.json` holds: the settings, "videos" by name and "unreadable" by id.

    Raises:
        UserError: no video can be used, or the folder has features of other weights.
    """
    common, names = names_of(found)
    settings, failures = {**settings, "folder": common}, data.Failures()
    here, hosts = data.Reader().options()["shard"]
    path, index = folder / INDEX, {"videos": {}, **settings}
    if path.exists():
        index = json.loads(path.read_text())
        for key, value in settings.items():
            if index.get(key) != value:
                raise UserError(
                    f"{folder} holds features of {key}={index.get(key)}, not {value}; use another "
                    f"--workdir, or delete that folder"
                )
    places = {name: number for number, name in enumerate(names) if number % hosts == here}
    there = {name for name in places if (folder / f"{name}.npy").exists()}
    done = {name: index["videos"][name] for name in sorted(there & index["videos"].keys())}
    todo = [name for name in places if name not in done]
    log.info("%d of %d videos have features in %s", len(there), len(places), folder)

    def one(name: str) -> dict[str, Any] | None:
        record = found[places[name]]
        try:
            entry, rows = make(record.source, name not in there)
        except samples.UNREADABLE as error:
            failures.add(record.id, " ".join(str(error).split()))
            return None
        if rows is not None:
            content, file = io.BytesIO(), folder / f"{name}.npy"
            np.save(content, rows)
            file.parent.mkdir(parents=True, exist_ok=True)
            metrics.replace(file, content.getvalue())
        return entry

    def write(videos: dict[str, Any], unreadable: dict[str, str]) -> dict[str, Any]:
        index = {**settings, "videos": dict(sorted(videos.items())), "unreadable": unreadable}
        text = json.dumps(index, indent=1) + "\n"
        if not here and not (path.exists() and path.read_text() == text):
            metrics.replace_text(path, text)
        return index

    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write({}, {})
    began = time.monotonic()
    due = began + _PERIOD
    with contextlib.ExitStack() as during:
        pool = during.enter_context(concurrent.futures.ThreadPoolExecutor(threads))
        entries = pool.map(one, todo)
        during.callback(entries.close)  # type: ignore[attr-defined]  # Ends it early.
        for number, (name, entry) in enumerate(zip(todo, entries), 1):
            if entry is not None:
                done[name] = entry
            if (now := time.monotonic()) > due:
                due, left = now + _PERIOD, (now - began) / number * (len(todo) - number)
                log.info("%d of %d videos  ETA %s", number, len(todo), metrics.duration(left))
                write(index["videos"] | done, {})
    every = [json.loads(text) for text in multihost.exchange(json.dumps([done, failures.items]))]
    unreadable = {name: reason for _, part in every for name, reason in part}
    index = write({name: one for part, _ in every for name, one in part.items()}, unreadable)
    if not index["videos"]:
        first = ": ".join(next(iter(unreadable.items())))
        raise UserError(f"no video can be used (first: {first})")
    return index


def names_of(found: Sequence[data.Record]) -> tuple[str, list[str]]:
    """The folder that all videos share, and their paths below it without their endings.

    Raises:
        UserError: for two videos of one name.
    """
    ids = [record.id for record in found]
    paths = [posixpath.normpath(f"/{one}") for one in ids]
    common = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    names = [samples.without_ending(posixpath.relpath(path, common)) for path in paths]
    seen: dict[str, str] = {}
    for name, one in zip(names, ids):
        if seen.setdefault(name, one) != one:
            raise UserError(f"{seen[name]} and {one} would both be {name}.npy; rename one of them")
    return common, names


# --- Labelled videos


class Rows(NamedTuple):
    """The features of labelled videos, in the order of their list."""

    paths: list[epath.Path]
    label: np.ndarray
    id: list[str]
    unreadable: dict[str, str]

    def read(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """`[R, ...]`"""
        return np.stack([np.load(self.paths[number]) for number in numbers])


class Start(NamedTuple):
    """What a frozen evaluation starts from: the configuration has the number of classes."""

    config: Any
    names: tuple[str, ...]
    found: dict[str, Sequence[data.Record]]
    encoder: inference.Encoder


def prepare(config: Any, splits: Sequence[str]) -> Start:
    """The labelled records of the splits, and the encoder of `init_from`.

    Raises:
        UserError, DataError: for a mistake in configuration or data.
    """
    if data.Reader().options()["shard"][1] > 1:
        raise UserError(f"task={config.task} runs in one process; start one")
    config, classes = labels.reconcile(config, labels.Head())
    config, found, classes = labels.records(config, splits, classes)
    return Start(config, classes.names, found, inference.encoder(config))


def rows_of(
    workdir: epath.Path,
    start: Start,
    split: str,
    function: Callable[[np.ndarray], np.ndarray],
    **changes: int,
) -> Rows:
    """Features of a split: `function` of the test views of each video, uint8 `[V, T, H, W, 3]`.

    `changes` are those of the spec of the views.
    """
    found, encoder = start.found[split], start.encoder
    spec = encoder.task.clips["test"]._replace(**changes)

    def make(source: Any, wanted: bool) -> tuple[dict[str, Any], np.ndarray | None]:
        views = (spec, source, spec.num_segments, spec.num_crops)
        return {}, function(samples.views_of(*views)) if wanted else None

    said = f"{spec.num_segments}x{spec.num_crops}"
    settings = {"weights": start.config.init_from, "digest": encoder.digest, "views": said}
    folder = workdir / "features" / split
    index = keep(folder, found, settings, make, data.threads(start.config.data.threads))
    _, names = names_of(found)
    good = [number for number, name in enumerate(names) if name in index["videos"]]
    return Rows(
        [folder / f"{names[number]}.npy" for number in good],
        np.array([found[number].label for number in good], np.int32),
        [found[number].id for number in good],
        index["unreadable"],
    )


def publish(
    workdir: epath.Path, start: Start, probability: np.ndarray, test: Rows, more: dict[str, Any]
) -> dict[str, float]:
    """Scores the test videos; writes results.json, with `more`, tables and figures."""
    truths = tasks.Truths(test.label, test.id, start.names)
    scores = finetune.accuracies(probability, truths, start.config.data.num_classes)
    counts = {"num_videos": len(test.id), "num_unreadable": len(test.unreadable)}
    scores, spec = scores._replace(values=scores.values | counts), start.encoder.task.clips["test"]
    views = f"{spec.num_segments}x{spec.num_crops}"
    more = {"weights": start.config.init_from, "views": views, **more}
    more["unreadable"] = test.unreadable
    values = evaluate.publish(workdir, scores, more, f"{views} views")
    gallery.attempt(partial(gallery.draw_numbers, workdir), partial(report.write, workdir))
    return values
