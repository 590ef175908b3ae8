"""Decodes every video of a list once, in worker processes, and names every one that is broken.

python -m input_pipeline.check --config configs/my_clips.py --config.data.root=clips
python -m input_pipeline.check train.txt --root /data/kinetics --workers 8
A decoder that hangs or crashes costs only its file. The table of all videos goes to check.csv.
"""

import concurrent.futures
import csv
import functools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import tqdm

from input_pipeline import command
from input_pipeline.sources.records import Record
from input_pipeline.video import decode
from input_pipeline.workers import each

_CUT = 0.05  # A file that lacks more than this share of its header's packets was cut.


class Row(NamedTuple):
    """A row of the table; zeros for a video that cannot be opened, no problem for a good one."""

    id: str
    label: int
    frames: int = 0
    height: int = 0
    width: int = 0
    fps: float = 0.0
    codec: str = ""
    problem: str = ""


def look(record: Record, lost: str = "", *, min_frames: int = 8) -> Row:
    """Decodes all of one video, unless that is `lost` already; what is wrong is its `problem`."""
    row = Row(record.id, record.label)
    try:
        if lost:
            raise decode.VideoError(lost)
        with decode.open_video(record.source, min_frames=1) as video:
            count, height, width, codec = video.header
            row = Row(record.id, record.label, count, height, width, round(video.fps, 3), codec)
            # Whole frames of a long video would fill the memory.
            video.read(range(count), lambda frame: frame[:1, :1].copy())
    except decode.VideoError as error:
        return row._replace(problem=f"unreadable: {error}")
    problems = []
    missing = video.lost if isinstance(video, decode.Video) else 0
    if missing > _CUT * (count + missing):
        problems.append(f"cut short: {missing} packets of its header are missing")
    if video.damage:
        problems.append(f"damaged: {video.damage} frames or packets")
    if count < min_frames:
        problems.append(f"too short: {count} of {min_frames} frames")
    return row._replace(problem="; ".join(problems))


def glance(
    records: Sequence[Record],
    positions: Sequence[int],
    min_frames: int,
    threads: int = 4,
) -> list[tuple[int, str]]:
    """Opens the records at some positions: those that are bad, with one line that says why.

    Files are demuxed and not decoded; of pictures the first and the last are read.
    """

    def problem(position: int) -> str:
        try:
            with decode.open_video(records[position].source, min_frames) as video:
                if video.header.codec == "stills":
                    video.read([video.header.num_frames - 1])
        except decode.VideoError as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return [bad for bad in zip(positions, pool.map(problem, positions)) if bad[1]]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 for a good list, 1 if something is wrong."""
    parser = command.parser("check", __doc__)
    parser.add_argument("--workers", type=int, default=0, help="processes, 0 for one per core")
    parser.add_argument("--out", default="check.csv", help="the table to write")
    given, found = command.parse(parser, argv)
    print(*found.lines(), sep="\n")
    names = dict(enumerate(found.names))
    task = functools.partial(look, min_frames=found.spec.min_frames)
    problems: Counter[str] = Counter()
    with open(given.out, "w") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow((*Row._fields, "class", "split"))
        for split, records in found.splits.items():
            for row in each(task, records, given.workers, found.spec.timeout):
                table.writerow((*row, names.get(row.label, ""), split))
                if row.problem:
                    tqdm.tqdm.write(f"{row.id}: {row.problem}")
                problems[row.problem.partition(":")[0] or "good"] += 1
    print(", ".join(f"{count} {kind}" for kind, count in problems.most_common()))
    print(f"table: {given.out}")
    return 0 if problems.keys() == {"good"} else 1


if __name__ == "__main__":
    from input_pipeline import check  # Workers can import its functions, not this script's.

    command.run(check.main)
