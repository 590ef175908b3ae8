"""Windows over whole videos: which frames, which pixels, from one decode."""

import numpy as np

from input_pipeline import windows
from input_pipeline.elements import ClipSpec
from input_pipeline.video import decode


def test_windows_hold_the_frames_of_a_full_decode(shapes):
    video = str(shapes / "videos/test_000000.mp4")
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
        fps = spec.fps or 12.0
        for source, rate in (video, spec.fps), (whole[frames], 0.0):
            facts, *made = windows.cut(source, spec._replace(fps=rate), stride)
            np.testing.assert_array_equal(np.stack(made), expected, err_msg=str(spec))
            assert (facts["frames"], facts["windows"]) == (len(frames), len(expected))
            assert source is not video or (facts["fps"], facts["step"]) == (fps, stride / fps)


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
