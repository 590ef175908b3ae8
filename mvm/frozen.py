"""What a frozen encoder makes of each video of a list: a .npy file for each, and one index."""

import io
import itertools
import json
import logging
import posixpath
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm
from etils import epath

from mvm import data, evaluate, inference, initial, samples, tasks
from mvm.runtime import metrics, multihost
from mvm.tasks import finetune
from mvm.types import UserError

log = logging.getLogger(__name__)

INDEX = "features.json"
_PERIOD = 10.0
"""Seconds between two writes of the index."""


def keep(
    folder: epath.Path,
    found: Sequence[data.Record],
    settings: dict[str, Any],
    cut: Callable[[data.Record], Iterator[Any]],
    embed: Callable[[np.ndarray], Any],
    config: Any,
) -> dict[str, Any]:
    """Writes the rows of each video that has none yet; each process takes its share.

    A batch has windows of several videos, which `data.threads` threads read; of each, `cut` gives
    what the index is to say of it, with the number of its "windows", then these. Returned is what
    the index holds: the settings, "videos" by name and, why, "unreadable" by id.
    """
    names, failures = names_of([record.id for record in found]), data.Failures()
    here, hosts = data.Reader().options()["shard"]
    path, index = folder / INDEX, {"videos": {}, **settings}
    if path.exists():
        index = json.loads(path.read_text())
    for key, value in settings.items():
        if index.get(key) != value and key != "weights":  # Those may move; their digest stays.
            raise UserError(
                f"{folder} holds features of other settings ({key} {index.get(key)} -> {value}); "
                f"use another --workdir, or delete that one"
            )
    places = {name: number for number, name in enumerate(names) if number % hosts == here}
    there = {name for name in places if (folder / f"{name}.npy").exists()}
    done = {name: entry for name, entry in index["videos"].items() if name in there}
    todo = [name for name in places if name not in done]
    log.info("%d of %d videos have features in %s", len(there), len(places), folder)

    def write_index(videos: dict[str, Any], unreadable: dict[str, str]) -> dict[str, Any]:
        index = {**settings, "videos": dict(sorted(videos.items())), "unreadable": unreadable}
        text = json.dumps(index, indent=1) + "\n"
        if not here and not (path.exists() and path.read_text() == text):
            folder.mkdir(parents=True, exist_ok=True)
            metrics.replace_text(path, text)
        return index

    def windows(name: str) -> Iterator[tuple[Any, np.ndarray]]:
        """Those of a video, each with its name, what the index says of it and its rows so far."""
        try:
            made = cut(found[places[name]])
            entry, rows = next(made), list[np.ndarray]()
            if not entry.get("fps", True):
                log.warning("%s tells no fps: its rows have no seconds", name)
            if name in there:  # Written just before the command was killed.
                done[name] = entry
            else:
                yield from (((name, entry, rows), window) for window in made)
        except samples.UNREADABLE as error:
            failures.add(found[places[name]].id, " ".join(str(error).split()))

    if not path.exists():
        write_index({}, {})
    due = time.monotonic() + _PERIOD
    bar = tqdm.tqdm(total=len(todo), unit=" videos", delay=10, mininterval=10, disable=here > 0)
    read = samples.together(map(windows, todo), data.threads(config.data.threads))
    for (name, entry, rows), row in inference.rows(embed, read, config.eval.batch_size):
        rows.append(row)
        if len(rows) == entry["windows"] and found[places[name]].id not in failures:
            content, file = io.BytesIO(), folder / f"{name}.npy"
            np.save(content, np.stack(rows))
            file.parent.mkdir(parents=True, exist_ok=True)
            metrics.replace(file, content.getvalue())
            done[name] = entry
            bar.update()
        if time.monotonic() > due:
            due = time.monotonic() + _PERIOD
            write_index(index["videos"] | done, {})
    bar.close()
    every = [json.loads(text) for text in multihost.exchange(json.dumps([done, failures]))]
    unreadable = dict(sorted(pair for _, part in every for pair in part.items()))
    index = write_index({name: one for part, _ in every for name, one in part.items()}, unreadable)
    if not index["videos"]:
        first = ": ".join(next(iter(unreadable.items())))
        raise UserError(f"no video can be used (first: {first})")
    return index


