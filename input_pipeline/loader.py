"""Batches of clips from records, run by grain in threads, which may wait for worker processes.

Training is random access by (seed, index), so that any element can be made again alone and batches
are the same for any number of threads, workers and hosts.
"""

import collections
import contextlib
import functools
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Sequence
from typing import Any

import grain
import numpy as np

from input_pipeline.elements import (
    ATTEMPTS,
    Batch,
    ClipSpec,
    FrameCache,
    Records,
    check,
    train_element,
    view_element,
)
from input_pipeline.sources.load import parts_of
from input_pipeline.sources.records import Failures
from input_pipeline.video.base import VideoError
from input_pipeline.workers import Pool

_AHEAD = 2  # Batches; one that takes long to decode need not stop the device.


class Batches:
    """One host's batches, dictionaries of NumPy arrays; to be closed.

    Args:
        element: `train_element` or `view_element` with its first arguments.
        addresses: of each element.
        shape: of its video.
        size: elements of a batch.
        limit: seconds of processor time to open a video, and again to read it.
        threads, workers, failures: as of `train_batches`.
    """

    def __init__(
        self,
        element: Callable[..., Batch],
        addresses: Sequence[Any],
        shape: tuple[int, ...],
        size: int,
        limit: float,
        *,
        threads: int,
        workers: int,
        failures: Failures | None,
    ) -> None:
        self.failures = failures or Failures()
        pool = Pool(element, 2 * limit + 30, shape) if workers else None
        threads = workers or max(threads, 1)
        videos = _Videos((size * shape[0], *shape[1:]))

        def fill(index: int, address: Any) -> Batch:
            whole, row = divmod(index, size)
            out = videos.of(whole)[row * shape[0] : (row + 1) * shape[0]]
            return {"batch": whole, **(pool or element)(address, out=out)}

        made = (
            grain.MapDataset.source(addresses)
            .map_with_index(fill)
            .to_iter_dataset(grain.ReadOptions(threads, max(_AHEAD * size, threads)))
            .batch(size, batch_fn=functools.partial(_joined, videos))
        )
        # So that the arrays of a batch are joined before it is asked for.
        made = grain.experimental.ThreadPrefetchIterDataset(made, prefetch_buffer_size=1)
        self._made = [iter(made)]  # Empty once it is closed.
        # Also if it is forgotten, and at the end of the process before grain's modules go.
        self._end = weakref.finalize(self, _close, pool, self._made)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            VideoError: `ATTEMPTS` records drawn for one element were all unreadable.
        """
        if not self._made:
            raise StopIteration
        batch = next(self._made[0])
        for failed in batch.pop("failed"):
            for name, reason in failed:
                self.failures.add(name, reason)
            if len(failed) == ATTEMPTS:
                raise all_bad(failed)
        return batch

    def close(self) -> None:
        """Stops threads and workers. May be repeated."""
        self._end()


def _close(pool: Pool | None, made: list[Any]) -> None:
    if pool:
        pool.close()
    while made:
        made.pop().close()


def all_bad(failed: list[tuple[str, str]]) -> VideoError:
    (name, reason), count = failed[0], len(failed)
    return VideoError(f"{count} videos in a row cannot be used, first {name}: {reason}")


class _Videos:
    """The arrays of batches under way: each element fills its rows, and nothing is copied."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape, self._lock = shape, threading.Lock()
        self._found: dict[int, np.ndarray] = {}

    def of(self, batch: int) -> np.ndarray:
        with self._lock:
            if batch not in self._found:
                self._found[batch] = np.empty(self._shape, np.uint8)
            return self._found[batch]

    def pop(self, batch: int) -> np.ndarray:
        with self._lock:
            return self._found.pop(batch)


def _joined(videos: _Videos, elements: Sequence[Batch]) -> Batch:
    """One batch of elements whose other entries are `[n, ...]` each, whatever they are."""
    failed = [element.pop("failed") for element in elements]
    if ATTEMPTS in map(len, failed):
        return {"failed": failed}
    (batch,) = {element.pop("batch") for element in elements}
    joined = {n: np.concatenate([one[n] for one in elements]) for n in elements[0]}
    return {"video": videos.pop(batch), **joined, "failed": failed}


def train_batches(
    records: Records,
    spec: ClipSpec,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
    threads: int = 2,
    workers: int = 0,
    cache_gb: float = 0.0,
    failures: Failures | None = None,
) -> Batches:
    """Endless shuffled training batches, the same bytes for any threads, workers and shards.

    A record that cannot be read is replaced by others drawn from the element's own generator.
    Memory is bounded: five local batches of `b * R` clips (or as many more as hold `threads`
    videos), per thread one encoded file with T decoded frames, per worker one element more.

    Args:
        records: the videos; those of a `sources.Mixture` are drawn by the weights of its parts.
        spec: what becomes of each.
        batch_size: videos of a step over all shards, B.
        seed: of the order and of every draw.
        start: videos consumed before, a multiple of `batch_size`.
        shard: this host's number and the number of hosts; b = B / hosts.
        threads: clips decoded in parallel, where there are no workers.
        workers: processes that decode in place of the threads; one that crashes or hangs costs a
            record, not the run. 0 decodes in this process.
        cache_gb: decoded videos that threads keep in memory, 1e9 bytes.
        failures: where unreadable records are noted.

    Returns:
        An iterator of dictionaries: "video" uint8 `[b * R, T, H, W, 3]`, the R clips of a video
        side by side, "label" int32 `[b * R]`, "index" int32 `[b * R]` (position in `records`),
        "skipped" int32 `[b * R]` (unreadable records met, at the first clip of each video),
        "erase" int32 `[b * R, 4]` if `spec.erasing`; and of key frames "boxes" float32
        `[b * R, K, 4]` (x1, y1, x2, y2, pixels), "box_label" uint8 `[b * R, K, C]` and "box_valid"
        bool `[b * R, K]`, False for one outside the crop and for padding.
    """
    check(records, spec, batch_size, shard)
    keep = cache_gb > 0 and not workers and not spec.fps and not spec.boxes
    cache = FrameCache(int(cache_gb * 1e9)) if keep else None
    return Batches(
        functools.partial(train_element, records, spec, cache),
        Rows(order(records, seed), start, batch_size, shard),
        (spec.repeats, spec.num_frames, spec.image_size, spec.image_size, 3),
        batch_size // shard[1],
        spec.timeout,
        threads=threads,
        workers=workers,
        failures=failures,
    )


