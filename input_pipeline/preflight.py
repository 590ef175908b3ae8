"""Finds unusable files before training starts."""

import concurrent.futures
import os
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from input_pipeline import decode, sources, stills
from input_pipeline.records import Record


def positions(count: int, sample: int = 256) -> list[int]:
    """Up to `sample` positions in a source of `count` records, evenly spaced."""
    return [int(p) for p in np.linspace(0, count - 1, num=min(sample, count))]


def sampled(records: Sequence[Record], sample: int = 256) -> Iterator[Record]:
    """Up to `sample` records, evenly spaced: those that `check` opens; read one by one."""
    return (records[position] for position in positions(len(records), sample))


def check(
    records: Sequence[Record],
    min_frames: int,
    sample: int = 256,
    threads: int = 4,
    timeout: float = decode.TIMEOUT,
) -> list[tuple[Record, str]]:
    """Finds unusable videos before training: the size of every file, the frames of some.

    Of a folder of raw frames the first and the last file are looked at. Records that a source reads
    from a data set of its own (TFDS, ArrayRecord) are looked at only where they are opened.

    Args:
        records: the videos to look at.
        min_frames: fewer frames than this are reported.
        sample: how many evenly spaced records are opened; files are demuxed and not decoded, of
            pictures the first is decoded.
        threads: files looked at in parallel.
        timeout: seconds that opening one may take.

    Returns:
        `(record, one-line reason)` of each bad one, in list order.

    Raises:
        DataError: as reading a record of the source.
    """
    if not records:
        return []
    opened = set(positions(len(records), sample))
    listed = [
        range(part.offset, part.offset + len(part.records))
        for part in sources.parts_of(records)
        if isinstance(part.records, list)
    ]
    looked_at = sorted(opened.union(*listed))

    def look(position: int) -> tuple[Record, str]:
        record = records[position]
        reason = _missing(record)
        if not reason and position in opened:
            try:
                decode.probe(record.source, min_frames, timeout)
            except decode.VideoError as error:
                reason = str(error)
        return record, reason

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return [found for found in pool.map(look, looked_at) if found[1]]


def _missing(record: Record) -> str:
    """What is wrong with the files of a record, without opening them; "" if nothing."""
    source = record.source
    if isinstance(source, str):
        return _bad_size(source)
    if isinstance(source, stills.Folder):
        return "" if epath.Path(source.path).is_dir() else "no such folder"
    if not isinstance(source, stills.Numbered) or not source.total:
        return ""
    for path in source.path(0), source.path(source.total - 1):
        reason = _bad_size(path)
        if reason:
            return f"{path.rpartition('/')[2]}: {reason}"
    return ""


def _bad_size(path: str) -> str:
    try:
        length = epath.Path(path).stat().length if "://" in path else os.stat(path).st_size
    except FileNotFoundError:
        return "no such file"
    except Exception as error:  # Remote backends have error classes of their own.
        return f"cannot be read ({type(error).__name__})"
    return "" if length else "the file is empty (0 bytes)"
