"""Decodes every video of a list once, by workers, and says what is wrong with which.

python -m input_pipeline.check train.txt --root /data/kinetics --workers 8
A decoder that hangs or crashes costs only its file. The table of all videos goes to check.csv.
"""

import argparse
import concurrent.futures
import csv
import functools
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from input_pipeline import isolate
from input_pipeline.progress import Progress
from input_pipeline.sources.records import DataError, Record
from input_pipeline.video import decode

_CUT = 0.05  # A file that lacks more than this share of its header's packets was cut.


class Row(NamedTuple):
    """What is known of one video.

    Attributes:
        id, label: of its record.
        frames: that it holds; 0 if it cannot be opened, as in the following.
        height, width: coded size, pixels.
        fps: frames per second, 0 if unknown.
        codec: name of the codec.
        seconds: length at that rate.
        problem: what is wrong, several joined by "; "; "" for a good video.
        digest: of its frames. Not in the table.
    """

    id: str
    label: int
    frames: int = 0
    height: int = 0
    width: int = 0
    fps: float = 0.0
    codec: str = ""
    seconds: float = 0.0
    problem: str = ""
    digest: str = ""


COLUMNS = Row._fields[:-1]


class Limits(NamedTuple):
    """What is a problem: fewer frames, a shorter side in pixels; and `data.timeout`."""

    min_frames: int = 8
    size: int = 32
    timeout: float = 60.0


def look(source: Sequence[Record], limits: Limits, position: int) -> Row:
    """Reads and decodes all of one video; what is wrong with the file itself is its `problem`."""
    record = source[position]
    row = Row(record.id, record.label)
    digest = hashlib.blake2b(digest_size=16)

    def seen(frame: np.ndarray) -> np.ndarray:
        digest.update(frame[::8, ::8].tobytes())
        return frame[:1, :1].copy()  # Whole frames of a long video would fill the memory.

    try:
        with decode.open_video(record.source, min_frames=1, timeout=limits.timeout) as video:
            count, height, width, codec = video.header
            row = row._replace(frames=count, height=height, width=width, codec=codec)
            row = row._replace(fps=video.fps, seconds=count / video.fps if video.fps else 0.0)
            video.read(range(count), seen)
    except decode.VideoError as error:
        return row._replace(problem=f"unreadable: {error}")
    problems = []
    lost = video.lost if isinstance(video, decode.Video) else 0
    if lost > _CUT * (count + lost):
        problems.append(f"cut short: {lost} packets of its header are missing")
    if video.damage:
        problems.append(f"damaged: {video.damage} frames or packets")
    if count < limits.min_frames:
        problems.append(f"too short: {count} of {limits.min_frames} frames")
    if min(height, width) < limits.size:
        problems.append(f"small: {width}x{height} pixels")
    return row._replace(problem="; ".join(problems), digest=digest.hexdigest())


def look_at_all(
    source: Sequence[Record], limits: Limits, workers: int, progress: Callable[[int, int], None]
) -> list[Row]:
    """`look` at every record, by workers, and at which have the frames of another.

    Raises:
        RuntimeError: workers cannot start, or are lost one after the other.
    """
    from input_pipeline.sources import (
        load as sources,  # It imports grain, which workers do without.
    )

    rows: dict[int, Row] = {}
    task = functools.partial(look, sources.shared(source), limits)
    with (
        isolate.Children(task, workers, 2 * limits.timeout + 30) as children,
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
    ):
        jobs = {pool.submit(children, position): position for position in range(len(source))}
        try:
            for done, job in enumerate(concurrent.futures.as_completed(jobs), 1):
                position = jobs[job]
                try:
                    rows[position] = job.result()
                except isolate.Crashed as crash:
                    record = source[position]
                    rows[position] = Row(record.id, record.label, problem=f"unreadable: {crash}")
                progress(done, len(source))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            children.close()  # Or the videos in progress would be waited for.
            raise
    return list(_compared([row for _, row in sorted(rows.items())]))


def _compared(rows: Sequence[Row]) -> Iterator[Row]:
    first: dict[str, Row] = {}
    for row in rows:
        other = first.setdefault(row.digest, row)
        if row.digest and other is not row:
            differs = f", whose label is {other.label}" if other.label != row.label else ""
            text = f"duplicate: same frames as {other.id}{differs}"
            row = row._replace(problem="; ".join(filter(None, (row.problem, text))))
        yield row


