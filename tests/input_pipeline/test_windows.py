"""Windows over whole videos: which frames, which pixels, from one decode, of several videos."""

import numpy as np
import pytest

from input_pipeline import windows
from input_pipeline.elements import ClipSpec
from input_pipeline.sources.frames import Stills
from input_pipeline.video import decode
from input_pipeline.video.base import VideoError


@pytest.fixture(scope="module")
def video(shapes):
    return str(sorted((shapes / "videos").glob("test_*.mp4"))[0])


def test_windows_hold_the_frames_of_a_full_decode(video):
    with decode.open_video(video) as opened:
        whole = np.stack(opened.read(range(opened.header.num_frames), np.copy))
        shown = {0.0: np.arange(len(whole)), 7.0: opened.at_rate(7.0)}
    for spec, stride in (
        (ClipSpec(4, 3, 16), 2),
        (ClipSpec(4, 1, 16), 5),
        (ClipSpec(2, 1, 16, fps=7.0), 1),
    ):
        frames, offsets = shown[spec.fps], np.arange(spec.num_frames) * spec.frame_stride
        expected = [
            [windows.centred(whole[n], 16) for n in frames[start + offsets]]
            for start in range(0, len(frames) - offsets[-1], stride)
        ]
        for source, fps in (video, spec.fps or 12.0), (whole[frames], 0.0):
            if fps == 0.0:
                spec = spec._replace(fps=0.0)
            facts, *made = windows.cut(source, spec, stride)
            np.testing.assert_array_equal(np.stack(made), expected, err_msg=str(spec))
            assert facts["fps"] == (fps or None)
            assert (facts["frames"], facts["windows"]) == (len(frames), len(expected))
            assert facts.get("step") == (stride / fps if fps else None)


def test_a_stream_is_a_full_read_of_real_files(shared):
    for path in sorted((shared / "data" / "ut_interaction" / "clips").glob("*/seq0[12]*"))[:2]:
        with decode.open_video(str(path)) as video:
            numbers = [0, 0, *range(3, video.header.num_frames, 5)]
            whole, streamed = (list(read(numbers, np.copy)) for read in (video.read, video.stream))
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
        with pytest.raises(VideoError, match=said):
            next(windows.cut(source, ClipSpec(), 4))


def test_items_of_several_iterators_are_in_order_and_of_several_at_a_time():
    for threads in (1, 3):
        given = [[(one, n) for n in range(5 * one)] for one in range(5)]
        made = list(windows.together(map(iter, given), threads))
        for one, items in enumerate(given):
            assert [item for item in made if item[0] == one] == items
    assert [one for one, _ in made[:12]] == [1] * 4 + [2] * 4 + [3] * 4
