"""Windows over whole videos: which frames, which pixels, from one decode, of several videos."""

import numpy as np
import pytest

from input_pipeline import windows
from input_pipeline.sources.frames import Stills
from input_pipeline.video import decode
from input_pipeline.video.base import VideoError
from input_pipeline.windows import WindowSpec


@pytest.fixture(scope="module")
def video(shapes):
    return str(sorted((shapes / "videos").glob("test_*.mp4"))[0])


def test_starts_are_those_of_the_released_extractor():
    cases = {
        (15, 4): [],
        (16, 4): [0],
        (20, 4): [0, 4],
        (33, 4): [0, 4, 8, 12, 16],
        (33, 16): [0, 16],
    }
    for (frames, stride), expected in cases.items():
        assert windows.starts(frames, 16, stride).tolist() == expected
    assert WindowSpec(16, 4).span == 61


def test_windows_hold_the_frames_of_a_full_decode(video):
    with decode.open_video(video) as opened:
        count = opened.header.num_frames
        whole = opened.read(range(count), np.copy)
        shown = opened.at_rate(7.0)
    for spec, frames in (
        (WindowSpec(4, 3, 2, 16), np.arange(count)),
        (WindowSpec(4, 1, 5, 16), np.arange(count)),
        (WindowSpec(2, 1, 1, 16, fps=7.0), shown),
    ):
        with windows.opened(spec, video) as (facts, made):
            found = list(made)
        starts = windows.starts(len(frames), spec.span, spec.stride)
        assert facts == (spec.fps or 12.0, len(frames), len(starts))
        assert len(found) == len(starts) > 1
        for start, window in zip(starts, found):
            numbers = frames[start + np.arange(spec.num_frames) * spec.frame_stride]
            expected = [windows.centred(whole[n], spec.image_size) for n in numbers]
            np.testing.assert_array_equal(window, np.stack(expected), err_msg=str(spec))
    with windows.opened(WindowSpec(4, 3, 2, 16), np.stack(whole)) as (_, made):
        again = list(made)
    with windows.opened(WindowSpec(4, 3, 2, 16), video) as (_, made):
        np.testing.assert_array_equal(np.stack(again), np.stack(list(made)))


def test_a_stream_is_a_full_read_of_real_files(shared):
    for path in sorted((shared / "data" / "ut_interaction" / "clips").glob("*/seq0[12]*"))[:6]:
        with decode.open_video(str(path)) as video:
            numbers = [0, 0, *range(3, video.header.num_frames, 5)]
            whole = video.read(numbers, np.copy)
        with decode.open_video(str(path)) as video:
            streamed = list(video.stream(numbers, np.copy))
        np.testing.assert_array_equal(np.stack(streamed), np.stack(whole), err_msg=str(path))


def test_released_pixels_are_bilinear_without_antialias():
    frame = np.random.default_rng(0).integers(0, 256, (23, 37, 3), np.uint8)
    for h, w in ((16, 16), (48, 40)):
        sides = []
        for old, new in ((23, h), (37, w)):
            at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, None)
            low = np.floor(at).astype(int)
            weight = np.zeros((new, old))
            weight[np.arange(new), np.minimum(low + 1, old - 1)] += at - low
            weight[np.arange(new), low] += 1 - (at - low)
            sides.append(weight)
        expected = np.einsum("yi,xj,ijc->yxc", *sides, frame / 255)
        np.testing.assert_allclose(windows.squashed(frame, h, w), expected, atol=1e-5)


def test_released_pixels_and_starts_equal_golden_numbers(shared):
    golden = np.load(shared / "golden" / "downstream_frozen.npz")
    for name in (name for name in golden.files if name.startswith("tad/")):
        if "starts" in name:
            stride = 4 if "THUMOS14" in name else 16
            found = windows.starts(int(name.rpartition("_")[2]), 16, stride)
            np.testing.assert_array_equal(found, golden[name], err_msg=name)
        elif "resized" in name:
            h, w = map(int, name.rpartition("_")[2].split("x"))
            made = [windows.squashed(one, h, w) for one in golden["tad/frames_thwc"]]
            found = np.stack(made).transpose(3, 0, 1, 2)
            np.testing.assert_allclose(found, golden[name], atol=1e-5, err_msg=name)


def test_a_video_without_windows_says_why(video, tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    for source, said in (
        (str(tmp_path / "empty.mp4"), "empty"),
        (str(tmp_path / "none.mp4"), "no such"),
        (Stills(()), "0 frames"),
        (video, "20 frames, fewer than the 61 of a window"),
    ):
        with pytest.raises(VideoError, match=said), windows.opened(WindowSpec(), source):
            pass
