"""Evaluation batches: all views of every record, from one decode, each record exactly once."""

import collections
import concurrent.futures
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from input_pipeline import clips, decode, spatial
from input_pipeline.pipeline import Batch, ClipSpec, check, one_line
from input_pipeline.records import Failures, Record


def eval_batches(
    records: Sequence[Record],
    spec: ClipSpec,
    *,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    threads: int = 2,
    failures: Failures | None = None,
) -> Iterator[Batch]:
    """Every record exactly once, in order, all its views from one decode.

    Shard i of n takes records `i, i + n, ...`; all shards give the same number of batches. Memory
    is bounded: three local batches, and per thread one encoded file with its `S * T` frames, the
    shorter side already scaled.

    Args:
        records: the videos.
        spec: views: `num_segments`, `num_crops`, T, stride, size; `sampling` names their rule.
        batch_size: videos of a step over all shards, B.
        shard: this host's number and the number of hosts; b = B / hosts.
        threads: videos decoded in parallel.
        failures: where unreadable records are noted.

    Yields:
        "video" uint8 `[b, S * C, T, H, W, 3]`, "label" int32 `[b]`, "index" int32 `[b]` (position
        in `records`), "valid" bool `[b]`: False for a record that cannot be read (zeros, never
        replaced) and for padding of the last batch (zeros, label and index -1).

    Raises:
        DataError: no records, or a value of `batch_size` or `shard` that cannot be.
    """
    check(records, spec, batch_size, shard)
    return _eval_batches(records, spec, batch_size, shard, threads, failures or Failures())


def _eval_batches(
    records: Sequence[Record],
    spec: ClipSpec,
    batch_size: int,
    shard: tuple[int, int],
    threads: int,
    failures: Failures,
) -> Iterator[Batch]:
    local = batch_size // shard[1]
    mine = range(shard[0], len(records), shard[1])
    views = spec.num_segments * spec.num_crops
    shape = (local, views, spec.num_frames, spec.image_size, spec.image_size, 3)
    pending: collections.deque[tuple[Batch, list[concurrent.futures.Future[str]]]]
    pending = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(threads)

    def collect() -> Batch:
        batch, jobs = pending.popleft()
        for row, job in enumerate(jobs):
            reason = job.result()
            batch["valid"][row] = not reason
            if reason:
                failures.add(records[batch["index"][row]].id, reason)
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
                batch["label"][row] = records[position].label
                batch["index"][row] = position
                jobs.append(pool.submit(_views, records[position], spec, batch["video"][row]))
            pending.append((batch, jobs))
            if len(pending) == 2:
                yield collect()
        while pending:
            yield collect()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _views(record: Record, spec: ClipSpec, out: np.ndarray) -> str:
    """Fills `out` `[S * C, T, H, W, 3]`; returns why not, or ""."""
    shape = (spec.num_frames, spec.frame_stride, spec.num_segments)
    try:
        with decode.open_video(record.source, spec.min_frames) as video:
            indices = clips.VIEWS[spec.sampling](video.header.num_frames, *shape).ravel()
            frames = video.read(indices, lambda f: spatial.shrink(f, spec.image_size))
        spatial.views_from_frames(frames, spec.image_size, spec.num_segments, spec.num_crops, out)
    except (decode.VideoError, cv2.error) as error:
        return one_line(error)
    return ""
