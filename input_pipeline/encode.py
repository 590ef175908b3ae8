"""Re-encodes one video, small and quick to decode: H.264 with short GOPs."""

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import ArrayLike

from input_pipeline.sources.frames import Pictures
from input_pipeline.video import decode
from input_pipeline.video.base import VideoError

# For files that are read far more often than written. The bytes depend on the number of threads;
# with its macroblock tree x264 differs between CPUs and, under AVX-512, from one call to the next.
_X264 = {"preset": "veryfast", "tune": "fastdecode", "threads": "1", "mbtree": "0"}
_MEMORY = 256 << 20  # Bytes of decoded frames held at a time.
_FEWEST = 32  # Frames decoded at a time, however large; each time starts again at a keyframe.


class Options(NamedTuple):
    """How videos are stored."""

    codec: str = "h264"  # Or "copy", as they are.
    short_side: int = 256  # Pixels of the shorter side at most, nothing is enlarged; 0 leaves it.
    crf: int = 20  # Quality of H.264, lower is better.
    gop: int = 16  # Frames from one keyframe of H.264 to the next.


def encode(source: str | bytes | Pictures, options: Options) -> bytes:
    """Decodes a whole video, rotated as it says -> an mp4 file in H.264, frame by frame the same.

    VideoError if it cannot be opened, decoded or encoded.
    """
    with decode.open_video(source) as video:
        times = video.clock.times if isinstance(video, decode.Video) else ()
        try:
            data = h264(_frames(video, options.short_side), video.fps, options, times)
        except av.error.FFmpegError as error:
            raise VideoError(f"cannot be encoded ({error.strerror})") from error
        if (found := decode.probe(data, 1).num_frames) != (count := video.header.num_frames):
            raise VideoError(f"encoded to {found} frames instead of {count}")
        return data


def _frames(video: decode.Readable, short_side: int) -> Iterator[np.ndarray]:
    """All frames, scaled, with even sides, and no more than `_MEMORY` of them at a time."""
    count, height, width, _ = video.header
    scale = min(short_side / min(height, width), 1.0) if short_side else 1.0
    step = max(int(_MEMORY / (3 * height * width * scale**2)), _FEWEST)

    def shrink(frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        h, w = (max(round(side * scale), 2) // 2 * 2 for side in (height, width))
        if 0 <= height - h <= 1 and 0 <= width - w <= 1:
            return frame[:h, :w]  # An odd row or column less costs no sharpness.
        return cv2.resize(frame, (w, h), interpolation=cv2.INTER_AREA)

    for first in range(0, count, step):
        yield from video.read(range(first, min(first + step, count)), shrink)


def h264(
    frames: Iterable[np.ndarray], fps: float, options: Options, times: ArrayLike = ()
) -> bytes:
    """Pictures uint8 `[H, W, 3]` with even sides -> an mp4 file without audio.

    Each becomes as large as the first. They are shown at `times`, seconds; where none are known at
    `fps`, of which 0, unknown, stands for 25.
    """
    rate = Fraction(fps or 25).limit_denominator(1001)
    when = np.asarray(times, np.float64)
    # Times in whole milliseconds keep that unit: a reader then knows how far they are rounded.
    whole = len(when) > 0 and bool(np.all(np.abs(when * 1e3 - np.round(when * 1e3)) < 1e-6))
    ticks = 1000 if whole else 90000
    settings = _X264 | {"crf": str(options.crf), "g": str(options.gop), "sc_threshold": "0"}
    muxer = {"video_track_timescale": str(ticks)}
    reformatter, file = VideoReformatter(), io.BytesIO()
    with av.open(file, "w", format="mp4", options=muxer) as container:
        stream = container.add_stream("libx264", rate=rate, options=settings)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, ticks)
        for number, image in enumerate(frames):
            if not number:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            # One thread: PyAV's own choice costs ten times the work for small pictures.
            size = stream.width, stream.height
            frame = reformatter.reformat(frame, *size, format="yuv420p", threads=1)
            seconds = when[number] if len(when) else number / rate
            frame.pts, frame.time_base = round(seconds * ticks), Fraction(1, ticks)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()
