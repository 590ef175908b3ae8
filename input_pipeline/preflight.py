"""Finds unusable files before training starts."""

import concurrent.futures
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from input_pipeline.sources.frames import Numbered, is_video, reading
from input_pipeline.sources.load import parts_of
from input_pipeline.sources.records import Record
from input_pipeline.video import decode

_SHARES = 256  # Of the files: handing each to a thread would cost more than its stat.


class Bad(NamedTuple):
    """A video that cannot be used: its position, whether it was opened, one line that says why."""

    position: int
    opened: bool
    reason: str


def positions(count: int, sample: int = 256) -> list[int]:
    """Up to `sample` positions in a source of `count` records, evenly spaced."""
    return [int(p) for p in np.linspace(0, count - 1, num=min(sample, count))]


def check(
    records: Sequence[Record],
    min_frames: int,
    sample: int = 256,
    threads: int = 4,
    timeout: float = decode.TIMEOUT,
    shard: tuple[int, int] = (0, 1),
) -> list[Bad]:
    """The size of every file, the frames of some; those that are bad, in list order.

    Of numbered pictures the last is looked at; of a data set (TFDS, packed) only the records that
    are opened.

    Args:
        records: the videos to look at.
        min_frames: fewer frames than this are reported.
        sample: how many evenly spaced records are opened: files are demuxed and not decoded, of
            pictures the first is decoded.
        threads: files looked at in parallel.
        timeout: seconds that opening one may take.
        shard: `(i, n)` looks at share i of n.
    """
    opened = set(positions(len(records), sample))
    listed = [
        range(part.offset, part.offset + len(part.records))
        for part in parts_of(records)
        if isinstance(part.records, list)
    ]
    mine = sorted(opened.union(*listed))[shard[0] :: shard[1]]

    def look_at(some: Sequence[int]) -> list[Bad]:
        found = []
        for position in some:
            record = records[position]
            try:
                _size(record)
                if position in opened:
                    decode.probe(record.source, min_frames, timeout)
            except decode.VideoError as error:
                found.append(Bad(position, position in opened, str(error)))
        return found

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        found = pool.map(look_at, [mine[start::_SHARES] for start in range(_SHARES)])
        return sorted(itertools.chain(*found))


def _size(record: Record) -> None:
    """Raises VideoError if the file of a record, or its last picture, is missing or empty."""
    path, data, name = record.path, record.data, ""
    if isinstance(data, Numbered):
        path = data.path(data.total - 1)
        name = f"{path.rpartition('/')[2]}: "
    elif data is not None or not is_video(path):
        return
    with reading(name):
        size = epath.Path(path).stat().length
    if not size:
        raise decode.VideoError(f"{name}the file is empty (0 bytes)")
