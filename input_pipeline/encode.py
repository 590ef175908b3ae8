"""Encodes one video anew, small and quick to decode: H.264 with short GOPs, or single JPEGs."""

import errno
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import av
import cv2
import numpy as np

from input_pipeline import decode
from input_pipeline.stills import Pictures, Stills
from input_pipeline.video import Readable, VideoError

CODECS = ("copy", "h264", "jpeg")
_MEMORY = 256 << 20  # Bytes of decoded frames held at a time.
_FEWEST = 32  # Frames decoded at a time, however large; each time starts again at a keyframe.


class Options(NamedTuple):
    """How videos are stored.

    Attributes:
        codec: "copy" (as they are), "h264" or "jpeg".
        short_side: pixels of the shorter side at most; nothing is enlarged. 0 leaves it.
        crf: quality of H.264, lower is better.
        gop: frames from one keyframe of H.264 to the next.
        quality: of JPEG, 1 to 100.
    """

    codec: str = "h264"
    short_side: int = 256
    crf: int = 20
    gop: int = 16
    quality: int = 90

    def __str__(self) -> str:
        """As on the command line, without what the codec does not use."""
        used = {"copy": (), "h264": ("short_side", "crf", "gop"), "jpeg": ("short_side", "quality")}
        given = [f"--{name.replace('_', '-')} {getattr(self, name)}" for name in used[self.codec]]
        return " ".join([f"--codec {self.codec}", *given])


class Encoded(NamedTuple):
    """A video as it is stored.

    Attributes:
        data: the bytes of a file, or single pictures.
        num_frames: exact; frame i is frame i of the source.
        damage: frames that could not be decoded as they were meant; see `decode.Video`.
        timed: `data` tells when its frames are shown, as the source does.
    """

    data: bytes | Stills
    num_frames: int
    damage: int
    timed: bool


def encode(source: str | bytes | Pictures, options: Options) -> Encoded:
    """Decodes a whole video, turned as it says, and encodes it; "copy" is not for this.

    Raises:
        VideoError: as `decode.open_video`, or nothing of it can be decoded.
    """
    with decode.open_video(source) as video:
        count = video.header.num_frames
        times = video.clock.times if isinstance(video, decode.Video) else np.empty(0)
        frames = _frames(video, options.short_side)
        data: bytes | Stills
        if options.codec == "jpeg":
            data = Stills(tuple(_jpeg(frame, options.quality) for frame in frames))
            times = np.empty(0)
        else:
            try:
                data = _h264(frames, times, video.fps, options)
            except av.error.FFmpegError as error:
                if error.errno == errno.ENOSPC:
                    raise OSError(errno.ENOSPC, "no space left for temporary files") from error
                raise VideoError(f"cannot be encoded ({error.strerror})") from error
        found = decode.probe(data, 1).num_frames
        if found != count:
            raise VideoError(f"encoded to {found} frames instead of {count}")
        return Encoded(data, count, video.damage, len(times) > 0)


def _frames(video: Readable, short_side: int) -> Iterator[np.ndarray]:
    """All frames, scaled, with even sides, and no more than `_MEMORY` of them at a time."""
    count, height, width, _ = video.header
    h, w = _scaled(height, width, short_side)
    step = max(_MEMORY // (3 * h * w), _FEWEST)
    shape: tuple[int, ...] = ()
    frame: np.ndarray = np.empty(0, np.uint8)
    for first in range(0, count, step):
        part = range(first, min(first + step, count))
        try:
            frames = video.read(part, lambda image: _shrink(image, short_side))
        except VideoError:
            if not first:
                raise
            # As a read over all would do: what cannot be decoded is the nearest frame that could.
            frames = [frame] * len(part)
            video.damage += len(part)
        for frame in frames:
            shape = shape or frame.shape
            if frame.shape != shape:
                frame = cv2.resize(frame, shape[1::-1], interpolation=cv2.INTER_LINEAR)
            yield frame


def _scaled(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Even sides, the shorter one `short_side` at most."""
    scale = min(short_side / min(height, width), 1.0) if short_side else 1.0
    h, w = (max(round(side * scale), 2) for side in (height, width))
    return h - h % 2, w - w % 2


def _shrink(frame: np.ndarray, short_side: int) -> np.ndarray:
    height, width = frame.shape[:2]
    h, w = _scaled(height, width, short_side)
    if 0 <= height - h <= 1 and 0 <= width - w <= 1:
        return frame[:h, :w]  # An odd row or column less costs no sharpness.
    return cv2.resize(frame, (w, h), interpolation=cv2.INTER_AREA)


def _jpeg(frame: np.ndarray, quality: int) -> bytes:
    image = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()


def _h264(frames: Iterator[np.ndarray], times: np.ndarray, fps: float, options: Options) -> bytes:
    """An mp4 file without audio; `times` in seconds, or 25 frames per second if nobody knows."""
    rate = Fraction(fps or 25).limit_denominator(1001)
    # Times in whole milliseconds keep that unit: a reader then knows how far they are rounded.
    whole = len(times) > 0 and bool(np.all(np.abs(times * 1e3 - np.round(times * 1e3)) < 1e-6))
    ticks = 1000 if whole else 90000
    settings = {"preset": "veryfast", "tune": "fastdecode", "crf": str(options.crf)}
    settings |= {"g": str(options.gop), "sc_threshold": "0", "threads": "1"}
    muxer = {"movflags": "faststart", "video_track_timescale": str(ticks)}
    # A file with a name: FFmpeg opens it again to put the index in front.
    with (
        tempfile.NamedTemporaryFile(suffix=".mp4") as file,
        av.open(file.name, "w", options=muxer) as container,
    ):
        stream = container.add_stream("libx264", rate=rate, options=settings)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, ticks)
        for number, image in enumerate(frames):
            if not number:
                stream.height, stream.width = image.shape[:2]
            planes: np.ndarray = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2YUV_I420)
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            seconds = times[number] if len(times) else number / rate
            frame.pts, frame.time_base = round(seconds * ticks), Fraction(1, ticks)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        container.close()
        return file.read()
