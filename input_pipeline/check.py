"""Decodes every video of a list once, in child processes, and says what is wrong with which.

python -m input_pipeline.check train.txt --root /data/kinetics --workers 8
A decoder that hangs or crashes costs only its file. The table of all videos goes to check.csv.
"""

import argparse
import concurrent.futures
import contextlib
import csv
import functools
import hashlib
import io
import os
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import av
from av.video.stream import VideoStream
from etils import epath

from input_pipeline import decode, isolate
from input_pipeline.progress import Progress
from input_pipeline.records import DataError, Record

_CUT = 0.95  # Fewer packets than this share of what the header promises: the rest is lost.
_OUTLIER = 2.0  # times slower or faster than the median video


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
        digest: of its bytes; "" where there are none. Not in the table.
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


def look(source: Sequence[Record], min_frames: int, timeout: float, position: int) -> Row:
    """Reads and decodes all of one video; what is wrong with the file itself is its `problem`."""
    record = source[position]
    row = Row(record.id, record.label)
    data = _bytes(record)
    if data:
        row = row._replace(digest=hashlib.blake2b(data, digest_size=16).hexdigest())
    try:
        with decode.open_video(data or record.source, min_frames=1, timeout=timeout) as video:
            count, height, width, codec = video.header
            seconds = count / video.fps if video.fps else 0.0
            row = row._replace(frames=count, height=height, width=width, codec=codec)
            row = row._replace(fps=video.fps, seconds=seconds)
            lost = _lost(data) if data else ""
            # One pixel of each frame is kept: whole ones of a long video would fill the memory.
            video.read(range(count), lambda frame: frame[:1, :1].copy())
            damage = f"damaged: {video.damage} frames or packets" if video.damage else ""
    except decode.VideoError as error:
        return row._replace(problem=f"unreadable: {error}")
    short = f"too short: {count} of {min_frames} frames" if count < min_frames else ""
    return row._replace(problem=_joined(lost, damage, short))


def _bytes(record: Record) -> bytes:
    """The encoded file; empty if there is none or it cannot be read, which decoding will tell."""
    if isinstance(record.source, bytes):
        return record.source
    if isinstance(record.source, str):
        with contextlib.suppress(Exception):  # Each remote backend has its own error classes.
            return epath.Path(record.source).read_bytes()
    return b""


def _lost(data: bytes) -> str:
    """What is lost of the packets that the header promises; "" if nothing."""
    with av.open(io.BytesIO(data), mode="r", **decode.OPEN) as container:
        stream = container.streams.best("video")
        assert isinstance(stream, VideoStream)
        count = 0
        with contextlib.suppress(av.error.FFmpegError):
            for packet in container.demux(stream):
                count += packet.size > 0
        cut = f"cut short: {count} of {stream.frames} packets"
        return cut if count < _CUT * stream.frames else ""


def _joined(*problems: str) -> str:
    return "; ".join(filter(None, problems))


def look_at_all(
    source: Sequence[Record],
    min_frames: int,
    workers: int,
    timeout: float,
    progress: Callable[[int, int], None],
) -> list[Row]:
    """`look` at every record, in child processes.

    Args:
        source: the records.
        min_frames: fewer are a problem.
        workers: child processes.
        timeout: seconds one video may take.
        progress: called with (videos done, all).

    Raises:
        RuntimeError: the children cannot start, or are lost one after the other.
    """
    from input_pipeline import sources  # It imports grain, which the child processes do without.

    rows: list[Row | None] = [None] * len(source)
    task = functools.partial(look, sources.shared(source), min_frames, timeout)
    with (
        isolate.Children(task, workers, timeout) as children,
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
    ):

        def run(position: int) -> tuple[int, Row]:
            try:
                return position, children(position)
            except isolate.Crashed as crash:
                record = source[position]
                return position, Row(record.id, record.label, problem=f"unreadable: {crash}")

        jobs = [pool.submit(run, position) for position in range(len(source))]
        try:
            for done, job in enumerate(concurrent.futures.as_completed(jobs), 1):
                position, row = job.result()
                rows[position] = row
                progress(done, len(source))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            children.close()  # Or the videos in progress would be waited for.
            raise
    return [row for row in rows if row is not None]


