"""How large videos are and how fast clips are decoded from them, stored in one way or another."""

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from input_pipeline import clips, decode, preflight, staging
from input_pipeline.encode import CODECS, Options, encode
from input_pipeline.progress import Progress
from input_pipeline.records import DataError, Record
from input_pipeline.stills import Pictures, Stills
from input_pipeline.video import VideoError

SAMPLE = 16  # Videos that are measured.
NUM_FRAMES, STRIDE = 16, 4
_TIMES = 3  # Clips decoded of each video.


class Row(NamedTuple):
    """One way to store videos: its name, bytes of all videos, clips per second of one core."""

    name: str
    num_bytes: int
    rate: float


def rate(videos: Iterable[str | bytes | Pictures]) -> float:
    """Clips of 16 frames at stride 4, from random places, decoded per second of one core's time.

    Videos that cannot be read count for nothing.
    """
    rng = np.random.default_rng(0)
    count, seconds = 0, 0.0
    for video in videos:
        for _ in range(_TIMES + 1):
            start = time.process_time()
            try:
                decode.read_frames(
                    video, lambda n: clips.strided_indices(rng, n, NUM_FRAMES, STRIDE)
                )
            except VideoError:
                break
            if seconds or count:  # The very first one also loads the decoder.
                seconds += time.process_time() - start
            count += 1
    return (count - 1) / seconds if seconds else 0.0


def compare(records: Sequence[Record], options: Options) -> list[Row]:
    """Size and speed of a sample of a source as it is and in every encoding; writes nothing.

    Raises:
        DataError: no video of the sample can be read; shows the last one and why.
    """
    every = [options._replace(codec=codec) for codec in CODECS if codec != "copy"]
    stored: list[list[bytes | Stills]] = [[], *([] for _ in every)]
    reason, show = "", Progress()
    positions = preflight.positions(len(records), SAMPLE)
    for done, position in enumerate(positions, 1):
        record = records[position]
        try:
            source = staging.in_memory(record)
            made = [source, *(encode(source, one).data for one in every)]
            for videos, data in zip(stored, made):
                videos.append(data)
        except VideoError as error:
            reason = f"{record.id}: {error}"
        show(done, len(positions))
    if not stored[0]:
        raise DataError(f"no video of the sample can be read (last: {reason})")
    names = ["source (--codec copy)", *map(str, every)]
    sizes = [sum(len(one) for data in videos for one in staging.pieces(data)) for videos in stored]
    return [Row(*row) for row in zip(names, sizes, map(rate, stored))]


def table(rows: Sequence[Row]) -> str:
    """The rows side by side; the first is what the others are compared with."""
    first = rows[0]
    width = max(len(row.name) for row in rows)
    lines = [
        f"{'':<{width}}  {'size':>9}  {'ratio':>6}  clips/s of one core ({NUM_FRAMES} x {STRIDE})"
    ]
    for row in rows:
        ratio = row.num_bytes / max(first.num_bytes, 1)
        gain = f" ({row.rate / first.rate:.1f} x)" if first.rate and row is not first else ""
        lines.append(
            f"{row.name:<{width}}  {megabytes(row.num_bytes):>9}  {ratio:>6.2f}  "
            f"{row.rate:.1f}{gain}"
        )
    return "\n".join(lines)


def megabytes(num_bytes: int) -> str:
    """1e6 bytes as text."""
    return f"{num_bytes / 1e6:.1f} MB"
