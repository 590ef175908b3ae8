"""From the bytes of a video file to its packets, and which of them gives which frame."""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from input_pipeline import mpeg4
from input_pipeline.video import Clock, Deadline, VideoError

MAX_PIXELS = 8192 * 4352  # Of one frame: 8K; a damaged header may claim 30000 x 30000.
_MAX_PACKETS = 1 << 20
_TINY = 32  # Bytes; a placeholder for a frame has fewer.
_SPARE = 1 << 24  # Bytes that packets may have beyond those of the file.
# Decoders that start exactly at a keyframe, or give no frame from there that is not exact. A
# "keyframe" of a GIF, for one, is drawn over what was there.
_RANDOM_ACCESS = frozenset(
    ["av1", "h264", "hevc", "libdav1d", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9"]
)


class Contents(NamedTuple):
    """A demuxed video stream.

    Attributes:
        packets: in coded order; bytes become a packet by `mpeg4.packet`.
        pts: of each packet.
        shown: positions in `packets` of those that give a frame; by frame number if `timed`.
        keys: positions in `packets` where decoding can start.
        droppable: positions in `packets` of frames that nothing refers to, if they are known.
        timed: a frame has the pts of its packet, and these tell the order of frames.
        clock: when frames are shown.
    """

    packets: Sequence[Packet | bytes]
    pts: list[int | None]
    shown: list[int]
    keys: list[int]
    droppable: frozenset[int]
    timed: bool
    clock: Clock


def video_stream(container: InputContainer) -> VideoStream:
    """The video stream that players show, set up for exact decoding in one thread.

    Raises:
        VideoError: there is none, it is a picture, or its frames are too large or of no size.
    """
    stream = container.streams.best("video")
    if stream is None:
        raise VideoError("no video stream" + (", only audio" if container.streams.audio else ""))
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
    return stream


def contents(
    container: InputContainer, stream: VideoStream, num_bytes: int, deadline: Deadline
) -> Contents:
    """Demuxes a stream up to the first error: a cut file keeps its good part.

    Args:
        container: just opened.
        stream: of the container.
        num_bytes: of the file.
        deadline: for the demux.

    Raises:
        VideoError: the deadline is over, or the packets are more than the file can hold.
    """
    packets: list[Packet] = []
    left = num_bytes + _SPARE
    with contextlib.suppress(av.error.FFmpegError):
        for number, packet in enumerate(container.demux(stream)):
            size = packet.size
            if size:
                packets.append(packet)
                left -= size
                if left < 0 or len(packets) > _MAX_PACKETS:
                    raise VideoError("its index names more packets than the file holds")
            if not number % 64:
                deadline.check()
    return _ordered(container, stream, packets)


def _ordered(container: InputContainer, stream: VideoStream, packets: list[Packet]) -> Contents:
    codec = stream.codec_context
    name = codec.name
    pts = [packet.pts for packet in packets]
    shown = [i for i, p in enumerate(packets) if not p.is_discard and _is_shown(p, name)]
    times = [pts[i] for i in shown]
    ordered = sorted(p for p in times if p is not None)
    # Times that grow although B-frames are stored out of order are false. AVI has no times, and
    # those made up for XviD's packed B-frames would shuffle the frames.
    false = times == ordered if codec.has_b_frames else False
    false = false or (container.format.name == "avi" and times != ordered)
    timed = None not in times and len(set(times)) == len(times) and not false
    # Without B-frames, packed ones and placeholders the look into the bitstream is spared.
    if name == "mpeg4" and (codec.has_b_frames or not timed or _smallest(packets) < _TINY):
        cut = mpeg4.cut(packets, codec.extradata or b"")
        if cut is not None:
            return _cut(cut, packets, pts if timed else [], stream)
    if timed:
        shown.sort(key=lambda i: pts[i] or 0)
    keys = [i for i, p in enumerate(packets) if p.is_keyframe] if name in _RANDOM_ACCESS else []
    clock = _clock(stream, ordered if timed else [], len(shown))
    return Contents(packets, pts, shown, keys, frozenset(), timed, clock)


def _smallest(packets: list[Packet]) -> int:
    return min((packet.size for packet in packets), default=0)


def _cut(
    cut: mpeg4.Cut, packets: list[Packet], pts: list[int | None], stream: VideoStream
) -> Contents:
    """MPEG-4 numbered by its bitstream: the `pts` of its packets, if true, are only times."""
    shown = [
        i
        for i, (number, origin) in enumerate(zip(cut.pts, cut.origin))
        if number is not None and not packets[origin].is_discard
    ]
    shown.sort(key=lambda i: cut.pts[i] or 0)
    clock = _clock(stream, [pts[cut.origin[i]] for i in shown] if pts else [], len(shown))
    return Contents(cut.packets, cut.pts, shown, cut.intra(), cut.droppable(), True, clock)


def _is_shown(packet: Packet, codec: str) -> bool:
    """False for VP8's hidden reference frames, which are packets of their own."""
    return codec != "vp8" or bool(memoryview(packet)[0] & 0x10)


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
