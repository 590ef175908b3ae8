"""Windows over whole videos: which frames, which pixels, from one decode, of several videos."""

import numpy as np
import pytest

from input_pipeline import windows
from input_pipeline.sources.frames import Stills
from input_pipeline.video import decode
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
        with windows.opened(video, spec) as (facts, made):
            found = list(made)
        starts = windows.starts(len(frames), spec.span, spec.stride)
        assert facts == (spec.fps or 12.0, len(frames), len(starts))
        assert len(found) == len(starts) > 1
        for start, window in zip(starts, found):
            numbers = frames[start + np.arange(spec.num_frames) * spec.frame_stride]
            expected = [windows.centred(whole[n], spec.image_size) for n in numbers]
            np.testing.assert_array_equal(window, np.stack(expected), err_msg=str(spec))
    with windows.opened(np.stack(whole), WindowSpec(4, 3, 2, 16)) as (_, made):
        again = list(made)
    with windows.opened(video, WindowSpec(4, 3, 2, 16)) as (_, made):
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


def test_several_videos_are_read_together_and_bad_ones_say_why(shapes, tmp_path):
    paths = [str(path) for path in sorted((shapes / "videos").glob("test_*.mp4"))[:5]]
    broken, spec = tmp_path / "empty.mp4", WindowSpec(4, 1, 1, 16)
    broken.write_bytes(b"")
    videos = [*enumerate(paths), (5, str(broken)), (6, str(tmp_path / "none.mp4")), (7, Stills(()))]
    for threads in (1, 3):
        found = {key: [] for key, _ in videos}
        for piece in windows.together(videos, spec, threads):
            found[piece.key].append(piece)
        for key, path in enumerate(paths):
            with windows.opened(path, spec) as (facts, made):
                assert {piece.facts for piece in found[key]} == {facts}
                expected = np.stack(list(made))
            np.testing.assert_array_equal(np.stack([p.window for p in found[key]]), expected)
        reasons = [found[key][0].reason for key in (5, 6, 7)]
        assert all(word in one for word, one in zip(("empty", "no such", "0 frames"), reasons))
    (short,) = windows.together([(0, paths[0])], WindowSpec(16, 4), 1)
    assert short.reason == "20 frames, fewer than the 61 of a window"
