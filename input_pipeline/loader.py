"""Batches of clips from records, run by grain in threads, which may wait for worker processes.

Training is random access by (seed, index), so that any element can be made again alone and batches
are the same for any number of threads, workers and hosts.
"""

import functools
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from input_pipeline import workers as processes
from input_pipeline.elements import (
    ATTEMPTS,
    Batch,
    ClipSpec,
    FrameCache,
    Source,
    check,
    padded,
    train_element,
    view_element,
)
from input_pipeline.sources.load import parts_of
from input_pipeline.sources.records import Failures
from input_pipeline.video.base import VideoError

_AHEAD = 2  # Batches; one that takes long to decode need not stop the device.


class Batches:
    """One host's batches, dictionaries of NumPy arrays; to be closed."""

    def __init__(
        self,
        element: Callable[..., Batch],
        records: Source,
        addresses: Sequence[Any],
        shape: tuple[int, ...],
        size: int,
        threads: int,
        workers: int,
        timeout: float,
        failures: Failures | None,
    ) -> None:
        """`element` of each address with an `out` of `shape`, `size` of them a batch.

        `element` is `train_element` or `view_element` with its first arguments; see `train_batches`
        for the others. A worker may take `timeout` seconds for one record.
        """
        self.failures = failures or Failures()
        self._records = records
        self._pool = processes.Pool(element, workers, timeout, shape) if workers else None
        threads = workers or max(threads, 1)
        made = (
            grain.MapDataset.source(addresses)
            .map(functools.partial(_element, self._pool or element, shape))
            .to_iter_dataset(grain.ReadOptions(threads, max(_AHEAD * size, threads)))
            .batch(size, batch_fn=_joined)
        )
        # So that the arrays of a batch are joined before it is asked for.
        made = grain.experimental.ThreadPrefetchIterDataset(made, prefetch_buffer_size=1)
        self._made = [iter(made)]  # Empty once it is closed.
        # Also if it is forgotten, and at the end of the process before grain's modules go.
        self._end = weakref.finalize(self, _close, self._pool, self._made)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            VideoError: `ATTEMPTS` records drawn for one element were all unreadable (the first
                one's id and reason are shown).
        """
        if not self._made:
            raise StopIteration
        batch = next(self._made[0])
        for failed in batch.pop("failed"):
            for position, reason in failed:
                record = self._records[position]
                self.failures.add(record.id, reason)
                if "valid" in batch:
                    row = batch["index"] == position
                    batch["label"][row], batch["id"][row] = record.label, padded(record.id)
            if len(failed) == ATTEMPTS:
                first = self._records[failed[0][0]]
                raise VideoError(
                    f"{ATTEMPTS} videos in a row cannot be used, first {first.id} "
                    f"({first.path}): {failed[0][1]}"
                )
        return batch

    def close(self) -> None:
        """Stops threads and workers. May be repeated."""
        self._end()


def _close(pool: processes.Pool | None, made: list[Any]) -> None:
    if pool:
        pool.close()
    while made:
        made.pop().close()


def _element(element: Callable[..., Batch], shape: tuple[int, ...], address: Any) -> Batch:
    video = np.empty(shape, np.uint8)
    return {"video": video, **element(address, out=video)}


def _joined(elements: Sequence[Batch]) -> Batch:
    """One batch of elements whose entries are `[n, ...]` each, whatever they are."""
    failed = [element.pop("failed") for element in elements]
    names = elements[0]
    return {n: np.concatenate([one[n] for one in elements]) for n in names} | {"failed": failed}


def train_batches(
    records: Source,
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
    videos), per thread one encoded file with T decoded frames (and two buffers that RandAugment
    keeps, of at most 64 MiB each), per worker one element more.

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
        "skipped" int32 `[b * R]` (unreadable records met, at the first clip of each video), and
        "erase" int32 `[b * R, 4]` if `spec.erasing`.

    Raises:
        DataError: no records, or a value of `spec`, `batch_size` or `shard` that cannot be.
    """
    check(records, spec, batch_size, shard)
    keep = cache_gb > 0 and not workers and not spec.fps
    cache = FrameCache(int(cache_gb * 1e9)) if keep else None
    return Batches(
        functools.partial(train_element, records, spec, cache),
        records,
        Rows(_order(records, seed), start, batch_size, shard),
        (spec.repeats, spec.num_frames, spec.image_size, spec.image_size, 3),
        batch_size // shard[1],
        threads,
        workers,
        2 * spec.timeout + 30,
        failures,
    )


def eval_batches(
    records: Source,
    spec: ClipSpec,
    *,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    threads: int = 2,
    workers: int = 0,
    failures: Failures | None = None,
) -> Batches:
    """Every record exactly once, in order, all its views from one decode.

    Shard i of n takes records `i, i + n, ...`; all shards give the same number of batches. Memory
    is bounded as in training, with `S * T` frames per thread, the shorter side already scaled.

    Args:
        records, batch_size, shard, threads, workers, failures: as of `train_batches`.
        spec: views: `num_segments`, `num_crops`, T, stride, size; `sampling` names their rule.

    Returns:
        An iterator of dictionaries: "video" uint8 `[b, S * C, T, H, W, 3]`, view = segment * C +
        crop, "label" int32 `[b]`, "index" int32 `[b]` (position in `records`), "id" uint8
        `[b, 256]` (UTF-8 of its beginning, zeros behind), "valid" bool `[b]`: False for a record
        that cannot be read (zeros, never replaced) and for padding of the last batch (zeros, label
        and index -1).

    Raises:
        DataError: no records, or a value of `batch_size` or `shard` that cannot be.
    """
    check(records, spec, batch_size, shard)
    local, steps = batch_size // shard[1], -(-len(records) // batch_size)
    mine = list(range(shard[0], len(records), shard[1]))
    side = spec.image_size
    return Batches(
        functools.partial(view_element, records, spec),
        records,
        mine + [-1] * (steps * local - len(mine)),
        (1, spec.num_segments * spec.num_crops, spec.num_frames, side, side, 3),
        local,
        threads,
        min(workers, len(mine)),
        2 * spec.timeout + 30,
        failures,
    )


def clip(records: Source, spec: ClipSpec, position: int, seed: int) -> Batch:
    """One training element of record `position`, with its own draws; for figures.

    Returns:
        As `train_batches` without the batch axis; the first of R clips.

    Raises:
        VideoError: the record and its replacements cannot be read.
    """
    check(records, spec, 1, (0, 1))
    side = spec.image_size
    video = np.empty((spec.repeats, spec.num_frames, side, side, 3), np.uint8)
    address = {"position": position, "seed": (seed, position)}
    element = train_element(records, spec, None, address, out=video)
    failed = element.pop("failed")
    if len(failed) == ATTEMPTS:
        raise VideoError(f"{records[position].id} cannot be used: {failed[0][1]}")
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


def _order(records: Source, seed: int) -> grain.MapDataset:
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
