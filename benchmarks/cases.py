"""The videos that benchmarks.input reads: real files, and those it writes."""

import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.video.stream import VideoStream

from input_pipeline import encode
from input_pipeline.sources.records import DataError, Record
from input_pipeline.video import decode

_COPIES = 8192  # records of one file: grain's shuffle of a few takes ten times as long for each


class Case(NamedTuple):
    """What is read: a name for the table, its records, frames between samples."""

    name: str
    records: Sequence[Record]
    stride: int


def write_video(
    path: pathlib.Path,
    frames: Iterable[np.ndarray],
    rate: int = 25,
    codec: str = "libx264",
    bit_rate: int = 0,
    options: dict[str, str] | None = None,
) -> None:
    """Encodes uint8 `[H, W, 3]` frames of one size; a side of odd length loses a pixel."""
    first, *rest = frames
    height, width = first.shape[0] // 2 * 2, first.shape[1] // 2 * 2
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        assert isinstance(stream, VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        if bit_rate:
            stream.bit_rate = bit_rate
        for frame in (first, *rest):
            even = np.ascontiguousarray(frame[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode(None))


def write_videos(folder: pathlib.Path, count: int, num_frames: int = 150) -> list[Record]:
    """Writes `count` moving-noise H.264 files of 320 x 240, for a run without data."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(count):
        path = folder / f"{number}.mp4"
        canvas = rng.integers(0, 256, (60, 80 + num_frames, 3), np.uint8).repeat(4, 0)
        write_video(path, (canvas[:, t : t + 80].repeat(4, 1) for t in range(num_frames)))
        records.append(Record(path.name, str(path), number))
    return records


def one_file(path: pathlib.Path, name: str = "", stride: int = 4) -> Case:
    """A case of one file: many records of it, so that batches are full."""
    copies = [Record(f"{path.name}#{number}", str(path), 0) for number in range(_COPIES)]
    return Case(name or path.name, copies, stride)


def usual_cases(clips: pathlib.Path, folder: pathlib.Path) -> list[Case]:
    """A real UCF101 file, two of Kinetics and one made like those of Something-Something V2.

    Args:
        clips: where the real files are.
        folder: where the other is written: 4 s of VP9, 426 x 240, 12 frames per second, one
            keyframe; it is read at stride 2.

    Raises:
        DataError: a file is not there.
    """
    ucf = clips / "mmaction2_test__ucf101_v_ApplyEyeMakeup_g01_c01.avi"
    k400, k400_320 = clips / "mmaction2_test.mp4", clips / "uniformer_k400_Tw2yXa6CzWE.mp4"
    for path in (ucf, k400, k400_320):
        if not path.is_file():
            raise DataError(f"--clips {clips} has no {path.name}; give files with --videos instead")
    frames = decode.read_frames(str(k400_320), np.arange(48) * 5 // 2)
    small = [cv2.resize(frame, (426, 240), interpolation=cv2.INTER_AREA) for frame in frames]
    ssv2 = folder / "ssv2.webm"
    write_video(ssv2, small, 12, "libvpx-vp9", 200_000, {"g": "128"})
    return [
        one_file(ucf, "ucf.avi"),
        one_file(k400, "k400.mp4"),
        one_file(k400_320, "k400_320.mp4"),
        one_file(ssv2, "ssv2.webm", 2),
    ]


def reencoded(case: Case, folder: pathlib.Path) -> Case:
    """The same case with its files encoded for quick decoding (`input_pipeline.encode`).

    Raises:
        VideoError: a file cannot be decoded.
    """
    paths: dict[str, str] = {}
    for path in sorted({record.path for record in case.records}):
        made = encode.encode(path, encode.Options(short_side=0)).data
        assert isinstance(made, bytes)
        target = folder / f"{case.name}-{len(paths)}.mp4"
        target.write_bytes(made)
        paths[path] = str(target)
    records = [record._replace(path=paths[record.path]) for record in case.records]
    return Case(f"{case.name}, re-encoded", records, case.stride)
