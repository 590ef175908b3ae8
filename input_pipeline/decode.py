"""Frames of a video by number: one demux, then only the packets that the wanted frames need.

The packet list gives the exact frame count that headers do not (XviD AVI, WebM, damaged files).
"""

import contextlib
import io
import itertools
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from etils import epath

from input_pipeline.stills import Stills, StillVideo
from input_pipeline.video import Header, Readable, VideoError

cv2.setNumThreads(1)  # Clips are decoded in parallel; threads inside one frame only cost.


# PyAV 19 reads broken metadata as it is; before, it has to be told.
OPEN: dict[str, Any] = (
    {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
)


class Video:
    """An open video; use it inside `with open_video(...)` and in one thread.

    Attributes:
        header: frame count, coded size, codec.
        damage: packets refused, frames filled in and frames marked corrupt by reads so far; 0 means
            every frame read is exactly that of a full decode.
    """

    def __init__(self, container: InputContainer, stream: VideoStream, packets: list[Packet]):
        codec = stream.codec_context
        shown = [p for p in packets if not p.is_discard and _is_shown(p, codec.name)]
        self.header = Header(len(shown), codec.height, codec.width, codec.name)
        self.damage = 0
        self._codec = codec
        self._packets = packets
        pts = [p.pts for p in shown]
        ordered = sorted(p for p in pts if p is not None)
        # Times that grow although B-frames are stored out of order are false. AVI has no times, and
        # those made up for XviD's packed B-frames would shuffle the frames.
        false = pts == ordered if codec.has_b_frames else False
        false = false or (container.format.name == "avi" and pts != ordered)
        known = None not in pts and len(set(pts)) == len(pts) and not false
        self._pts = ordered if known else None
        # A frame that nothing refers to may be left out exactly; other decoders lose frames.
        self._may_skip = codec.name in ("h264", "hevc")

    def read(
        self,
        indices: Iterable[int],
        map_frame: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """Frames in the order asked, decoded up to the last one needed and no further.

        Args:
            indices: frame numbers in `[0, num_frames)`; repeats are allowed.
            map_frame: applied once to each different frame, for example to shrink it.

        Returns:
            uint8 `[H, W, 3]` RGB arrays, rotated as the file says, all of the first one's size.
            Repeated indices give the same array: do not write into it.

        Raises:
            VideoError: none of the wanted frames could be decoded.
            IndexError: an index outside `[0, num_frames)`.

        Note:
            A wanted frame that could not be decoded is the nearest wanted one that could; `damage`
            then counts it.
        """
        order = [int(i) for i in indices]
        wanted = set(order)
        if not wanted or min(wanted) < 0 or max(wanted) >= self.header.num_frames:
            raise IndexError(f"frames {sorted(wanted)} of a video of {self.header.num_frames}")
        entry, timed = self._entry(min(wanted)), self._pts is not None
        found = self._decode(entry, wanted, map_frame)
        if len(found) < len(wanted) and (entry > 0 or timed != (self._pts is not None)):
            # Not every keyframe can be entered at, and times may prove false on the way.
            found.update(self._decode(0, wanted - found.keys(), map_frame))
        if not found:
            raise VideoError("none of the wanted frames can be decoded")
        self.damage += len(wanted) - len(found)
        have = np.array(sorted(found))
        for index in wanted - found.keys():
            found[index] = found[int(have[np.argmin(np.abs(have - index))])]
        height, width = found[order[0]].shape[:2]
        for index, frame in found.items():
            if frame.shape[:2] != (height, width):
                found[index] = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
        return [found[index] for index in order]

    def at_rate(self, fps: float) -> np.ndarray:
        """Numbers of the frames shown at times 0, 1 / fps, 2 / fps ... from the first one's.

        Args:
            fps: frames per second wanted; frames are repeated or left out to get it.

        Returns:
            int64 `[m]`, ascending, of all that fit into the video.

        Raises:
            VideoError: the file tells neither times nor a rate.
        """
        raise VideoError("no times")

    def _entry(self, first: int) -> int:
        """Position of the packet to start at so that frame `first` comes out."""
        if self._pts is None:
            return 0
        keyframes = [
            position
            for position, packet in enumerate(self._packets)
            if packet.is_keyframe and packet.pts is not None and packet.pts <= self._pts[first]
        ]
        return keyframes[-1] if keyframes else 0

    def _decode(
        self,
        first: int,
        wanted: set[int],
        map_frame: Callable[[np.ndarray], np.ndarray] | None,
    ) -> dict[int, np.ndarray]:
        number: dict[int | None, int] | None = None
        if self._pts is not None:
            number = {pts: i for i, pts in enumerate(self._pts)}
        wanted_pts = set() if self._pts is None else {self._pts[i] for i in wanted}
        found: dict[int, np.ndarray] = {}
        count, last = itertools.count(), -1
        self._codec.flush_buffers()
        self._codec.skip_frame = "DEFAULT"
        for packet in itertools.chain(self._packets[first:], [None]):
            if number is not None and self._may_skip:
                needed = packet is None or packet.pts in wanted_pts
                self._codec.skip_frame = "DEFAULT" if needed else "NONREF"
            try:
                frames = self._codec.decode(packet)
            except av.error.FFmpegError:
                self.damage += 1
                continue
            for frame in frames:
                index = next(count) if number is None else number.get(frame.pts, last)
                if index < last and not self.damage:
                    # Frames leave a decoder in order, so these times are false: count instead.
                    self.damage, self._pts = 1, None
                    return {}
                last = index
                if index in wanted:
                    self.damage += bool(frame.is_corrupt)
                    image = _rgb(frame)
                    found[index] = image if map_frame is None else map_frame(image)
            if len(found) == len(wanted):
                break
        return found


@contextlib.contextmanager
def open_video(source: str | bytes | Stills, min_frames: int = 2) -> Iterator[Readable]:
    """Opens and demuxes a video; `with open_video(path) as video: video.read([0, 4, 8])`.

    Args:
        source: a path (local, or any that `etils.epath` reads, such as `gs://`), encoded bytes, or
            single pictures.
        min_frames: fewer frames than this are refused.

    Raises:
        VideoError: the source cannot be read or opened, holds no moving picture (audio, a cover
            picture, a still) or fewer than `min_frames` frames (the message shows both numbers).
    """
    if isinstance(source, Stills):
        yield StillVideo(source, min_frames)
        return
    data = _read_bytes(source) if isinstance(source, str) else source
    if not data:
        raise VideoError("the file is empty (0 bytes)")
    try:
        with av.open(io.BytesIO(data), mode="r", **OPEN) as container:
            stream = _video_stream(container)
            video = Video(container, stream, _demux(container, stream))
            count = video.header.num_frames
            if count < min_frames:
                plural = "" if count == 1 else "s"
                raise VideoError(f"{count} frame{plural}, fewer than data.min_frames={min_frames}")
            yield video
    except av.error.FFmpegError as error:
        raise VideoError(f"not a video FFmpeg can read ({error.strerror})") from error


def read_frames(
    source: str | bytes | Stills,
    indices_of: Callable[[int], np.ndarray] | np.ndarray,
    min_frames: int = 2,
) -> list[np.ndarray]:
    """The frames `indices_of(num_frames)` (or the given ones): `open_video` and `read` in one call.

    Raises:
        VideoError: as `open_video` and `Video.read`.
    """
    with open_video(source, min_frames) as video:
        indices = indices_of(video.header.num_frames) if callable(indices_of) else indices_of
        return video.read(indices)


def probe(source: str | bytes | Stills, min_frames: int = 2) -> Header:
    """Opens and demuxes a video without decoding it.

    Raises:
        VideoError: as `open_video`.
    """
    with open_video(source, min_frames) as video:
        return video.header


class FrameCache:
    """Whole decoded videos by path, first come first kept, up to `size` bytes; thread safe.

    Only videos that decode without damage are kept: their frames do not depend on where decoding
    started, so a kept video gives the bytes that a fresh read gives.
    """

    def __init__(self, size: int) -> None:
        self._size, self._left = size, size
        self._kept: dict[str, list[np.ndarray]] = {}
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return FrameCache, (self._size,)  # A worker process starts with an empty one.

    def frames(self, path: str, min_frames: int) -> list[np.ndarray] | None:
        """All frames of a video if they are kept or can be from now on; None: read it yourself."""
        with self._lock:
            if path in self._seen:
                return self._kept.get(path)
            self._seen.add(path)
        with contextlib.suppress(VideoError), open_video(path, min_frames) as video:
            n, height, width, _ = video.header
            size = n * height * width * 3
            with self._lock:
                if size > self._left:
                    return None
                self._left -= size
            try:
                frames = video.read(range(n))
                if not video.damage:
                    with self._lock:
                        self._kept[path] = frames
                    return frames
            except VideoError:
                pass  # Met again, and reported, by the caller's own read.
            with self._lock:
                self._left += size
        return None  # An error is met, and reported, again by the caller's own read.


def _read_bytes(path: str) -> bytes:
    if "://" in path:
        try:
            return epath.Path(path).read_bytes()
        except Exception as error:  # Each remote backend has its own error classes.
            name, text = type(error).__name__, " ".join(str(error).split())[:100]
            raise VideoError(f"cannot be read ({name}: {text})") from error
    try:
        return pathlib.Path(path).read_bytes()
    except FileNotFoundError as error:
        raise VideoError("no such file") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise VideoError(f"cannot be read ({reason})") from error


def _video_stream(container: InputContainer) -> VideoStream:
    stream = container.streams.best("video")
    if stream is None:
        raise VideoError("no video stream" + (", only audio" if container.streams.audio else ""))
    assert isinstance(stream, VideoStream)
    if av.stream.Disposition.attached_pic in stream.disposition:
        raise VideoError("no video stream, only audio with a cover picture")
    if container.format.name == "image2" or container.format.name.endswith("_pipe"):
        raise VideoError(f"a still image ({stream.codec_context.name}), not a video")
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    return stream


def _demux(container: InputContainer, stream: VideoStream) -> list[Packet]:
    """All packets of a stream, up to the first error: a cut file keeps its good part."""
    packets: list[Packet] = []
    with contextlib.suppress(av.error.FFmpegError):
        packets.extend(packet for packet in container.demux(stream) if packet.size)
    return packets


def _is_shown(packet: Packet, codec: str) -> bool:
    """False for VP8's hidden reference frames, which are packets of their own."""
    return codec != "vp8" or bool(bytes(packet)[0] & 0x10)


class _Local(threading.local):
    """One scaler per thread: PyAV's default builds a new one, with threads, for every frame."""

    def __init__(self) -> None:
        self.reformatter = VideoReformatter()


_LOCAL = _Local()


def _rgb(frame: VideoFrame) -> np.ndarray:
    """uint8 `[H, W, 3]`; turned counter-clockwise by the display matrix, as players do."""
    image = _LOCAL.reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image
