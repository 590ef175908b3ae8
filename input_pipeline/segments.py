"""Long videos with annotated segments, and features made of them: files -> records -> batches.

docs/detection.md has the files. Batches are made by grain in threads; training is random access by
(seed, index), as that of clips (`loader`).
"""

import io
import json
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import grain
import numpy as np
from etils import epath

from input_pipeline.elements import ATTEMPTS, Batch, Records, identity
from input_pipeline.loader import order
from input_pipeline.sources.records import DataError, Failures, Record

_LOG = logging.getLogger(__name__)
_PARSING = threading.Lock()  # NumPy reads headers by `ast`: not safe in threads of Python 3.11.
_DRAWS, _SHORTEST, _KEPT, _MARGIN = 200, 0.9, 0.5, 2.0  # Of ActionFormer's crops, see `crop`.


class FeatureSpec(NamedTuple):
    """What becomes of the features of one video."""

    columns: int
    stride: int  # Frames from one row to the next, unless the folder's index says them.
    length: int  # Rows of a sample; in evaluation a multiple of them.
    fit: str  # "resize" all videos to these rows, or "crop" longer ones in training.


class Video(NamedTuple):
    """What a record's `truth` is. Steps are rows of its features, resized if they are."""

    rate: float  # Steps per second.
    shift: float  # Steps from the beginning of a row's window to its middle.
    duration: float  # Seconds.
    segments: tuple[tuple[float, float, int], ...]  # (start, end, class), seconds.
    num_rows: int = 0  # Of its features; 0 if there are none, or broken ones.
    scores: tuple[float, ...] = ()  # Of each class, by a classifier of whole videos.

    def __str__(self) -> str:
        """What tells records apart, whether or not their file is broken; see `mvm.data.digest`."""
        return f"{self.duration} {self.segments}"

    def steps(self) -> np.ndarray:
        """Segments in steps, (start, end, class) `[n, 3]`, without what is behind the end.

        Those at the beginning may start a little before 0.
        """
        rows = np.array([s for s in self.segments if s[0] < self.duration]).reshape(-1, 3)
        rows[:, :2] = np.minimum(rows[:, :2], self.duration) * self.rate - self.shift
        return rows.astype(np.float32)

    def seconds(self, steps: np.ndarray) -> np.ndarray:
        return np.clip((steps + self.shift) / self.rate, 0.0, self.duration)


def _read(path: epath.PathLike, use: Callable[[Any], Any]) -> Any:
    try:
        return use(json.loads(epath.Path(path).read_text()))
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        form = "give JSON as docs/detection.md has it"
        raise DataError(f"{path} cannot be read ({error!r:.99}); {form}") from error


def _row(given: Mapping[str, Any]) -> dict[str, Any]:
    start, end = map(float, given["segment"])
    score = float(given.get("score", 1.0))
    if not all(map(math.isfinite, (start, end, score))):
        raise ValueError(f"{given} is not finite")
    return {**given, "label": str(given["label"]), "segment": (start, end), "score": score}


def read(path: epath.PathLike, subset: str = "") -> dict[str, Any]:
    """The videos of a file of ActivityNet's form by name, all or of a subset.

    Spans called "Ambiguous" are left out.
    """

    def use(found: Any) -> dict[str, Any]:
        videos = found.get("database", found)
        for video in videos.values():
            rows = map(_row, video.get("annotations", ()))
            video["annotations"] = [row for row in rows if row["label"] != "Ambiguous"]
        return videos

    videos = _read(path, use)
    chosen = {k: v for k, v in videos.items() if not subset or v.get("subset") == subset}
    if not chosen:
        known = ", ".join(sorted({str(v.get("subset")) for v in videos.values()}))
        raise DataError(f"{path} has no video of subset {subset!r}, only {known}")
    return chosen


def read_results(path: epath.PathLike, of: Callable[[Any], Any] = _row) -> dict[str, list[Any]]:
    """Detections by video, with `of=float` probabilities of its classes."""
    return _read(path, lambda found: {v: [*map(of, rows)] for v, rows in found["results"].items()})


