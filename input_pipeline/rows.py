"""Batches that are made once: each row is filled in place, in threads or processes."""

import collections
import concurrent.futures
import itertools
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.cache import FrameCache
from input_pipeline.elements import Batch, ClipSpec, Source, train_element, views

Job = Callable[[], Any]


def train_row(
    records: Source,
    spec: ClipSpec,
    cache: FrameCache | None,
    position: int,
    rng: np.random.Generator,
    banned: Mapping[int, str] | None = None,
    *,
    out: np.ndarray,
) -> Batch:
    """`elements.train_element` with its "video" in `out`, uint8 `[R, T, H, W, 3]`."""
    element = train_element(records, spec, cache, position, rng, banned, out)
    del element["video"]
    return element


def view_row(records: Source, spec: ClipSpec, position: int, *, out: np.ndarray) -> Batch:
    """`elements.views` with its "video" in `out`; zeros if the record cannot be read."""
    element = views(records, spec, position, out)
    if element.pop("video", None) is None:
        out[:] = 0  # It holds whatever was there.
    return element


def filled(
    begun: Iterable[tuple[Batch, Sequence[Job]]],
    threads: int,
    ahead: int,
    stop: Callable[[], None],
) -> Generator[tuple[Batch, list[Any]], None, None]:
    """Batches in their order, each once its jobs are done, while later ones are under way.

    Args:
        begun: batches still empty, and what fills the rows of each.
        threads: jobs at a time.
        ahead: batches begun behind the one that is waited for; more if they are too few to keep all
            threads busy.
        stop: called at the end, before running jobs are waited for.

    Yields:
        A batch and what its jobs returned.
    """
    pool = concurrent.futures.ThreadPoolExecutor(max(threads, 1))
    waiting: collections.deque[tuple[Batch, list[concurrent.futures.Future[Any]]]]
    waiting = collections.deque()

    def first() -> tuple[Batch, list[Any]]:
        batch, jobs = waiting.popleft()
        return batch, [job.result() for job in jobs]

    try:
        for batch, jobs in begun:
            waiting.append((batch, [pool.submit(job) for job in jobs]))
            later = sum(len(jobs) for _, jobs in itertools.islice(waiting, 1, None))
            if len(waiting) > ahead and later >= threads:
                yield first()
        while waiting:
            yield first()
    finally:
        stop()
        pool.shutdown(wait=True, cancel_futures=True)
