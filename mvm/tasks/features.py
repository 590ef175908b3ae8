"""Features of windows over whole videos: one file for each video, and one index of all.

`<name>.npy` is float32 `[windows, D]`, what `mvm.load(...).embed` gives of each window;
`features.json` says how they were made and, for each video, the frames per second, its frames and
windows, and the seconds of its rows.
"""

import io
import json
import logging
import posixpath
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath

from mvm import config as schema
from mvm import data, inference, runs, samples, tasks
from mvm.runtime import metrics, multihost, sharding
from mvm.types import UserError

log = logging.getLogger(__name__)

SPEC = tasks.Spec(
    labels=False,
    sampling="pretrain",
    # Frames between the starts of two windows; how pixels are made, see `WindowSpec.released`.
    options=(("stride", 4), ("pixels", ("normalised", "videomaev2"))),
)
INDEX = "features.json"
_PERIOD = 10.0
"""Seconds between two lines of progress, and between two writes of the index."""


def run(config: Any, workdir: epath.PathLike) -> dict[str, float]:
    """Writes what is not there yet of the features of a list; each process takes its share.

    The list is `data.test`, or `data.train` where that is empty.

    Returns:
        Numbers of videos, of those that could not be used, and of windows.

    Raises:
        UserError, DataError: for a mistake in configuration or data, for features of other
            settings in `workdir`, and if no video could be used.
    """
    workdir, d = epath.Path(workdir), config.data
    split = "test" if d.test or not d.train else "train"
    found = data.records(data.sources(d, split), 0, split)
    names = names_of([record.id for record in found])
    encoder = inference.encoder(config)
    spec, settings = _settings(config, encoder)
    index = _index(workdir, settings)
    multihost.agree(schema.shared(config) | data.facts({split: found}) | settings)
    here, hosts = data.Reader().options()["shard"]
    if not here:
        runs.write_config(config, workdir)
    mesh = sharding.local_mesh()
    sharding.check_batch(config.eval.batch_size, name="eval.batch_size", devices=mesh.size)
    mine = range(here, len(found), hosts)
    todo = [p for p in mine if not (workdir / f"{names[p]}.npy").exists()]
    failures, due = data.Failures(), time.monotonic() + _PERIOD
    if len(mine) > len(todo):
        log.info("%d of %d videos have their features already", len(mine) - len(todo), len(mine))
    # One written just before a kill is not in the index yet.
    done = {
        names[p]: index["videos"].get(names[p]) or _entry(samples.facts(spec, found[p]), spec)
        for p in sorted(set(mine) - set(todo))
    }

    def write_index(videos: dict[str, Any], unreadable: dict[str, str]) -> None:
        every = {**settings, "videos": dict(sorted(videos.items())), "unreadable": unreadable}
        text, path = json.dumps(every, indent=1) + "\n", workdir / INDEX
        if not path.exists() or path.read_text() != text:
            metrics.replace_text(path, text)

    if not here:
        write_index(index["videos"] | done, {})
    with jax.set_mesh(mesh):
        for position, facts, rows in _features(encoder, spec, found, todo, failures, mesh):
            name = names[position]
            if not facts.fps:
                log.warning("%s tells no fps: its rows have no seconds until someone does", name)
            _save(workdir / f"{name}.npy", rows)
            done[name] = _entry(facts, spec)
            if time.monotonic() > due and not here:
                due = time.monotonic() + _PERIOD
                write_index(index["videos"] | done, dict(failures.items))
    every = [json.loads(text) for text in multihost.exchange(json.dumps([done, failures.items]))]
    videos = {name: entry for part, _ in every for name, entry in part.items()}
    unreadable = {name: reason for _, part in every for name, reason in part}
    if not here:
        write_index(videos, unreadable)
    if not videos:
        name, reason = next(iter(unreadable.items()))
        raise UserError(f"data.{split}: no video can be used (first: {name}: {reason})")
    windows = sum(entry["windows"] for entry in videos.values())
    log.info(
        "%d videos, %d windows of %d in %s; %d videos cannot be used",
        *(len(videos), windows, settings["width"], workdir / INDEX, len(unreadable)),
    )
    return {
        "num_videos": len(videos),
        "num_unreadable": len(unreadable),
        "num_windows": windows,
    }