def classes(videos: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes: by "label_id" where there is one, else by name."""
    known = {a["label"]: a.get("label_id", 0) for v in videos.values() for a in v["annotations"]}
    return tuple(sorted(known, key=lambda name: (known[name], name)))


def load(
    path: epath.PathLike,
    subset: str,
    root: epath.PathLike,
    spec: FeatureSpec,
    names: tuple[str, ...],
    scores: Mapping[str, Sequence[float]] | None = None,
) -> list[Record]:
    """Every video of a subset; the path of one without features is "".

    Features are in the folder `root`; `names` are the classes, and `scores` theirs by video, None
    if no classifier tells them.
    """
    folder, found = epath.Path(root), []
    index = _read(told, dict) if (told := folder / "features.json").exists() else {}
    window, stride = index.get("window", 16), index.get("stride", spec.stride)
    made = index.get("videos", {})
    known = {key.rpartition("/")[2]: key for key in made}  # They may be in folders.
    for name, video in read(path, subset).items():
        where = known.get(name, name)
        fps = float(made.get(where, {}).get("fps") or video.get("fps") or 0)
        duration, segments = float(video.get("duration") or 0), []
        if not (fps > 0 and duration > 0):
            raise DataError(f"{path}: {name} has fps={fps:g}, duration={duration:g}; give both")
        for row in video["annotations"]:
            if (label := row["label"]) not in names:
                raise DataError(f"{path}: {name} has class {label!r}; remove it, or train with it")
            segments.append((*row["segment"], names.index(label)))
        there = (file := folder / f"{where}.npy").exists()
        count = _num_rows(file, spec.columns) if there else 0
        of_video = tuple((scores or {}).get(name, ()))
        if scores is not None and there and len(of_video) != len(names):
            raise DataError(f"{len(of_video)} scores of {name} are given, {len(names)} wanted")
        rate, shift = fps / stride, 0.5 * window / stride
        if spec.fit == "resize" and count:
            rate, shift = fps * spec.length / ((count - 1) * stride + window), 0.5
        truth = Video(rate, shift, duration, tuple(segments), count, of_video)
        found.append(Record(name, str(file) if there else "", -1, truth=truth))
    without = [record.id for record in found if not record.truth.num_rows]
    late = [r.id for r in found for _, end, _ in r.truth.segments if end > r.truth.duration]
    for what, those in (
        (f"videos of {subset} have no features in {folder}, or broken ones", without),
        (f"segments of {subset} end behind their video; training cuts them", late),
    ):
        if those:
            _LOG.warning("%s: %d %s, first %s", path, len(those), what, those[0])
    return found


def _num_rows(path: epath.Path, columns: int) -> int:
    """N of a file of features, 0 if it is broken; DataError if it is of another width."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            (rows, width), _, dtype = np.lib.format.read_array_header_1_0(file)
            whole = file.tell() + rows * width * dtype.itemsize <= path.stat().length
    except (OSError, ValueError):
        return 0
    if width != columns:
        raise DataError(f"{path} has {width} columns; give --config.options.columns={width}")
    return rows * whole


# --- Samples


def resize(features: np.ndarray, length: int) -> np.ndarray:
    """Features `[N, D]` interpolated linearly to `[length, D]`."""
    return cv2.resize(features, (features.shape[1], length), interpolation=cv2.INTER_LINEAR)


def crop(
    draw: Callable[[int, int], int], rows: int, segments: np.ndarray, length: int
) -> tuple[slice, np.ndarray]:
    """A training crop as ActionFormer (arXiv 2202.07925) draws it, and its segments `[n, 3]`.

    It has at most `length` of the video's rows; of one that is not longer, 0.9 to all of them.
    Segments of which at least half is inside, with a margin of 2 steps, are cut, kept and counted
    from its first row; a crop that keeps none is drawn again, 200 times at most. `draw` gives a
    whole number between two, both included.
    """
    if rows <= length:
        length = draw(max(round(_SHORTEST * rows), 1), rows)
        if length == rows:
            return slice(0, rows), segments
    for _ in range(_DRAWS):
        start = draw(0, rows - length)
        inside = segments.copy()
        inside[:, :2] = inside[:, :2].clip(start - _MARGIN, start + length + _MARGIN)
        kept = inside[:, 1] - inside[:, 0] >= _KEPT * (segments[:, 1] - segments[:, 0])
        if kept.any():
            break
    return slice(start, start + length), inside[kept] - np.array([start, start, 0], np.float32)


def _features(record: Record, spec: FeatureSpec, failures: Failures) -> np.ndarray | None:
    """`[N, D]`, resized if they are; None if they cannot be read."""
    try:
        if not record.truth.num_rows:
            raise ValueError("features broken")
        content = io.BytesIO(epath.Path(record.path).read_bytes())
        with _PARSING:
            features = np.lib.format.read_array(content).astype(np.float32)
    except (OSError, ValueError) as error:
        failures.add(record.id, str(error))
        return None
    return resize(features, spec.length) if spec.fit == "resize" else features


def _padded(rows: np.ndarray, count: int, fill: float) -> np.ndarray:
    padding = ((0, count - len(rows)), (0, 0))
    return np.pad(rows.astype(np.float32), padding, constant_values=fill)


def _batches(
    element: Callable[[Any], Batch], addresses: grain.MapDataset, size: int, threads: int
) -> Any:
    read = grain.ReadOptions(threads, max(2 * size, threads))
    return iter(addresses.map(element).to_iter_dataset(read).batch(size))


def train_batches(
    records: Records,
    spec: FeatureSpec,
    *,
    batch_size: int,
    seed: int,
    failures: Failures,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
    threads: int = 2,
    **_: Any,
) -> Any:
    """Endless shuffled batches, to be closed; arguments, draws as of `loader.train_batches`.

    "video" float32 `[b, T, D]`, zeros behind "length" int32 `[b]` rows; "segments" float32
    `[b, M, 3]`, (start, end, class) in steps, -1 where there is none, M the largest number in a
    record; "index" and "skipped" int32 `[b]`.
    """
    most = max(len(record.truth.segments) for record in records)

    def element(address: Batch) -> Batch:
        position, rng = int(address["position"]), np.random.default_rng(address["seed"])
        skipped = 0
        while (features := _features(records[position], spec, failures)) is None:
            skipped, position = skipped + 1, int(rng.integers(len(records)))
            if skipped == ATTEMPTS:
                raise DataError(
                    f"{ATTEMPTS} files in a row are unreadable: {next(iter(failures.items()))}"
                )
        segments = records[position].truth.steps()
        if spec.fit == "crop":
            draw = lambda low, high: int(rng.integers(low, high, endpoint=True))  # noqa: E731
            rows, segments = crop(draw, len(features), segments, spec.length)
            features = features[rows]
        return {
            "video": _padded(features, spec.length, 0),
            "length": np.int32(len(features)),
            "segments": _padded(segments, most, -1),
            "index": np.int32(position),
            "skipped": np.int32(skipped),
        }

    addresses = order(records, seed, start, batch_size, shard)
    return _batches(element, addresses, batch_size // shard[1], threads)


def eval_batches(
    records: Records,
    spec: FeatureSpec,
    *,
    batch_size: int,
    failures: Failures,
    shard: tuple[int, int] = (0, 1),
    threads: int = 2,
    **_: Any,
) -> Any:
    """Every record exactly once, in order; shards, "index", "id", "valid" as `loader.eval_batches`.

    "video" has as many times T steps as the longest of a batch needs, alike on all shards: few
    shapes to compile, and few steps for nothing. It is zeros where there are no features.
    """

    def element(address: tuple[int, int]) -> Batch:
        position, steps = address
        record = records[position] if position >= 0 else Record("", "", -1)
        features = _features(record, spec, failures) if record.path else None
        of_record = identity(record, position, features is not None)
        features = np.zeros((0, spec.columns)) if features is None else features
        found = {"video": _padded(features, steps, 0), "length": np.int32(len(features))}
        return found | {name: entry[0] for name, entry in of_record.items()}

    addresses: list[tuple[int, int]] = []
    for first in range(0, len(records), batch_size):
        rows = [record.truth.num_rows for record in records[first : first + batch_size]]
        times = 1 if spec.fit == "resize" else max(1, -(-max(rows) // spec.length))
        places = range(first + shard[0], first + batch_size, shard[1])
        addresses += [(p if p < len(records) else -1, times * spec.length) for p in places]
    source = grain.MapDataset.source(addresses)
    return _batches(element, source, batch_size // shard[1], threads)
