"""Evaluation batches: all views of every record, from one decode, each record exactly once."""

import contextlib
import functools
from collections.abc import Callable, Generator

import numpy as np

from input_pipeline.elements import Batch, ClipSpec, Source, check
from input_pipeline.isolate import Children, Crashed
from input_pipeline.rows import Job, filled, view_row
from input_pipeline.sources import load as sources
from input_pipeline.sources.records import Failures

_ID = 256  # bytes


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
    is bounded: three local batches (or as many more as hold `threads` videos), and per thread one
    encoded file with its `S * T` frames, the shorter side already scaled.

    Args:
        records, batch_size, shard, threads, workers, failures: as of `pipeline.train_batches`.
        spec: views: `num_segments`, `num_crops`, T, stride, size; `sampling` names their rule.

    Yields:
        "video" uint8 `[b, S * C, T, H, W, 3]`, "label" int32 `[b]`, "index" int32 `[b]` (position
        in `records`), "id" uint8 `[b, 256]` (UTF-8 of its beginning, zeros behind), "valid" bool
        `[b]`: False for a record that cannot be read (zeros, never replaced) and for padding of the
        last batch (zeros, label and index -1).

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
    mine = range(shard[0], len(records), shard[1])
    workers = min(workers, max(len(mine), 1))
    children = None
    if workers:
        task = functools.partial(view_row, sources.shared(records), spec)
        children = Children(task, workers, 2 * spec.timeout + 30)

    def fill(position: int, out: np.ndarray) -> Batch:
        if children is None:
            return view_row(records, spec, position, out=out)
        try:
            try:
                return children(position, out=out)
            except Crashed:  # Memory may have run out, or a disk been slow: once more.
                return children(position, out=out)
        except Crashed as crash:
            record = records[position]
            return {"label": record.label, "id": record.id, "reason": crash.reason}

    begun = _begun(mine, -(-len(records) // batch_size), batch_size // shard[1], spec, fill)
    stop = children.close if children else lambda: None
    with contextlib.closing(filled(begun, workers or threads, 1, stop)) as made:
        for batch, elements in made:
            for row, element in enumerate(elements):
                batch["label"][row] = element["label"]
                batch["valid"][row] = not element["reason"]
                if element["reason"]:
                    failures.add(element["id"], element["reason"])
                name = np.frombuffer(element["id"].encode()[:_ID], np.uint8)
                batch["id"][row, : len(name)] = name
            yield batch


def _begun(
    mine: range, steps: int, local: int, spec: ClipSpec, fill: Callable[[int, np.ndarray], Batch]
) -> Generator[tuple[Batch, list[Job]], None, None]:
    """Batches of padding, and the jobs that fill those rows that have a record."""
    count, side = spec.num_segments * spec.num_crops, spec.image_size
    for step in range(steps):
        part = mine[step * local : (step + 1) * local]
        batch: Batch = {
            "video": np.zeros((local, count, spec.num_frames, side, side, 3), np.uint8),
            "label": np.full(local, -1, np.int32),
            "index": np.full(local, -1, np.int32),
            "id": np.zeros((local, _ID), np.uint8),
            "valid": np.zeros(local, bool),
        }
        batch["index"][: len(part)] = part
        yield batch, [functools.partial(fill, *one) for one in zip(part, batch["video"])]
