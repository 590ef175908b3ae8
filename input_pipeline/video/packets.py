"""From a video file to its packets, and which of them gives which frame."""

import contextlib
import functools
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from input_pipeline import MAX_PIXELS
from input_pipeline.video import mpeg4
from input_pipeline.video.base import LARGE, Clock, VideoError

_MAX_PACKETS = 1 << 20
_SPARE = 1 << 24  # Bytes that packets may have beyond those of the file.
# Decoders that start exactly at a keyframe, or give no frame from there that is not exact. A
# "keyframe" of a GIF, for one, is drawn over what was there.
_RANDOM_ACCESS = frozenset(
    ["av1", "h264", "hevc", "libdav1d", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9"]
)
# FFmpeg follows what some files name (playlists, SDP): nothing but the file itself may be opened.
_OPTIONS = {"max_pixels": str(MAX_PIXELS), "protocol_whitelist": "none"}
# PyAV 19 reads broken metadata as it is; before, it has to be told.
OPEN: dict[str, Any] = (
    {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
)
Frames = Callable[[Iterable[Packet]], Iterator[tuple[Packet, int]]]  # see `mpeg4.frames`


class Contents(NamedTuple):
    """A demuxed video stream; each packet is one frame, or a hidden one."""

    pts: list[int | None]  # Of each packet, in coded order.
    shown: list[int]  # Positions of the packets that give a frame; by frame number if `timed`.
    keys: list[int]  # Positions where decoding can start.
    droppable: frozenset[int]  # Positions of frames that nothing refers to, if they are known.
    timed: bool  # A frame has the pts of its packet, and these tell the order of frames.
    clock: Clock
    lost: int  # Packets that the header promises and the file lacks.
    packets: Callable[[], Iterator[Packet]]  # All; those of a large file are demuxed once more.


@contextlib.contextmanager
def opened(file: BinaryIO) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The only door to FFmpeg's demuxers: a container, and the video stream that players show.

    Decoding is exact and in one thread; all other streams are passed over.
    """
    if not file.seek(0, io.SEEK_END):
        raise VideoError("the file is empty (0 bytes)")
    file.seek(0)
    with av.open(file, mode="r", options=_OPTIONS, **OPEN) as container:
        assert isinstance(container, InputContainer)
        stream = container.streams.best("video")
        if stream is None:
            sound = ", only audio" if container.streams.audio else ""
            raise VideoError(f"no video stream{sound}")
        assert isinstance(stream, VideoStream)
        codec = stream.codec_context
        if codec is None:
            raise VideoError("no decoder for its video stream")
        if av.stream.Disposition.attached_pic in stream.disposition:
            raise VideoError("no video stream, only audio with a cover picture")
        if container.format.name == "image2" or container.format.name.endswith("_pipe"):
            raise VideoError(f"a still image ({codec.name}), not a video")
        if not 0 < codec.width * codec.height <= MAX_PIXELS:
            raise VideoError(f"frames of no known size, or of more than {MAX_PIXELS} pixels")
        stream.thread_type = "NONE"
        codec.thread_count = 1
        codec.options = {"max_pixels": str(MAX_PIXELS)}
        for other in container.streams:
            if other is not stream:
                other.discard = av.stream.Discard.all  # Sound would be read and thrown away.
        yield container, stream


def contents(file: BinaryIO, container: InputContainer, stream: VideoStream) -> Contents:
    """Demuxes a stream up to the first error: a cut file keeps its good part."""
    codec, name, size = stream.codec_context, stream.codec_context.name, container.size
    frames: Frames = _whole
    if name == "mpeg4":
        frames = functools.partial(mpeg4.frames, header=codec.extradata or b"")
    pts: list[int | None] = []
    kinds, shown, keys = [], [], []
    kept: list[Packet] = []
    left = size + _SPARE
    for position, (packet, kind) in enumerate(frames(_demuxed(container, stream))):
        left -= packet.size
        if left < 0 or position >= _MAX_PACKETS:
            raise VideoError("its index names more packets than the file holds")
        pts.append(packet.pts)
        kinds.append(kind)
        if not packet.is_discard and (name != "vp8" or memoryview(packet)[0] & 0x10):
            shown.append(position)  # VP8's hidden reference frames are packets of their own.
        if kind == mpeg4.I_FRAME and name in _RANDOM_ACCESS:
            keys.append(position)
        if size < LARGE:
            kept.append(packet)
    times = [pts[i] for i in shown]
    ordered = sorted(p for p in times if p is not None)
    # Times that grow although B-frames are stored out of order are false. AVI has no times, and
    # those made up for XviD's packed B-frames would shuffle the frames.
    false = times == ordered if codec.has_b_frames else False
    false = false or (container.format.name == "avi" and times != ordered)
    timed = None not in times and len(set(times)) == len(times) and not false
    clock_pts = ordered if timed else []
    if name == "mpeg4":  # Numbered by its bitstream: the times, if true, are only times.
        places = mpeg4.numbers(kinds)
        shown = [i for i in shown if places[i] is not None]
        clock_pts = sorted(pts[i] or 0 for i in shown) if timed else []
        pts, timed = places, True
    if timed:
        shown.sort(key=lambda i: pts[i] or 0)
    return Contents(
        pts,
        shown,
        keys,
        frozenset(i for i, kind in enumerate(kinds) if kind == mpeg4.B_FRAME),
        timed,
        _clock(stream, clock_pts, len(shown)),
        max(stream.frames - len(pts), 0),
        functools.partial(_again, file, frames) if size >= LARGE else kept.__iter__,
    )


def _demuxed(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    with contextlib.suppress(av.error.FFmpegError):
        for packet in container.demux(stream):
            if packet.size:
                yield packet


def _whole(packets: Iterable[Packet]) -> Iterator[tuple[Packet, int]]:
    """As `mpeg4.frames`, for codecs whose packets are frames."""
    for packet in packets:
        yield packet, mpeg4.I_FRAME if packet.is_keyframe else mpeg4.P_FRAME


def _again(file: BinaryIO, frames: Frames) -> Iterator[Packet]:
    with opened(file) as (container, stream):
        for packet, _ in frames(_demuxed(container, stream)):
            yield packet


def _clock(stream: VideoStream, pts: Sequence[int | None], count: int) -> Clock:
    """From the times of all frames if they are known and grow, or else from the file's rate."""
    rate = stream.average_rate or stream.guessed_rate
    fps = float(rate) if rate and rate > 0 else 0.0
    if count and len(pts) == count and stream.time_base:
        tick = float(stream.time_base)
        times = (np.array(pts, np.float64) - float(pts[0] or 0)) * tick
        if np.all(np.diff(times) > 0):
            mean = (count - 1) / max(float(times[-1]), tick)
            if count > 1 and abs(fps - mean) > 0.05 * mean:
                fps = mean  # What the header says is only nominal.
            # Matroska rounds to 1 ms; where a tick is longer, it is that of the rate itself.
            return Clock(times, fps, tick if tick < 0.0011 else 0.0)
    return Clock(np.arange(count) / fps if fps else np.empty(0), fps)
