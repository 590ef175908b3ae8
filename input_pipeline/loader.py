"""Batches of clips from records, run by grain in threads, which may wait for worker processes.

Training is random access by (seed, index), so that any element can be made again alone and batches
are the same for any number of threads, workers and hosts.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Generator, Sequence
from typing import Any

import grain
import numpy as np

from input_pipeline.elements import (
    Batch,
    ClipSpec,
    FrameCache,
    Make,
    Records,
    make_clips,
    make_views,
    train_element,
    view_element,
)
from input_pipeline.sources.load import parts_of
from input_pipeline.sources.records import Failures
from input_pipeline.workers import Pool

Batches = Generator[Batch, None, None]
_AHEAD = 2  # Batches; one that takes long to decode need not stop the device.


def _clips(
    element: Callable[..., Batch],
    make: Make,
    addresses: grain.MapDataset,
    shape: tuple[int, ...],
    size: int,
    limit: float,
    threads: int,
    workers: int,
    failures: Failures | None,
) -> Batches:
    """Batches of `size` elements with videos of a shape, which fill the rows of one array.

    `element(make, address, out=row)` gives all but the video, which `make` makes, here or in a
    worker; `limit` is `ClipSpec.timeout`.
    """
    failures = Failures() if failures is None else failures
    pool = Pool(make, limit, shape) if workers else None
    videos: dict[int, np.ndarray] = {}  # Of the batches under way.

    def fill(index: int, address: Any) -> Batch:
        batch, row = divmod(index, size)
        video = videos.setdefault(batch, np.empty((size * shape[0], *shape[1:]), np.uint8))
        out = video[row * shape[0] : (row + 1) * shape[0]]
        return {"batch": batch, **element(pool or make, address, out=out)}

    def join(elements: Sequence[Batch]) -> Batch:
        failed = [one for element in elements for one in element.pop("failed")]
        (batch,) = {element.pop("batch") for element in elements}
        joined = {n: np.concatenate([one[n] for one in elements]) for n in elements[0]}
        return {"video": videos.pop(batch), **joined, "failed": failed}

    threads = workers or threads
    read = grain.ReadOptions(threads, max(_AHEAD * size, threads))
    made = addresses.map_with_index(fill).to_iter_dataset(read).batch(size, batch_fn=join)
    # So that the arrays of a batch are joined before it is asked for.
    made = grain.experimental.ThreadPrefetchIterDataset(made, prefetch_buffer_size=1)
    with (
        contextlib.closing(iter(made)) as found,
        contextlib.closing(pool) if pool else contextlib.nullcontext(),
    ):
        for batch in found:
            for name, reason in batch.pop("failed"):
                failures.add(name, reason)
            yield batch


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

    A record that cannot be read is replaced by others that the element's own seed draws.
    Memory is bounded: five local batches of `b * R` clips (or as many more as hold `threads`
    videos), per thread one encoded file with T decoded frames, per worker one element more.

    Args:
        records: those of a `sources.Mixture` are drawn by the weights of its parts.
        batch_size: videos of a step over all shards, B.
        start: videos consumed before, a multiple of `batch_size`.
        shard: this host's number and the number of hosts; b = B / hosts.
        threads: clips decoded in parallel, where there are no workers.
        workers: processes that decode in place of the threads; one that crashes or hangs costs a
            record, not the run.
        cache_gb: decoded videos that threads keep in memory, 1e9 bytes.
        failures: where unreadable records are noted.

    Returns:
        Dictionaries as docs/data.md ("What a batch holds") has them; "skipped" is at the first clip
        of each video. Those of key frames have also "boxes" float32 `[b * R, K, 4]` (x1, y1, x2,
        y2, pixels), "box_label" uint8 `[b * R, K, C]` and "box_valid" bool `[b * R, K]`, False for
        one outside the crop and for padding.
    """
    keep = cache_gb > 0 and not workers and not spec.fps and not spec.boxes
    cache = FrameCache(int(cache_gb * 1e9)) if keep else None
    return _clips(
        functools.partial(train_element, records, spec.repeats),
        functools.partial(make_clips, records, spec, cache),
        order(records, seed, start, batch_size, shard),
        (spec.repeats, spec.num_frames, spec.image_size, spec.image_size, 3),
        batch_size // shard[1],
        *(spec.timeout, threads, workers, failures),
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
    thread holds `S * T` frames, the shorter side already scaled. Key frames are tested on whole
    frames, those of one size after those of another.

    Returns:
        Dictionaries as docs/data.md ("What a batch holds") has them: view = segment * C + crop,
        what is not "valid" is zeros. Those of key frames have also "boxes" float32 `[b, K, 4]` and
        "box_score" float32 `[b, K]`.
    """
    groups: dict[Any, Sequence[int]] = {(): range(len(records))}
    sides = spec.image_size, spec.image_size
    if spec.boxes:
        sizes = [record.truth.size for record in records]
        groups = {size: [p for p, s in enumerate(sizes) if s == size] for size in sizes}
    local = batch_size // shard[1]
    for positions in groups.values():
        mine = list(positions[shard[0] :: shard[1]])
        mine += [-1] * (-(-len(positions) // batch_size) * local - len(mine))
        size = spec.boxes.padded(records[positions[0]].truth) if spec.boxes else sides
        yield from _clips(
            functools.partial(view_element, records, spec),
            functools.partial(make_views, records, spec),
            grain.MapDataset.source(mine),
            (1, spec.num_segments * spec.num_crops, spec.num_frames, *size, 3),
            local,
            *(spec.timeout, threads, min(workers, len(mine)), failures),
        )


def clip(records: Records, spec: ClipSpec, position: int, seed: int) -> Batch:
    """The first clip of record `position` with its own draws, as a row of a batch; for figures."""
    shape = (spec.repeats, spec.num_frames, spec.image_size, spec.image_size, 3)
    address, video = {"position": position, "seed": (seed, position)}, np.empty(shape, np.uint8)
    make = functools.partial(make_clips, records, spec, None)
    element = train_element(records, spec.repeats, make, address, out=video)
    del element["failed"]
    return {name: entry[0] for name, entry in {"video": video, **element}.items()}


def order(
    records: Records, seed: int, start: int, batch_size: int, shard: tuple[int, int]
) -> grain.MapDataset:
    """Addresses without end of one host's rows of every batch.

    Each part of a mixture is shuffled anew in every epoch of its own; the parts alternate by
    weight. The rows of a host are side by side, so that all hosts together make the same array,
    however many they are.
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
    whole = shuffled[0]
    if len(parts) > 1:
        whole = grain.MapDataset.mix(shuffled, [weight / sum(weights) for weight in weights])
    whole = whole.seed(seed).random_map(_address)
    local = batch_size // shard[1]

    def of_row(index: int) -> Batch:
        step, row = divmod(index, local)
        return whole[start + step * batch_size + shard[0] * local + row]

    return grain.MapDataset.range(sys.maxsize).map(of_row)


def _address(position: int, rng: np.random.Generator) -> Batch:
    return {"position": position, "seed": rng.integers(2**63, size=2)}