def judge(rows: Sequence[Row], size: int) -> list[Row]:
    """Adds what only all rows together show: odd sizes and rates, and copies of the same file.

    Args:
        rows: of `look`.
        size: a video whose shorter side has fewer pixels is a problem; 0 for none.
    """
    usual = statistics.median([row.fps for row in rows if row.fps] or [0.0])
    first: dict[str, Row] = {}
    judged = []
    for row in rows:
        problems = [row.problem]
        if 0 < min(row.height, row.width) < size:
            problems.append(f"small: {row.width}x{row.height} pixels")
        if row.fps and not usual / _OUTLIER <= row.fps <= usual * _OUTLIER:
            problems.append(f"odd rate: {row.fps:g} frames/s, usual {usual:g}")
        if row.digest in first:
            other = first[row.digest]
            differs = f", whose label is {other.label}" if other.label != row.label else ""
            problems.append(f"duplicate: same bytes as {other.id}{differs}")
        elif row.digest:
            first[row.digest] = row
        judged.append(row._replace(problem=_joined(*problems)))
    return judged


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


def kinds(rows: Iterable[Row]) -> list[tuple[str, int]]:
    """`(kind of problem, videos)`, the most frequent first; unreadable ones by their reason."""
    counts: Counter[str] = Counter()
    for row in rows:
        for problem in filter(None, row.problem.split("; ")):
            kind = problem if problem.startswith("unreadable") else problem.partition(":")[0]
            counts[kind] += 1
    return counts.most_common()


def write(rows: Sequence[Row], out: str) -> None:
    """Writes the table, one line per video in the order of the list; a whole file or nothing."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in rows:
        fps, seconds = f"{row.fps:.4g}", f"{row.seconds:.2f}"
        table.writerow(row._replace(fps=fps, seconds=seconds)[: len(COLUMNS)])  # type: ignore[arg-type]
    file = epath.Path(out)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.parent / f"{file.name}.part"
    unfinished.write_text(text.getvalue())
    unfinished.replace(file)


def summary(rows: Sequence[Row], poor: Sequence[tuple[int, int]], names: Sequence[str]) -> str:
    """What the list is like and what is wrong with it, a dozen lines."""
    bad = sum(bool(row.problem) for row in rows)
    lines = [f"{len(rows)} videos: {len(rows) - bad} good, {bad} with a problem"]
    opened = [row for row in rows if row.frames]
    if opened:
        frames = [row.frames for row in opened]
        lines.append(f"  frames    {min(frames)}..{max(frames)}, median {_median(frames)}")
        rates = [row.fps for row in opened if row.fps]
        if rates:
            hours = sum(row.seconds for row in opened) / 3600
            spread = f"{min(rates):.4g}..{max(rates):.4g}, median {_median(rates)}"
            lines.append(f"  frames/s  {spread}; {hours:.2f} hours in all")
        lines.append(f"  pixels    {_common(f'{row.width}x{row.height}' for row in opened)}")
        lines.append(f"  codecs    {_common(row.codec for row in opened)}")
    lines += [f"  {count:>6}  {kind}" for kind, count in kinds(rows)]
    if poor:
        named = [f"{names[i] if i < len(names) else i} ({count})" for i, count in poor[:8]]
        more = f" and {len(poor) - 8} more" if len(poor) > 8 else ""
        lines.append(f"  classes with too few usable videos: {', '.join(named)}{more}")
    return "\n".join(lines)


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.4g}"


def _common(values: Iterable[str], most: int = 4) -> str:
    counts = Counter(values)
    shown = [f"{value} ({count})" for value, count in counts.most_common(most)]
    return ", ".join(shown) + (f", {len(counts) - most} others" if len(counts) > most else "")


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
    from input_pipeline import sources  # It imports grain, which the child processes do without.

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
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds per video")
    parser.add_argument("--min-frames", type=int, default=8, help="fewer are a problem")
    parser.add_argument("--size", type=int, default=32, help="shorter sides below, pixels, too")
    parser.add_argument("--few", type=int, default=1, help="classes with fewer videos, too")
    parser.add_argument("--out", default="check.csv", help="the table to write")
    given = parser.parse_args(argv)
    try:
        source, names = load(given)
        workers = max(min(given.workers, len(source)), 1)
        limits = (given.min_frames, workers, given.timeout)
        rows = judge(look_at_all(source, *limits, Progress()), given.size)
        write(rows, given.out)
    except (DataError, RuntimeError, ValueError, OSError) as error:
        parser.error(str(error))
    labelled = any(row.label >= 0 for row in rows)
    poor = rare(rows, names, given.few) if labelled else []
    print(summary(rows, poor, names))
    print(f"table: {given.out}")
    return 1 if poor or any(row.problem for row in rows) else 0


if __name__ == "__main__":
    from input_pipeline import check  # Child processes can load its functions, not this script's.

    sys.exit(check.main())
