"""Frames of a video by number: one demux, then only the packets that the wanted frames need.

The packets give the exact frame count that headers do not (XviD AVI, WebM, damaged files).
"""

import bisect
import contextlib
import io
import itertools
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from input_pipeline.sources import frames as stills
from input_pipeline.sources.frames import Pictures
from input_pipeline.video import packets as demux
from input_pipeline.video.base import Header, MapFrame, Readable, VideoError


class Video(Readable):
    """A video file."""

    def __init__(self, stream: VideoStream, found: demux.Contents):
        codec = stream.codec_context
        self.header = Header(len(found.shown), codec.height, codec.width, codec.name)
        self.lost, self.clock = found.lost, found.clock
        self._codec, self._found = codec, found
        self._whole = [(0, len(found.pts))]  # As of `_runs`.
        # The numbers of frames by pts; None: frames are counted as they come out.
        self._numbers: dict[int | None, int] | None = None
        if found.timed:
            self._numbers = {found.pts[at]: number for number, at in enumerate(found.shown)}

    def _find(self, wanted: set[int], map_frame: MapFrame) -> dict[int, np.ndarray]:
        runs, numbers = self._runs(wanted), self._numbers
        found = dict(self._decode(runs, wanted, map_frame))
        false = numbers is not self._numbers  # Times proved so on the way.
        if false:
            found = {}
        if len(found) < len(wanted) and (false or runs != self._whole):
            # Not every keyframe can be entered at.
            found.update(self._decode(self._whole, wanted - found.keys(), map_frame))
        if not found:
            raise VideoError("none of the wanted frames can be decoded")
        return found

    def stream(self, indices: Iterable[int], map_frame: MapFrame) -> Iterator[np.ndarray]:
        order, numbers = [int(i) for i in indices], self._numbers
        last, given = None, 0
        for index, image in self._decode(self._whole, set(order), map_frame):
            while given < len(order) and order[given] <= index:
                yield image if last is None or order[given] == index else last
                given += 1
            last = image
        if last is None or numbers is not self._numbers:
            raise VideoError("no frame can be decoded, or their times are false")
        yield from [last] * (len(order) - given)

    def _runs(self, wanted: set[int]) -> list[tuple[int, int]]:
        """Which packets give the wanted frames: `(first, end)`, each from a keyframe on."""
        pts: Any = self._found.pts
        keys = [at for at in self._found.keys if pts[at] is not None]
        if self._numbers is None or not keys:
            return self._whole
        runs: list[tuple[int, int]] = []
        for number in sorted(wanted):
            position = self._found.shown[number]
            # Behind a keyframe are some frames that are shown before it and need the one before.
            entry = bisect.bisect_right(keys, position) - 1
            while entry >= 0 and pts[keys[entry]] > pts[position]:
                entry -= 1
            first = keys[entry] if entry >= 0 else 0
            if runs and first <= runs[-1][1]:
                runs[-1] = (runs[-1][0], max(runs[-1][1], position + 1))
            else:
                runs.append((first, position + 1))
        return runs

    def _feed(
        self, packets: Iterator[tuple[int, Packet]], run: tuple[int, int], needed: set[int]
    ) -> Iterator[Packet | None]:
        """The packets of a run for the decoder, with None after them: give all that is held back.

        Leaves out frames that are not needed and that nothing refers to; this is exact.
        """
        codec, pts, (first, end) = self._codec, self._found.pts, run
        known = self._numbers is not None
        droppable = self._found.droppable if known else frozenset()
        skips = known and codec.name in ("h264", "hevc")  # Other decoders lose frames.
        for position, packet in itertools.takewhile(lambda found: found[0] < end, packets):
            if position < first or (position in droppable and position not in needed):
                continue
            codec.skip_frame = "NONREF" if skips and position not in needed else "DEFAULT"
            packet.pts = pts[position]
            yield packet
        codec.skip_frame = "DEFAULT"
        yield None

    def _decode(
        self, runs: list[tuple[int, int]], wanted: set[int], map_frame: MapFrame
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Wanted frames by number, as they come; none of them counts if times prove false."""
        codec, numbers = self._codec, self._numbers
        needed = {self._found.shown[i] for i in wanted}
        packets = enumerate(self._found.packets())
        count, last, left = itertools.count(), -1, len(wanted)
        for run in runs:
            codec.flush_buffers()
            for packet in self._feed(packets, run, needed):
                try:
                    frames = codec.decode(packet)
                except av.error.FFmpegError:
                    self.damage += 1
                    continue
                for frame in frames:
                    index = next(count) if numbers is None else numbers.get(frame.pts)
                    if index is None:
                        continue
                    if index < last and not self.damage:
                        # Frames leave a decoder in order, so these times are false: count instead.
                        self.damage, self._numbers = 1, None
                        return
                    last = index
                    if index in wanted:
                        self.damage += bool(frame.is_corrupt)
                        image = _rgb(frame)
                        yield index, image if map_frame is None else map_frame(image)
                        left -= 1
                if not left:
                    return


@contextlib.contextmanager
def open_video(
    source: str | bytes | Pictures | np.ndarray, min_frames: int = 2
) -> Iterator[Readable]:
    """Opens and demuxes a video; `with open_video(path) as video: video.read([0, 4, 8])`.

    Args:
        source: a path (local, or any that `etils.epath` reads, such as `gs://`) of a file or of a
            folder of pictures, encoded bytes, single pictures, or all frames, uint8 `[n, H, W, 3]`.
        min_frames: fewer frames than this in a file are refused.

    Raises:
        VideoError: also for frames of more than `MAX_PIXELS`.
    """
    if isinstance(source, np.ndarray):
        yield stills.DecodedVideo(source)
        return
    if (pictures := stills.pictures_in(source)) is not None:
        yield stills.StillVideo(pictures, min_frames)
        return
    assert isinstance(source, str | bytes)
    try:
        with (
            io.BytesIO(source) if isinstance(source, bytes) else stills.open_file(source) as file,
            demux.opened(file) as (container, stream),
        ):
            video = Video(stream, demux.contents(file, container, stream))
            count = video.header.num_frames
            if count < min_frames:
                plural = "" if count == 1 else "s"
                raise VideoError(f"{count} frame{plural}, fewer than data.min_frames={min_frames}")
            yield video
    except av.error.FFmpegError as error:
        raise VideoError(f"not a video FFmpeg can read ({error.strerror})") from error


def probe(source: str | bytes | Pictures, min_frames: int = 2) -> Header:
    with open_video(source, min_frames) as video:
        return video.header


_local = threading.local()  # One scaler per thread; PyAV's default builds one for every frame.


def _rgb(frame: VideoFrame) -> np.ndarray:
    """uint8 `[H, W, 3]`; turned counter-clockwise by the display matrix, as players do."""
    scaler = _local.__dict__.setdefault("scaler", VideoReformatter())
    scaled = scaler.reformat(frame, format="rgb24", threads=1)
    plane, width, height = scaled.planes[0], scaled.width, scaled.height
    # Rows may end in padding: a view of them costs nothing, and cv2 takes it as it is.
    image: np.ndarray = np.ndarray(
        (height, width, 3), np.uint8, memoryview(plane), strides=(plane.line_size, 3, 1)
    )
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image
