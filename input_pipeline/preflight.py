"""Finds unusable files before training starts."""

import concurrent.futures
import os
from collections.abc import Sequence

import numpy as np
from etils import epath

from input_pipeline import decode
from input_pipeline.records import Record


def sampled(records: Sequence[Record], sample: int = 256) -> list[Record]:
    """Up to `sample` records, evenly spaced: those that `check` opens."""
    picked = np.linspace(0, len(records) - 1, num=min(sample, len(records)))
    return [records[int(position)] for position in picked]


def check(
    records: Sequence[Record], min_frames: int, sample: int = 256, threads: int = 4
) -> list[tuple[Record, str]]:
    """Finds unusable files before training: every file's size, some files' headers.

    Args:
        records: the videos to look at.
        min_frames: fewer frames than this are reported.
        sample: how many evenly spaced records are opened and demuxed; nothing is decoded.
        threads: files looked at in parallel.

    Returns:
        `(record, one-line reason)` of each bad one, in list order.
    """
    if not records:
        return []
    opened = {record.id for record in sampled(records, sample)}

    def check(position: int) -> str:
        path = records[position].path
        try:
            length = epath.Path(path).stat().length if "://" in path else os.stat(path).st_size
        except FileNotFoundError:
            return "no such file"
        except Exception as error:  # Remote backends have error classes of their own.
            return f"cannot be read ({type(error).__name__})"
        if length == 0:
            return "the file is empty (0 bytes)"
        if records[position].id in opened:
            try:
                decode.probe(path, min_frames)
            except decode.VideoError as error:
                return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        reasons = list(pool.map(check, range(len(records))))
    return [(record, reason) for record, reason in zip(records, reasons) if reason]