def eval_batches(
    records: Records,
    spec: ClipSpec,
    *,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    threads: int = 2,
    workers: int = 0,
    failures: Failures | None = None,
) -> Batches:
    """Every record exactly once, in order, all its views from one decode; see `train_batches`.

    Shard i of n takes records `i, i + n, ...`; all shards give the same number of batches. A
    thread holds `S * T` frames, the shorter side already scaled. Key frames are all of one size.

    Returns:
        An iterator of dictionaries: "video" uint8 `[b, S * C, T, H, W, 3]`, view = segment * C +
        crop, "label" int32 `[b]`, "index" int32 `[b]` (position in `records`), "id" uint8
        `[b, 256]` (UTF-8 of its beginning, zeros behind), "valid" bool `[b]`: False for a record
        that cannot be read (zeros, never replaced) and for padding of the last batch (zeros, label
        and index -1).
    """
    check(records, spec, batch_size, shard)
    local, steps = batch_size // shard[1], -(-len(records) // batch_size)
    mine = list(range(shard[0], len(records), shard[1]))
    square = spec.image_size, spec.image_size
    size = spec.boxes.padded(records[0].truth) if spec.boxes else square
    return Batches(
        functools.partial(view_element, records, spec),
        mine + [-1] * (steps * local - len(mine)),
        (1, spec.num_segments * spec.num_crops, spec.num_frames, *size, 3),
        local,
        spec.timeout,
        threads=threads,
        workers=min(workers, len(mine)),
        failures=failures,
    )


def key_frame_batches(
    records: Records, spec: ClipSpec, **options: Any
) -> Generator[Batch, None, None]:
    """`eval_batches` of key frames: whole frames, those of one size after those of another.

    Adds "boxes" float32 `[b, K, 4]` and "box_score" float32 `[b, K]`.
    """
    sizes = collections.defaultdict(list)
    for position, record in enumerate(records):
        sizes[record.truth.size].append(position)
    for positions in sizes.values():
        batches = eval_batches([records[p] for p in positions], spec, **options)
        with contextlib.closing(batches):
            for batch in batches:
                yield {**batch, "index": np.array([*positions, -1], np.int32)[batch["index"]]}


def clip(records: Records, spec: ClipSpec, position: int, seed: int) -> Batch:
    """The first clip of record `position` with its own draws, as a row of a batch; for figures.

    Raises:
        VideoError: the record and its replacements cannot be read.
    """
    check(records, spec, 1, (0, 1))
    shape = (spec.repeats, spec.num_frames, spec.image_size, spec.image_size, 3)
    address, video = {"position": position, "seed": (seed, position)}, np.empty(shape, np.uint8)
    element = train_element(records, spec, None, address, out=video)
    failed = element.pop("failed")
    if len(failed) == ATTEMPTS:
        raise all_bad(failed)
    return {name: entry[0] for name, entry in {"video": video, **element}.items()}


class Rows(Sequence[Any]):
    """Addresses of one host's rows of every batch: side by side, as its devices hold them.

    So all hosts together make the same array, however many they are, and what is drawn for its
    rows on the devices, such as masks, meets the same clips.
    """

    def __init__(
        self, order: grain.MapDataset, start: int, batch_size: int, shard: tuple[int, int]
    ) -> None:
        self._order, self._size, self._local = order, batch_size, batch_size // shard[1]
        self._first = start + shard[0] * self._local

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: Any) -> Any:
        step, row = divmod(index, self._local)
        return self._order[self._first + step * self._size + row]


def order(records: Records, seed: int) -> grain.MapDataset:
    """Addresses without end: of each part of a mixture shuffled anew in every epoch of its own.

    The parts alternate by weight; an epoch of the mixture is as long as its records.
    """
    parts = parts_of(records)
    shuffled = [
        grain.MapDataset.source(range(part.offset, part.offset + len(part.records)))
        .seed(seed + number)
        .shuffle()
        .repeat()
        for number, part in enumerate(parts)
    ]
    weights = [part.weight * len(part.records) for part in parts]
    order = shuffled[0]
    if len(parts) > 1:
        order = grain.MapDataset.mix(shuffled, [weight / sum(weights) for weight in weights])
    return order.seed(seed).random_map(_address)


def _address(position: int, rng: np.random.Generator) -> Batch:
    """All that an element is made of: the position of its record, and the seed of its draws."""
    return {"position": position, "seed": rng.integers(2**63, size=2)}
