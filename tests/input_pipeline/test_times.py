"""Frame numbers by time, worked by hand and from files, and what has no times."""

from fractions import Fraction

import av
import numpy as np
import pytest

from input_pipeline.video import decode
from input_pipeline.video.base import Clock, VideoError


def record(path, seconds, time_base):
    """A file whose frames are shown at the given times; frame i is gray of level 5 * i % 256."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = time_base
        for i, time in enumerate(seconds):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 5 * i % 256, np.uint8), "rgb24")
            frame.pts, frame.time_base = round(time / time_base), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_numbers_of_a_constant_rate_by_hand():
    clock = Clock(np.arange(48) / 24, 24.0)
    for rate, numbers in (12.0, range(0, 48, 2)), (24.0, range(48)), (48.0, np.arange(96) // 2):
        assert clock.at_rate(rate).tolist() == [*numbers]
    assert clock.at_rate(5.0).tolist() == [0, 4, 9, 14, 19, 24, 28, 33, 38, 43]
    assert clock.at_rate(0.1).tolist() == [0]


def test_uneven_times_of_a_file_are_followed(tmp_path):
    seconds = [Fraction(k, 100) for k in (0, 10, 20, 60, 100, 104, 108, 112, 200)]
    for suffix in ("mp4", "mkv"):
        path = record(tmp_path / f"a.{suffix}", seconds, Fraction(1, 100))
        with decode.open_video(str(path)) as video:
            assert isinstance(video, decode.Video)
            assert video.clock.times == pytest.approx([float(s) for s in seconds], abs=1e-3)
            numbers = video.at_rate(10.0)[:20]
            last = [
                max(i for i, s in enumerate(seconds) if s <= Fraction(k, 10)) for k in range(20)
            ]
            assert numbers.tolist() == last, suffix
            levels = [int(frame.mean()) for frame in video.read(numbers)]
        assert np.abs(np.array(levels) - 5 * np.array(last)).max() <= 2, suffix


def test_times_that_cannot_be_are_refused():
    for clock, reason in (
        (Clock(np.empty(0), 0.0), "neither times nor a frame rate; set data.fps=0"),
        (Clock(np.array([0.0, 1e9]), 1.0), "times of 1000000001 s in all; set data.fps=0"),
    ):
        with pytest.raises(VideoError, match=reason):
            clock.at_rate(25.0)
