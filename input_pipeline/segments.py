"""Samples of features with their segments, and batches of these, run by grain in threads.

Training is random access by (seed, index), as that of clips (`loader`). A file that cannot be read
ends the run: that all are whole was seen when they became records.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import grain
import numpy as np
from etils import epath

from input_pipeline.elements import Batch, Records, identity
from input_pipeline.loader import Rows, order
from input_pipeline.sources.records import Record
from input_pipeline.sources.segments import FeatureSpec

_DRAWS, _SHORTEST, _KEPT, _MARGIN = 200, 0.9, 0.5, 2.0  # Of ActionFormer's crops, see `crop`.


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


def train_element(records: Records, spec: FeatureSpec, most: int, address: Batch) -> Batch:
    """One sample: the entries of `train_batches`, of one row each. `most` is M."""
    position, rng = int(address["position"]), np.random.default_rng(address["seed"])
    features, segments = _load(records[position], spec), records[position].truth.steps()
    if not spec.resize:
        draw = lambda low, high: int(rng.integers(low, high, endpoint=True))  # noqa: E731
        rows, segments = crop(draw, len(features), segments, spec.length)
        features = features[rows]
    entries = {"segments": _padded(segments, most, -1), "index": np.array([position], np.int32)}
    return _video(features, spec.length) | entries | {"skipped": np.zeros(1, np.int32)}


def view_element(records: Records, spec: FeatureSpec, address: tuple[int, int]) -> Batch:
    """All rows of the record at a position, and zeros up to the steps that go with it.

    Zeros alone if it has no features, or for position -1.
    """
    position, steps = address
    record = records[position] if position >= 0 else Record("", "", -1)
    features = _load(record, spec) if record.path else np.zeros((0, spec.columns))
    return _video(features, steps) | identity(record, position, len(features) > 0)


def _load(record: Record, spec: FeatureSpec) -> np.ndarray:
    with epath.Path(record.path).open("rb") as file:
        features = np.load(file).astype(np.float32)
    return resize(features, spec.length) if spec.resize else features


def _video(features: np.ndarray, steps: int) -> Batch:
    return {"video": _padded(features, steps, 0), "length": np.array([len(features)], np.int32)}


def _padded(rows: np.ndarray, count: int, fill: float) -> np.ndarray:
    """`[1, count, ...]`"""
    padding = ((0, count - len(rows)), (0, 0))
    return np.pad(rows.astype(np.float32), padding, constant_values=fill)[None]


def _batches(
    element: Callable[[Any], Batch], addresses: Sequence[Any], size: int, threads: int
) -> Any:
    joined = lambda rows: {n: np.concatenate([row[n] for row in rows]) for n in rows[0]}  # noqa: E731
    made = grain.MapDataset.source(addresses).map(element)
    read = grain.ReadOptions(threads, max(2 * size, threads))
    return iter(made.to_iter_dataset(read).batch(size, batch_fn=joined))


def train_batches(
    records: Records,
    spec: FeatureSpec,
    *,
    batch_size: int,
    seed: int,
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
    element = functools.partial(train_element, records, spec, most)
    addresses = Rows(order(records, seed), start, batch_size, shard)
    return _batches(element, addresses, batch_size // shard[1], threads)


def eval_batches(
    records: Records,
    spec: FeatureSpec,
    *,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    threads: int = 2,
    **_: Any,
) -> Any:
    """Every record exactly once, in order; shards, "index", "id", "valid" as `loader.eval_batches`.

    "video" has as many times T steps as the longest of a batch needs, alike on all shards: few
    shapes to compile, and few steps for nothing.
    """
    addresses: list[tuple[int, int]] = []
    for first in range(0, len(records), batch_size):
        rows = [record.truth.num_rows for record in records[first : first + batch_size]]
        times = 1 if spec.resize else max(1, -(-max(rows) // spec.length))
        places = range(first + shard[0], first + batch_size, shard[1])
        addresses += [(p if p < len(records) else -1, times * spec.length) for p in places]
    element = functools.partial(view_element, records, spec)
    return _batches(element, addresses, batch_size // shard[1], threads)
