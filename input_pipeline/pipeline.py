"""The grain graph: records in their order -> elements -> batches, the same for any threads.

Training is random access by (seed, epoch, index), so any element can be made again alone: grain
gives the address of each, threads or processes make it in its row of the batch.
"""

import functools
import itertools
from collections.abc import Callable, Generator, Iterator
from typing import Any

import grain
import numpy as np

from input_pipeline.cache import FrameCache
from input_pipeline.elements import ATTEMPTS, Batch, ClipSpec, Source, check, train_element
from input_pipeline.rows import Job, filled, train_row
from input_pipeline.sources import load as sources
from input_pipeline.sources.records import Failures
from input_pipeline.supervised import Supervised
from input_pipeline.video.base import VideoError

_AHEAD = 2  # Batches; one that takes long to decode need not stop the device.
_PER_CLIP = ("video", "erase")  # What an element has R of; the rest is the video's own.


class TrainBatches:
    """Endless batches for one host; see `train_batches`.

    Attributes:
        failures: the records met so far that could not be read.
    """

    def __init__(
        self,
        made: Generator[tuple[Batch, list[Batch]], None, None],
        records: Source,
        failures: Failures,
        stop: Callable[[], None],
    ) -> None:
        self.failures = failures
        self._made, self._stop = made, stop
        self._records = records

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            VideoError: `ATTEMPTS` records drawn for one element were all unreadable (the first
                one's id and reason are shown).
            RuntimeError: the endless source ended.
        """
        try:
            batch, elements = next(self._made)
        except StopIteration as error:
            raise RuntimeError("the endless training source ended") from error
        for element in elements:
            self._note(str(element.pop("failures")))
        for name in elements[0]:
            batch[name] = np.stack([element[name] for element in elements])
        return _flat(batch)

    def _note(self, report: str) -> None:
        failed = [line.split("\t", 1) for line in report.splitlines()]
        for position, reason in failed:
            self.failures.add(self._records[int(position)].id, reason)
        if len(failed) == ATTEMPTS:
            first = self._records[int(failed[0][0])]
            raise VideoError(
                f"{ATTEMPTS} videos in a row cannot be used, first {first.id} "
                f"({first.path}): {failed[0][1]}"
            )

    def close(self) -> None:
        """Stops threads and decoding processes."""
        self._stop()  # The generator does so only if it has begun.
        self._made.close()


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
) -> TrainBatches:
    """Endless shuffled training batches, the same bytes for any threads, workers and shards.

    A record that cannot be read is replaced by others drawn from the element's own generator.
    Memory is bounded: four local batches of `b * R` clips (or as many more as hold `threads`
    videos), per thread one encoded file with T decoded frames (and two buffers that RandAugment
    keeps, of at most 64 MiB each), per worker one element more, and `cache_gb`.

    Args:
        records: the videos; those of a `sources.Mixture` are drawn by the weights of its parts.
        spec: what becomes of each.
        batch_size: videos of a step over all shards, B.
        seed: of the order and of every draw.
        start: videos consumed before, a multiple of `batch_size`.
        shard: this host's number and the number of hosts; b = B / hosts.
        threads: clips decoded in parallel, where there are no workers.
        workers: supervised processes that decode in place of the threads; one that crashes or
            hangs costs a record, not the run. 0 decodes in this process.
        cache_gb: decoded videos kept in memory, 1e9 bytes, all workers together; each worker keeps
            its own, and any worker may get any video.
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
    cache = FrameCache(int(cache_gb * 1e9) // max(workers, 1)) if cache_gb > 0 else None
    fill: Any
    if workers:
        task = functools.partial(train_row, sources.shared(records), spec, cache)
        fill = Supervised(task, workers, 2 * spec.timeout + 30)
        stop = fill.close
    else:
        fill, stop = functools.partial(train_row, records, spec, cache), lambda: None
    order = _positions(records, seed).seed(seed).random_map(_address)
    addresses = _parts(order, start, batch_size, shard)
    made = filled(_begun(addresses, spec, fill), workers or threads, _AHEAD, stop)
    return TrainBatches(made, records, failures or Failures(), stop)


def _address(position: int, rng: np.random.Generator) -> Batch:
    """All that an element is made of: the position of its record, and the seed of its draws."""
    return {"position": position, "seed": rng.integers(2**63, size=2)}


def _parts(
    order: grain.MapDataset, start: int, batch_size: int, shard: tuple[int, int]
) -> Generator[Batch, None, None]:
    """Addresses of this shard's part of every batch: rows side by side, as its devices hold them.

    So all shards together make the same array, however many they are, and what is drawn for its
    rows on the devices, such as masks, meets the same clips.
    """
    local = batch_size // shard[1]
    for first in itertools.count(start + shard[0] * local, batch_size):
        rows = [order[i] for i in range(first, first + local)]
        yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _begun(
    addresses: Iterator[Batch], spec: ClipSpec, fill: Callable[..., Batch]
) -> Generator[tuple[Batch, list[Job]], None, None]:
    """Empty batches and the jobs that fill them."""
    side = spec.image_size
    for batch in addresses:
        positions = batch["position"]
        shape = (len(positions), spec.repeats, spec.num_frames, side, side, 3)
        video = np.empty(shape, np.uint8)
        generators = map(np.random.default_rng, batch["seed"])
        jobs: list[Job] = [
            functools.partial(fill, int(position), rng, out=row)
            for position, rng, row in zip(positions, generators, video)
        ]
        yield {"video": video}, jobs


def _positions(records: Source, seed: int) -> grain.MapDataset:
    """Positions of records without end, each part shuffled anew in every epoch of its own.

    The parts of a mixture alternate by weight; an epoch of the mixture is as long as its records.
    """
    parts = sources.parts_of(records)
    if len(parts) == 1:
        return grain.MapDataset.source(range(len(records))).seed(seed).shuffle().repeat()
    shuffled = [
        grain.MapDataset.source(range(part.offset, part.offset + len(part.records)))
        .seed(seed + number)
        .shuffle()
        .repeat()
        for number, part in enumerate(parts)
    ]
    weights = [part.weight * len(part.records) for part in parts]
    return grain.MapDataset.mix(shuffled, [weight / sum(weights) for weight in weights])


def clip(records: Source, spec: ClipSpec, position: int, seed: int) -> Batch:
    """One training element of record `position`, with its own draws; for figures.

    Returns:
        As `train_batches` without the batch axis; the first of R clips.

    Raises:
        VideoError: the record and its replacements cannot be read.
    """
    check(records, spec, 1, (0, 1))
    element = train_element(records, spec, None, position, np.random.default_rng([seed, position]))
    reports = str(element.pop("failures")).splitlines()
    if len(reports) == ATTEMPTS:
        reason = reports[0].split("\t", 1)[1]
        raise VideoError(f"{records[position].id} cannot be used: {reason}")
    return element | {name: element[name][0] for name in _PER_CLIP if name in element}


def _flat(batch: Batch) -> Batch:
    """Joins the axes of videos and repeats: `[b, R, ...]` and `[b]` become `[b * R, ...]`."""
    b, repeats = batch["video"].shape[:2]
    if repeats > 1:
        first = np.arange(b * repeats) % repeats == 0
        for name in ("label", "index", "skipped"):
            batch[name] = np.repeat(batch[name], repeats)
        batch["skipped"] *= first
    joined = {k: batch[k].reshape(-1, *batch[k].shape[2:]) for k in _PER_CLIP if k in batch}
    return batch | joined
