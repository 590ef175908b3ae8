"""Features of the videos of a list by a frozen encoder: computed once, kept in a folder."""

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from mvm import data, inference, initial
from mvm.runtime import metrics, sharding
from mvm.types import UserError

log = logging.getLogger(__name__)

_PERIOD = 10.0
"""Seconds between two lines of progress."""


class Kept(NamedTuple):
    """One row for each video that could be read, in the order of the list."""

    features: np.ndarray
    """`[R, ...]`, in a file."""
    label: np.ndarray
    name: list[str]
    unreadable: dict[str, str]
    """Why, by name."""


class Data(NamedTuple):
    """What a frozen evaluation starts from."""

    config: Any
    """With the number of classes."""
    classes: tuple[str, ...]
    """Names."""
    found: dict[str, Sequence[data.Record]]
    reader: data.Reader
    encoder: inference.Encoder


def prepare(config: Any, workdir: epath.Path, splits: Sequence[str]) -> Data:
    """The labelled records of the splits, looked at, and the encoder of `init_from`.

    Raises:
        UserError, DataError: for a mistake in configuration or data; on several hosts or in cloud
            storage, where features cannot be kept.
    """
    if data.Reader().options()["shard"][1] > 1:
        raise UserError("features of clips are kept by one process; start one")
    if "://" in str(workdir):
        raise UserError(f"--workdir={workdir}: features of clips are kept on a disk; name a folder")
    config, found, classes = initial.records(config, splits, initial.Head())
    d = config.data
    sharding.check_batch(config.eval.batch_size, name="eval.batch_size")
    encoder, reader = inference.encoder(config), data.Reader(d.threads, d.workers, d.cache_gb)
    for split, records in found.items():
        spec = encoder.task.clips["test"]
        data.probe(records, split, spec, reader, d.max_bad_fraction)
    return Data(config, classes.names, found, reader, encoder)


def kept(
    path: epath.Path,
    found: Sequence[data.Record],
    function: Callable[[np.ndarray], np.ndarray],
    spec: data.ClipSpec,
    reader: data.Reader,
    batch_size: int,
    facts: Mapping[str, Any],
) -> Kept:
    """The features in `<path>.npy`, if they are of the same videos, clips and facts; else new ones.

    Args:
        path: without its ending.
        found: the videos.
        function: of views uint8 `[B, V, T, H, W, 3]`; returns `[B, ...]`.
        spec: of the views.
        reader, batch_size: how they are read; change no feature.
        facts: what else the features depend on.

    Raises:
        UserError: no video can be read, or the disk has not the room.
    """
    array, told = path.with_name(path.name + ".npy"), path.with_name(path.name + ".json")
    facts = {**facts, "records": data.digest(found), "views": [*spec._replace(timeout=0.0)]}
    facts = json.loads(json.dumps(facts))
    if told.exists() and (was := json.loads(told.read_text()))["facts"] == facts:
        log.info("features of %d videos are in %s already", len(was["name"]), array)
        return _read(array, was)
    path.parent.mkdir(parents=True, exist_ok=True)
    told.unlink(missing_ok=True)
    part, rows, failures = array.with_name(array.name + ".part"), None, data.Failures()
    labels, names, count, began = [], [], 0, time.monotonic()
    due = began + _PERIOD
    with contextlib.closing(data.eval_batches(found, spec, reader, batch_size, failures)) as made:
        for batch in made:
            good = np.flatnonzero(batch["valid"])
            some = function(batch["video"])
            if rows is None:
                rows = _open(part, (len(found), *some.shape[1:]), some.dtype)
            rows[count : count + len(good)] = some[good]
            count += len(good)
            labels += batch["label"][good].tolist()
            names += [found[p].id for p in batch["index"][good].tolist()]
            if good.size and (now := time.monotonic()) > due:
                due, rate = now + _PERIOD, count / (now - began)
                left = metrics.duration((len(found) - count) / rate)
                log.info("features of %d of %d videos  ETA %s", count, len(found), left)
    if rows is None or not count:
        raise UserError(f"no video can be read (first: {': '.join(failures.items[0])})")
    rows.flush()
    part.replace(array)
    was = {"facts": facts, "label": labels, "name": names, "unreadable": dict(failures.items)}
    metrics.replace_text(told, json.dumps(was) + "\n")
    return _read(array, was)


def _open(path: epath.Path, shape: tuple[int, ...], dtype: Any) -> np.memmap:
    size, free = np.prod(shape, dtype=float) * dtype.itemsize, shutil.disk_usage(path.parent).free
    if size > 0.95 * free:
        raise UserError(
            f"features of {shape[0]} videos take {size / 1e9:.1f} GB, and {path.parent} has "
            f"{free / 1e9:.1f} GB; name a --workdir on a larger disk, or probe with the linear head"
        )
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


def _read(array: epath.Path, was: Mapping[str, Any]) -> Kept:
    rows = np.load(array, mmap_mode="r")[: len(was["name"])]
    return Kept(rows, np.array(was["label"], np.int32), was["name"], was["unreadable"])


def protocol(encoder: inference.Encoder, config: Any, selection: str) -> dict[str, Any]:
    """What a table of frozen scores has to say of a line."""
    own, spec = encoder.config, encoder.task.clips["test"]
    return {
        "weights": config.init_from or "random",
        "stage": own.task,
        "norm": norm_of(encoder),
        "clip": f"{spec.num_frames}x{spec.frame_stride}",
        "views": f"{spec.num_segments}x{spec.num_crops}",
        "resolution": spec.image_size,
        "selection": selection,
    }


def norm_of(encoder: inference.Encoder) -> str:
    """The norm behind the encoder: of "tokens", as in pre-training, of their "mean", or "none"."""
    if "norm" in encoder.params["encoder"]:
        return "tokens"
    return "mean" if "fc_norm" in encoder.params else "none"
