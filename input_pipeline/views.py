"""Evaluation batches: all views of every record, from one decode, each record exactly once."""

import collections
import concurrent.futures
import functools
from collections.abc import Generator

import numpy as np

from input_pipeline.elements import Batch, ClipSpec, Source, check, views
from input_pipeline.isolate import Children, Crashed
from input_pipeline.records import Failures


def eval_batches(
    records: Source,
    spec: ClipSpec,
    *,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    threads: int = 2,
    workers: int = 0,
    failures: Failures | None = None,
) -> Generator[Batch, None, None]:
    """Every record exactly once, in order, all its views from one decode.

    Shard i of n takes records `i, i + n, ...`; all shards give the same number of batches. Memory
    is bounded: three local batches, and per thread one encoded file with its `S * T` frames, the
    shorter side already scaled.

    Args:
        records: the videos.
        spec: views: `num_segments`, `num_crops`, T, stride, size; `sampling` names their rule.
        batch_size: videos of a step over all shards, B.
        shard: this host's number and the number of hosts; b = B / hosts.
        threads: videos decoded in parallel, where there are no workers.
        workers: supervised processes that decode in place of the threads; one that crashes or
            hangs costs a record, not the run.
        failures: where unreadable records are noted.

    Yields:
        "video" uint8 `[b, S * C, T, H, W, 3]`, "label" int32 `[b]`, "index" int32 `[b]` (position
        in `records`), "valid" bool `[b]`: False for a record that cannot be read (zeros, never
        replaced) and for padding of the last batch (zeros, label and index -1).

    Raises:
        DataError: no records, or a value of `batch_size` or `shard` that cannot be.
    """
    check(records, spec, batch_size, shard)
    return _eval_batches(records, spec, batch_size, shard, threads, workers, failures or Failures())


def _eval_batches(
    records: Source,
    spec: ClipSpec,
    batch_size: int,
    shard: tuple[int, int],
    threads: int,
    workers: int,
    failures: Failures,
) -> Generator[Batch, None, None]:
    local = batch_size // shard[1]
    mine = range(shard[0], len(records), shard[1])
    count, side = spec.num_segments * spec.num_crops, spec.image_size
    shape = (local, count, spec.num_frames, side, side, 3)
    pending: collections.deque[tuple[Batch, list[concurrent.futures.Future[Batch]]]]
    pending = collections.deque()
    workers = min(workers, max(len(mine), 1))
    pool = concurrent.futures.ThreadPoolExecutor(workers or threads)
    make = functools.partial(views, records, spec)
    children = Children(make, workers, 2 * spec.timeout + 30) if workers else None

    def read(position: int, out: np.ndarray) -> Batch:
        if children is None:
            return make(position, out)
        try:
            try:
                element = children(position)
            except Crashed:  # Memory may have run out, or a disk been slow: once more.
                element = children(position)
        except Crashed as crash:
            return {"label": records[position].label, "reason": crash.reason}
        if "video" in element:
            out[:] = element["video"]
        return element

    def collect() -> Batch:
        batch, jobs = pending.popleft()
        for row, job in enumerate(jobs):
            element = job.result()
            batch["label"][row] = element["label"]
            batch["valid"][row] = not element["reason"]
            if element["reason"]:
                failures.add(records[batch["index"][row]].id, element["reason"])
        return batch

    try:
        for step in range(-(-len(records) // batch_size)):
            part = mine[step * local : (step + 1) * local]
            batch: Batch = {
                "video": np.zeros(shape, np.uint8),
                "label": np.full(local, -1, np.int32),
                "index": np.full(local, -1, np.int32),
                "valid": np.zeros(local, bool),
            }
            jobs = []
            for row, position in enumerate(part):
                batch["index"][row] = position
                jobs.append(pool.submit(read, position, batch["video"][row]))
            pending.append((batch, jobs))
            if len(pending) == 2:
                yield collect()
        while pending:
            yield collect()
    finally:
        if children:
            children.close()
        pool.shutdown(wait=True, cancel_futures=True)