def names_of(ids: Sequence[str]) -> list[str]:
    """Where the rows of each video go, without ".npy": its name without its ending.

    Names that are absolute, remote or lead out are taken below the folder that all have in common.
    """
    paths = [posixpath.normpath(f"/{one.lstrip('/')}") for one in ids]
    inside = not any(one.startswith(("/", "..")) or "://" in one for one in ids)
    common = "/" if inside else posixpath.commonpath([posixpath.dirname(path) for path in paths])
    names = [samples.without_ending(posixpath.relpath(path, common)) for path in paths]
    seen: dict[str, str] = {}
    for name, one in zip(names, ids):
        if seen.setdefault(name, one) != one:
            raise UserError(f"{seen[name]} and {one} would both be {name}.npy; rename one of them")
    return names


# --- Labelled videos


class Rows(NamedTuple):
    """The features of labelled videos, in the order of their list."""

    paths: list[epath.Path]
    label: np.ndarray
    position: np.ndarray
    unreadable: dict[str, str]
    """Why, by id."""

    def read(self, numbers: np.ndarray | None = None) -> np.ndarray:
        """`[R, ...]` of all, or of some."""
        paths = self.paths if numbers is None else [self.paths[n] for n in numbers]
        files = (path.read_bytes() for path in paths)
        return np.concatenate([np.load(io.BytesIO(file)) for file in files])

    def part(self, which: np.ndarray) -> "Rows":
        """Those of a mask, bool `[R]`."""
        paths = list(itertools.compress(self.paths, which))
        return Rows(paths, self.label[which], self.position[which], self.unreadable)


class Start(NamedTuple):
    """What a frozen evaluation starts from: the configuration has the number of classes."""

    config: Any
    names: tuple[str, ...]
    found: dict[str, Sequence[data.Record]]
    encoder: inference.Encoder


def prepare(config: Any, splits: Sequence[str]) -> Start:
    """The labelled records of the splits, looked at, and the encoder of `init_from`."""
    if data.Reader().options()["shard"][1] > 1:
        raise UserError(f"task={config.task} runs in one process; start one")
    config, found, classes = initial.records(config, splits, initial.Head())
    encoder, d = inference.encoder(config), config.data
    for split, records in found.items():
        spec = encoder.task.clips["test"]
        data.probe(records, split, spec, data.Reader(d.threads), d.max_bad_fraction)
    return Start(config, classes.names, found, encoder)


def rows_of(
    workdir: epath.Path,
    start: Start,
    split: str,
    embed: Callable[[np.ndarray], Any],
    num_crops: int = 0,
) -> Rows:
    """Features of a split: `embed` of its test views, uint8 `[B, V, T, H, W, 3]`; kept."""
    found, spec = start.found[split], start.encoder.task.clips["test"]
    segments, crops = spec.num_segments, num_crops or spec.num_crops

    def views(record: data.Record) -> Iterator[Any]:
        yield {"windows": 1}
        yield samples.views_of(spec, record.source, segments, crops)

    settings = {**start.encoder.protocol, "sampling": spec.sampling, "views": f"{segments}x{crops}"}
    folder = workdir / "features" / split
    index = keep(folder, found, settings, views, embed, start.config)
    names = names_of([record.id for record in found])
    good = [number for number, name in enumerate(names) if name in index["videos"]]
    return Rows(
        [folder / f"{names[number]}.npy" for number in good],
        np.array([found[number].label for number in good], np.int32),
        np.array(good, int),
        index["unreadable"],
    )


def publish(
    workdir: epath.Path, start: Start, probability: np.ndarray, test: Rows, more: dict[str, Any]
) -> dict[str, float]:
    """Scores the test videos; writes results.json, with the protocol and `more`, and tables."""
    found, spec = start.found["test"], start.encoder.task.clips["test"]
    truths = tasks.Truths(test.label, [found[p].id for p in test.position], start.names)
    scores = finetune.accuracies(probability, truths, start.config.data.num_classes)
    more = {**start.encoder.protocol, **more}
    return evaluate.publish(workdir, scores, found, test.position, spec, test.unreadable, more)