def rare(rows: Sequence[Row], names: Sequence[str], few: int) -> list[tuple[int, int]]:
    """`(label, usable videos)` of the classes that have fewer than `few`, ascending.

    Args:
        rows: all videos of a list.
        names: class names by label; those that no row has count too.
        few: enough videos for a class.
    """
    usable = Counter(row.label for row in rows if row.frames)
    labels = range(max([len(names) - 1, *(row.label for row in rows)]) + 1)
    return [(label, usable[label]) for label in labels if usable[label] < few]


def summary(rows: Sequence[Row], poor: Sequence[tuple[int, int]], names: Sequence[str]) -> str:
    """What the list is like and what is wrong with it, a dozen lines."""
    bad = sum(bool(row.problem) for row in rows)
    lines = [f"{len(rows)} videos: {len(rows) - bad} good, {bad} with a problem"]
    opened = [row for row in rows if row.frames]
    if opened:
        frames = [row.frames for row in opened]
        sides = [min(row.height, row.width) for row in opened]
        hours = sum(row.seconds for row in opened) / 3600
        lines += [
            f"  {min(frames)} to {max(frames)} frames, {hours:.2f} hours in all",
            f"  shorter sides of {min(sides)} to {max(sides)} pixels",
            f"  codecs {', '.join(sorted({row.codec for row in opened}))}",
        ]
    kinds = Counter(
        problem if problem.startswith("unreadable") else problem.partition(":")[0]
        for row in rows
        for problem in filter(None, row.problem.split("; "))
    )
    lines += [f"  {count:>6}  {kind}" for kind, count in kinds.most_common()]
    if poor:
        named = [f"{names[i] if i < len(names) else i} ({count})" for i, count in poor[:8]]
        more = f" and {len(poor) - 8} more" if len(poor) > 8 else ""
        lines.append(f"  classes with too few usable videos: {', '.join(named)}{more}")
    return "\n".join(lines)


def add_source(parser: argparse.ArgumentParser) -> None:
    """The options that name a list, for `load`."""
    parser.add_argument("list", help="what data.train takes: a list, class folders, ...")
    parser.add_argument("--root", default="", help="as data.root")
    parser.add_argument("--num-classes", type=int, default=0, help="as data.num_classes")
    parser.add_argument("--split", default="train", choices=["train", "val", "test"])


def load(given: argparse.Namespace) -> tuple[Sequence[Record], list[str]]:
    """The records that the options of `add_source` name, and class names as far as known.

    Raises:
        DataError: as `sources.load` and `sources.named`.
    """
    from input_pipeline.sources import (
        load as sources,  # It imports grain, which workers do without.
    )

    source = sources.load(given.list, given.root, given.num_classes, given.split)
    classes = sources.named(given.list, given.root)
    return source, list(classes[0].names) if classes else []


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0 for a good list, 1 if something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.check", description=(__doc__ or "").split("\n")[0]
    )
    add_source(parser)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument(
        "--timeout", type=float, default=60.0, help="seconds of processor time, as data.timeout"
    )
    parser.add_argument("--min-frames", type=int, default=8, help="fewer are a problem")
    parser.add_argument("--size", type=int, default=32, help="shorter sides below, pixels, too")
    parser.add_argument("--few", type=int, default=1, help="classes with fewer videos, too")
    parser.add_argument("--out", default="check.csv", help="the table to write")
    given = parser.parse_args(argv)
    try:
        source, names = load(given)
        limits = Limits(given.min_frames, given.size, given.timeout)
        workers = max(min(given.workers, len(source)), 1)
        rows = look_at_all(source, limits, workers, Progress())
        out = epath.Path(given.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            for row in rows:
                fps, seconds = f"{row.fps:.4g}", f"{row.seconds:.2f}"
                table.writerow([*row[:5], fps, row.codec, seconds, row.problem])
    except (DataError, RuntimeError, ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return 130
    labelled = any(row.label >= 0 for row in rows)
    poor = rare(rows, names, given.few) if labelled else []
    print(summary(rows, poor, names))
    print(f"table: {given.out}")
    return 1 if poor or any(row.problem for row in rows) else 0


if __name__ == "__main__":
    from input_pipeline import check  # Workers can load its functions, not this script's.

    sys.exit(check.main())
