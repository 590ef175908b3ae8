"""Samples of features with their segments, and batches of these, run by grain in threads.

Training is random access by (seed, index), as that of clips (`loader`).
"""

import functools
from collections.abc import Callable, Sequence

import grain
import numpy as np
from etils import epath

from input_pipeline.elements import ATTEMPTS, Batch, identity
from input_pipeline.loader import Batches, batches, order
from input_pipeline.sources.records import DataError, Failures, Record
from input_pipeline.sources.segments import FeatureSpec, Video, num_rows

_DRAWS, _SHORTEST, _KEPT, _MARGIN = 200, 0.9, 0.5, 2.0  # Of ActionFormer's crops, see `crop`.
_UNREADABLE = (OSError, ValueError)

Records = Sequence[Record]


def resize(features: np.ndarray, length: int) -> np.ndarray:
    """Features `[N, D]` interpolated linearly to `[length, D]`."""
    middle = (np.arange(length) + 0.5) * (len(features) / length) - 0.5
    middle = np.clip(middle, 0, len(features) - 1)
    low = middle.astype(int)
    part = (middle - low)[:, None].astype(features.dtype)
    high = np.minimum(low + 1, len(features) - 1)
    return features[low] * (1 - part) + features[high] * part


def crop(
    draw: Callable[[int, int], int], rows: int, segments: np.ndarray, length: int
) -> tuple[slice, np.ndarray, np.ndarray]:
    """A training crop as ActionFormer (arXiv 2202.07925) draws it.

    It has at most `length` rows; of a video that is not longer, 0.9 to all of them. Segments of
    which at least half is inside, with a margin of 2 steps, are cut and kept; a crop that keeps
    none is drawn again, 200 times at most.

    Args:
        draw: a whole number between two, both included.
        rows: of the video.
        segments: `[n, 2]`, steps.
        length: T.

    Returns:
        The rows, which segments are kept, and these, counted from the first row.
    """
    if rows <= length:
        length = draw(max(round(_SHORTEST * rows), 1), rows)
        if length == rows:
            return slice(0, rows), np.ones(len(segments), bool), segments
    for _ in range(_DRAWS):
        start = draw(0, rows - length)
        inside = np.clip(segments, start - _MARGIN, start + length + _MARGIN)
        kept = inside[:, 1] - inside[:, 0] >= _KEPT * (segments[:, 1] - segments[:, 0])
        if kept.any():
            break
    return slice(start, start + length), kept, inside[kept] - np.float32(start)


def train_element(records: Records, spec: FeatureSpec, most: int, address: Batch) -> Batch:
    """One sample, or that of the first readable record that its generator draws instead.

    The entries of `train_batches`, of one row each, and "failed": `(id, reason)` of each record
    that could not be read. `most` is M.
    """
    position, rng = int(address["position"]), np.random.default_rng(address["seed"])
    draw = lambda low, high: int(rng.integers(low, high, endpoint=True))  # noqa: E731
    failed: list[tuple[str, str]] = []
    made = [np.zeros((0, spec.columns)), np.zeros((0, 2)), np.zeros(0)]
    while not len(made[0]) and len(failed) < ATTEMPTS:
        try:
            features = _read(records[position])
        except _UNREADABLE as error:
            failed.append((records[position].id, " ".join(str(error).split())))
            position = int(rng.integers(len(records)))
            continue
        steps, label = Video(*records[position].truth).steps()
        if spec.resize:
            made = [resize(features, spec.length), steps, label]
        else:
            rows, kept, steps = crop(draw, len(features), steps, spec.length)
            made = [features[rows], steps, label[kept]]
    return {
        "video": _padded(made[0], spec.length)[None],
        "length": np.array([len(made[0])], np.int32),
        "segments": _padded(made[1], most)[None],
        "classes": _padded(made[2] + 1, most)[None].astype(np.int32) - 1,
        "index": np.array([position], np.int32),
        "skipped": np.array([len(failed)], np.int32),
        "failed": failed,
    }


def view_element(records: Records, spec: FeatureSpec, address: tuple[int, int]) -> Batch:
    """All rows of the record at a position, and zeros up to the steps that go with it.

    Zeros alone if it cannot be read, or for position -1.
    """
    position, steps = address
    record = records[position] if position >= 0 else Record("", "", -1)
    features, failed = np.zeros((0, spec.columns)), []
    try:
        if record.path:  # That there are none was said when they became records.
            features = _read(record)
            features = resize(features, spec.length) if spec.resize else features
    except _UNREADABLE as error:
        failed = [(record.id, " ".join(str(error).split()))]
    return {
        "video": _padded(features, steps)[None],
        "length": np.array([len(features)], np.int32),
        **identity(record, position, len(features) > 0),
        "failed": failed,
    }


def _read(record: Record) -> np.ndarray:
    with epath.Path(record.path).open("rb") as file:
        return np.load(file).astype(np.float32)


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    out = np.zeros((count, *rows.shape[1:]), np.float32)
    out[: len(rows)] = rows
    return out


def check(records: Records, batch_size: int, shard: tuple[int, int]) -> None:
    """Raises DataError for what `train_batches` and `eval_batches` cannot be given."""
    if not any(record.path for record in records):
        raise DataError("no annotated video has features; give their folder as --config.data.root")
    if batch_size % shard[1]:
        raise DataError(f"batch_size={batch_size}; make it a multiple of {shard[1]}, the processes")


def train_batches(
    records: Records,
    spec: FeatureSpec,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
    threads: int = 2,
    workers: int = 0,
    failures: Failures | None = None,
) -> Batches:
    """Endless shuffled batches; arguments and draws are those of `loader.train_batches`.

    Threads read in any case: `workers` are for what has to be decoded.

    Returns:
        An iterator of dictionaries: "video" float32 `[b, T, D]`, zeros behind "length" int32 `[b]`
        rows; "segments" float32 `[b, M, 2]` in steps and "classes" int32 `[b, M]`, -1 where there
        is none; "index" and "skipped" int32 `[b]`. M is the largest number in a record.
    """
    check(records, batch_size, shard)
    most = max(len(Video(*record.truth).segments) for record in records)
    element = functools.partial(train_element, records, spec, most)
    made = order(records, seed, start, batch_size, shard).map(element)
    return batches(made, batch_size // shard[1], threads, failures)


def eval_batches(
    records: Records,
    spec: FeatureSpec,
    *,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    threads: int = 2,
    workers: int = 0,
    failures: Failures | None = None,
) -> Batches:
    """Every record exactly once, in order; shards, "index", "id", "valid" as `loader.eval_batches`.

    "video" has as many times T steps as the longest of a batch needs, alike on all shards: few
    shapes to compile, and few steps for nothing.
    """
    check(records, batch_size, shard)
    addresses: list[tuple[int, int]] = []
    for first in range(0, len(records), batch_size):
        every = records[first : first + batch_size]
        rows = [num_rows(r.path, spec.columns) for r in every if r.path and not spec.resize]
        steps = spec.length * max(1, -(-max(rows, default=1) // spec.length))
        places = range(first + shard[0], first + batch_size, shard[1])
        addresses += [(p if p < len(records) else -1, steps) for p in places]
    made = grain.MapDataset.source(addresses).map(functools.partial(view_element, records, spec))
    return batches(made, batch_size // shard[1], threads, failures)
