"""Finds unusable files before training starts."""

import concurrent.futures
import itertools
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from input_pipeline.sources.frames import Folder, Numbered, Pictures
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

    Of numbered pictures the first and the last are looked at; of a data set (TFDS, packed) only
    the records that are opened.

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

    def reason(position: int) -> str:
        source = records[position].source
        try:
            if not (found := _absent(source)) and position in opened:
                decode.probe(source, min_frames, timeout)
            return found
        except decode.VideoError as error:
            return str(error)

    def look_at(some: Sequence[int]) -> list[Bad]:
        return [Bad(p, p in opened, why) for p in some if (why := reason(p))]

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        found = pool.map(look_at, [mine[start::_SHARES] for start in range(_SHARES)])
        return sorted(itertools.chain(*found))


def _absent(source: str | bytes | Pictures) -> str:
    """Why the files of a video cannot be used, as far as their sizes tell; else ""."""
    if isinstance(source, Folder) and not epath.Path(source.path).is_dir():
        return "no such folder"
    if isinstance(source, Numbered) and source.total > 0:
        for path in source.path(0), source.path(source.total - 1):
            if reason := _absent(path):
                return f"{path.rpartition('/')[2]}: {reason}"
    if not isinstance(source, str):
        return ""
    try:
        size = epath.Path(source).stat().length if "://" in source else os.stat(source).st_size
    except FileNotFoundError:
        return "no such file"
    except Exception as error:  # Remote backends have error classes of their own.
        return f"cannot be read ({type(error).__name__})"
    return "" if size else "the file is empty (0 bytes)"
