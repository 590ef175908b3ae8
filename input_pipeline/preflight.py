"""Finds unusable files before training starts."""

import concurrent.futures
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from input_pipeline.sources import frames as stills
from input_pipeline.sources import load as sources
from input_pipeline.sources.records import Record
from input_pipeline.video import decode

_AT_ONCE = 64  # Files of a job: handing one to a thread costs more than its stat.


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
    """The size of every file, the frames of some.

    Of numbered pictures the first and the last are looked at; of a data set (TFDS, ArrayRecord)
    only the records that are opened.

    Args:
        records: the videos to look at.
        min_frames: fewer frames than this are reported.
        sample: how many evenly spaced records are opened: files are demuxed and not decoded, of
            pictures the first is decoded.
        threads: files looked at in parallel.
        timeout: seconds that opening one may take.
        shard: `(i, n)` looks at share i of n.

    Returns:
        Those of the share, in list order.

    Raises:
        DataError: as reading a record of the source.
    """
    opened = set(positions(len(records), sample))
    listed = [
        range(part.offset, part.offset + len(part.records))
        for part in sources.parts_of(records)
        if isinstance(part.records, list)
    ]
    mine = sorted(opened.union(*listed))[shard[0] :: shard[1]]

    def look_at(start: int) -> list[Bad]:
        some = mine[start : start + _AT_ONCE]
        found = [
            Bad(p, p in opened, look(records[p], min_frames, timeout, p in opened)) for p in some
        ]
        return [bad for bad in found if bad.reason]

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        found = pool.map(look_at, range(0, len(mine), _AT_ONCE))
        return [bad for some in found for bad in some]


def look(record: Record, min_frames: int, timeout: float, opened: bool = True) -> str:
    """Why a video cannot be used, as far as its files or opening it tells; else ""."""
    source = record.source
    if isinstance(source, str) and (reason := _bad_size(source)):
        return reason
    if isinstance(source, stills.Folder) and not epath.Path(source.path).is_dir():
        return "no such folder"
    if isinstance(source, stills.Numbered) and source.total:
        for path in source.path(0), source.path(source.total - 1):
            if reason := _bad_size(path):
                return f"{path.rpartition('/')[2]}: {reason}"
    try:
        if opened:
            decode.probe(source, min_frames, timeout)
    except decode.VideoError as error:
        return str(error)
    return ""


def _bad_size(path: str) -> str:
    try:
        length = epath.Path(path).stat().length if "://" in path else os.stat(path).st_size
    except FileNotFoundError:
        return "no such file"
    except Exception as error:  # Remote backends have error classes of their own.
        return f"cannot be read ({type(error).__name__})"
    return "" if length else "the file is empty (0 bytes)"
