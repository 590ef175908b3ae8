"""A function of every record of a source, by worker processes, in order, with a progress bar."""

import collections
import concurrent.futures
import functools
import os
import sys
from collections.abc import Callable, Generator, Sequence
from typing import Any

import tqdm

from input_pipeline.sources.records import Record
from input_pipeline.workers import Pool, note

_AHEAD = 4  # Records per worker that may be done before the one that is waited for.


def each(
    function: Callable[[Record, str], Any],
    records: Sequence[Record],
    workers: int = 0,
    timeout: float = 3600.0,
    first: int = 0,
) -> Generator[Any, None, None]:
    """`function(record, "")` for the records from `first` on, with a progress bar on stderr.

    For a record at which two workers died or hung it is `function(record, why)`. Records are read
    in this process.

    Args:
        function: as `workers.Pool` wants it.
        records: the source.
        workers: processes; 0 for one per core.
        timeout: seconds that one record may take.
        first: position of the first record.
    """
    count = len(records)
    size = max(min(workers or os.cpu_count() or 1, count - first), 1)
    running: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
    pool = Pool(functools.partial(_one, function), size, timeout)
    every = 0.2 if sys.stderr.isatty() else 10.0
    show = tqdm.tqdm(total=count, initial=first, unit=" videos", mininterval=every)
    with show, concurrent.futures.ThreadPoolExecutor(size) as threads:
        try:
            for position in range(first, count + _AHEAD * size):
                if position < count:
                    running.append(threads.submit(lambda p: pool(p, records[p]), position))
                if position >= first + _AHEAD * size:
                    yield running.popleft().result()
                    show.update()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            pool.close()


def _one(
    function: Callable[[Record, str], Any], position: int, record: Record, banned: dict[int, str]
) -> Any:
    note(position)
    return function(record, banned.get(position, ""))