def names_of(ids: Sequence[str]) -> list[str]:
    """Where the features of each video go, without ".npy": its name without its ending.

    Names that are absolute, remote or lead out are taken below the folder that all have in common.

    Raises:
        UserError: for two videos of one name.
    """
    paths = [posixpath.normpath(one) for one in ids]
    if any(path.startswith(("/", "..")) or "://" in one for path, one in zip(paths, ids)):
        common = posixpath.commonpath([posixpath.dirname(path) for path in paths])
        paths = [posixpath.relpath(path, common) for path in paths]
    names = [samples.without_ending(path) for path in paths]
    seen: dict[str, str] = {}
    for name, one in zip(names, ids):
        if seen.setdefault(name, one) != one:
            raise UserError(f"{seen[name]} and {one} would both be {name}.npy; rename one of them")
    return names


def _settings(config: Any, encoder: inference.Encoder) -> tuple[samples.WindowSpec, dict[str, Any]]:
    """How windows are made, and what the index says of it."""
    own, clip = encoder.config, encoder.task.clips["val"]
    stride, pixels = (tasks.options(config)[name] for name in ("stride", "pixels"))
    if stride < 1:
        raise UserError(f"options.stride={stride}; choose 1 frame or more")
    spec = samples.WindowSpec(
        clip.num_frames,
        own.data.frame_stride,
        stride,
        clip.image_size,
        pixels == "videomaev2",
        own.data.fps,
        own.data.timeout,
    )
    return spec, {
        "weights": config.init_from,
        "digest": encoder.digest,
        "width": encoder.task.encoder.width,
        "window": spec.span,
        "stride": spec.stride,
        "num_frames": spec.num_frames,
        "frame_stride": spec.frame_stride,
        "image_size": spec.image_size,
        "pixels": pixels,
        "resampled_to": spec.fps,
        "dtype": np.dtype(encoder.task.run.dtype).name,
    }


def _index(workdir: epath.Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The index that is there; UserError if it is of other settings, or cannot be read."""
    if not (path := workdir / INDEX).exists():
        return {"videos": {}}
    try:
        index = json.loads(path.read_text())
        was = {key: index[key] for key in settings if key != "weights"}
        index["videos"].items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error!r:.99}); delete it and repeat") from error
    if other := [
        f"{key} {was[key]} -> {settings[key]}" for key in was if was[key] != settings[key]
    ]:
        raise UserError(
            f"{workdir} holds features of other settings ({', '.join(other)}); use another "
            f"--workdir, or delete that one"
        )
    return index


def _entry(facts: Any, spec: samples.WindowSpec) -> dict[str, Any]:
    """Of a video in the index; row i shows the `window` frames around second `first` + i `step`."""
    if not facts.fps:
        return {**facts._asdict(), "fps": None}
    return {
        **facts._asdict(),
        "first": spec.span / 2 / facts.fps,
        "step": spec.stride / facts.fps,
    }


def _save(path: epath.Path, rows: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics.replace(path, content.getvalue())


def _features(
    encoder: inference.Encoder,
    spec: samples.WindowSpec,
    found: Sequence[data.Record],
    positions: Sequence[int],
    failures: data.Failures,
    mesh: Any,
) -> Iterator[tuple[int, Any, np.ndarray]]:
    """Position, facts and features `[windows, D]` of each video that does not fail."""
    own = encoder.config
    network = inference.Network(encoder.task, encoder.params, own.mask, sharding.whole(mesh))
    facts: dict[int, Any] = {}  # Of all that were opened and have not failed.
    rows: dict[int, list[np.ndarray]] = {}  # Of those that are under way.

    def windows() -> Iterator[tuple[int, np.ndarray]]:
        videos = ((position, found[position].source) for position in positions)
        for piece in samples.together(videos, spec, data.threads(own.data.threads)):
            if piece.window is None:
                failures.add(found[piece.key].id, piece.reason)
                facts.pop(piece.key, None)
                rows.pop(piece.key, None)
            else:
                facts[piece.key] = piece.facts
                yield piece.key, piece.window

    began = time.monotonic()
    count, due, put = 0, began + _PERIOD, partial(sharding.put, mesh=mesh)
    for position, row in network.windows(windows(), own.eval.batch_size, put):
        count += 1
        if position not in facts:
            continue  # It has failed meanwhile.
        rows.setdefault(position, []).append(row)
        if len(rows[position]) == facts[position].windows:
            yield position, facts[position], np.stack(rows.pop(position))
        if (now := time.monotonic()) > due:
            due, rate = now + _PERIOD, count / (now - began)
            opened = len(facts) + len(failures.items)
            total = sum(one.windows for one in facts.values()) * len(positions) / opened
            log.info(
                "%d windows, %d of %d videos begun  %.4g windows/s  ETA %s",
                *(count, opened, len(positions), rate),
                metrics.duration(max(total - count, 0) / rate),
            )
