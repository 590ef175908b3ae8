"""Frame numbers by time, worked by hand and from files, and what has no times."""

import numpy as np
import pytest
from packing import video

from input_pipeline.video import decode
from input_pipeline.video.base import Clock


def test_numbers_of_a_constant_rate_by_hand():
    clock = Clock(np.arange(48) / 24, 24.0)
    for rate, numbers in (12.0, range(0, 48, 2)), (24.0, range(48)), (48.0, np.arange(96) // 2):
        assert clock.at_rate(rate).tolist() == [*numbers]
    assert clock.at_rate(5.0).tolist() == [0, 4, 9, 14, 19, 24, 28, 33, 38, 43]
    assert clock.at_rate(0.1).tolist() == [0]


def test_uneven_times_of_a_file_are_followed(tmp_path):
    ticks = [0, 100, 200, 600, 1000, 1040, 1080, 1120, 2000]  # Milliseconds.
    for suffix in ("mp4", "mkv"):
        path = video(tmp_path / f"a.{suffix}", ticks=ticks)
        with decode.open_video(str(path)) as opened:
            assert opened.clock.times == pytest.approx(np.array(ticks) / 1000, abs=1e-3)
            last = [max(i for i, t in enumerate(ticks) if t <= 100 * k) for k in range(20)]
            assert opened.at_rate(10.0)[:20].tolist() == last, suffix
