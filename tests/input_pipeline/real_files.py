"""Every file of a folder read frame by number and compared with a plain full decode, as a table.

python tests/input_pipeline/real_files.py FOLDER [--out docs/clips.md]
"""

import argparse
import contextlib
import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import av
import numpy as np

from input_pipeline.video import decode
from input_pipeline.video import packets as demux

STRIDES = (1, 2, 4, 7, 16)
_MARK = "<!-- table by real_files.py -->"


class Row(NamedTuple):
    """One file.

    Attributes:
        name: of the file.
        kind: container, codec, pixel format, size and rate.
        num_frames: 0 if it is refused.
        odd: what a reader has to know about it.
        result: "exact ...", "damaged ...", or the reason why it is refused.
    """

    name: str
    kind: str
    num_frames: int
    odd: str
    result: str


def clips_of(n: int, strides: Sequence[int] = STRIDES) -> list[np.ndarray]:
    """Frame numbers of clips of up to 16 frames at three offsets for each stride."""
    offsets = [(s, o) for s in strides for o in (0, n // 3, max(n - 1 - 15 * s, n // 2))]
    found = [np.arange(offset, n, stride)[:16] for stride, offset in offsets]
    return [*found, np.array([n - 1]), np.array([n // 2, n // 5, n // 2])]


def verify(path: pathlib.Path, strides: Sequence[int] = STRIDES) -> Row:
    """Reads `clips_of` from a file, at once and each alone, and compares with a full decode.

    Args:
        path: of any file.
        strides: between the frames of clips; empty reads only the last clips of `clips_of`.

    Raises:
        AssertionError: a frame differs, or the count, in a file that is not damaged.
    """
    try:
        with decode.open_video(str(path)) as video:
            n = video.header.num_frames
            clips = clips_of(n, strides)
            wanted = np.unique(np.concatenate(clips))
            reads = [(wanted, video.read(wanted))]
            if not video.damage:
                reads += [(clip, video.read(clip)) for clip in clips]
                reads += [(c, decode.read_frames(str(path), c)) for c in clips[:-2:4]]
            damage = video.damage
    except decode.VideoError as error:
        return Row(path.name, "", 0, "", str(error))
    kind, odd = describe(path)
    if damage:
        return Row(path.name, kind, n, odd, "damaged, and counted as such")
    full, count = full_decode(path, set(wanted.tolist()))
    differ = {int(i) for c, got in reads for i, f in zip(c, got) if not same(f, full.get(int(i)))}
    assert count == n, f"{path.name}: {n} frames, a full decode has {count}"
    assert not differ, f"{path.name}: frames {sorted(differ)} differ"
    return Row(path.name, kind, n, odd, f"exact ({len(wanted)} frames in {len(reads)} reads)")


def same(frame: np.ndarray, other: np.ndarray | None) -> bool:
    """Whether two pictures are equal in every pixel."""
    return other is not None and np.array_equal(frame, other)


def full_decode(path: pathlib.Path, wanted: set[int]) -> tuple[dict[int, np.ndarray], int]:
    """The wanted frames and the number of all, by PyAV's plain loop from the first packet on."""
    frames: dict[int, np.ndarray] = {}
    count = 0
    with av.open(str(path), **demux.OPEN) as container:
        stream = container.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        packets: list[av.Packet] = []
        with contextlib.suppress(av.error.FFmpegError):
            packets.extend(container.demux(stream))
        for packet in packets:
            try:
                found = stream.codec_context.decode(packet)
            except av.error.FFmpegError:
                continue
            for frame in found:
                if count in wanted:
                    image = frame.to_ndarray(format="rgb24")
                    frames[count] = np.rot90(image, round(frame.rotation / 90))
                count += 1
    return frames, count


def describe(path: pathlib.Path) -> tuple[str, str]:
    """What a file is, and what is odd about it, from its own headers and packets."""
    with av.open(str(path), **demux.OPEN) as container:
        stream = container.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        codec, odd = stream.codec_context, []
        packets: list[av.Packet] = []
        with contextlib.suppress(av.error.FFmpegError):
            packets.extend(packet for packet in container.demux(stream) if packet.size)
        shown = [packet.pts for packet in packets if not packet.is_discard]
        pts = [value for value in shown if value is not None]
        with contextlib.suppress(av.error.FFmpegError):
            frame = next((f for p in packets for f in codec.decode(p)), None)
            if frame is not None and frame.rotation:
                odd.append(f"turned by {frame.rotation} degrees")
        if len(container.streams.video) > 1:
            odd.append(f"{len(container.streams.video)} video streams")
        rate = float(stream.average_rate or 0)
        keys = sum(packet.is_keyframe for packet in packets)
        if keys == 1 and len(packets) > 100:
            odd.append("one keyframe")
        if stream.frames and stream.frames != len(packets):
            odd.append(f"header says {stream.frames} frames")
        if len(shown) < len(packets):
            odd.append("edit list")
        if len(pts) < len(shown):
            odd.append("no times")
        elif len(pts) > 1:
            steps = np.diff(np.sort(np.array(pts)))
            if steps.max() > 1.5 * np.median(steps):
                odd.append("uneven times")
            if min(pts) * float(stream.time_base or 0) > 1:
                odd.append(f"starts at {min(pts) * float(stream.time_base or 0):.2f} s")
        if container.format.name == "avi" and pts != sorted(pts):
            odd.append("packed B-frames, false times")
        if (stream.sample_aspect_ratio or 1) != 1:
            odd.append(f"pixels {stream.sample_aspect_ratio}")
        name = container.format.name.split(",")[0]
        if name != path.suffix[1:] and path.suffix[1:] not in container.format.extensions:
            odd.append(f"is {name}")
        kind = f"{name} {codec.name} {codec.pix_fmt} {codec.width}x{codec.height} {rate:.4g}/s"
    return kind, ", ".join(odd)


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| file | kind | frames | odd | read |", "|---|---|---|---|---|"]
    for row in rows:
        count = row.num_frames or "-"
        result = row.result if row.num_frames else f"refused: {row.result}"
        lines.append(f"| {row.name} | {row.kind or '-'} | {count} | {row.odd} | {result} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=pathlib.Path, help="of video files")
    parser.add_argument(
        "--out", type=pathlib.Path, help=f"file whose part after {_MARK} it becomes"
    )
    flags = parser.parse_args()
    rows = []
    for path in sorted(p for p in flags.folder.iterdir() if p.suffix != ".md"):
        rows.append(verify(path))
        print(f"{path.name}: {rows[-1].result}", file=sys.stderr)
    if flags.out:
        head = flags.out.read_text().partition(_MARK)[0] if flags.out.exists() else ""
        flags.out.write_text(f"{head}{_MARK}\n\n{table(rows)}\n")
    else:
        print(table(rows))


if __name__ == "__main__":
    main()
