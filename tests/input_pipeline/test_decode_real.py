"""Real and odd files: the frames of a plain full decode, or one reason."""

import pathlib

import cv2
import numpy as np
import pytest
import real_files as clips

from input_pipeline.video import decode

REFUSED = {
    "audio_only": "no video stream, only audio",
    "audio.mp3": "no video stream, only audio",
    "cover_art": "no video stream, only audio with a cover picture",
    "header_only": "not a video FFmpeg can read (Invalid data found when processing input)",
    "derived_text": "not a video FFmpeg can read (Invalid data found when processing input)",
    "moov_at_end": "not a video FFmpeg can read (Invalid data found when processing input)",
    "zero_byte": "the file is empty (0 bytes)",
    "jpeg_named": "a still image (mjpeg), not a video",
    "one_frame": "1 frame, fewer than data.min_frames=2",
    "testsrc2_mpeg4": "1 frame, fewer than data.min_frames=2",
}
DAMAGED = {"decord_corrupted": 50, "half_faststart": 28, "bitflips.mp4": 75, "bitflips.avi": 78}
DAMAGED |= {"derived_truncated.avi": 62}


def intact(folder: pathlib.Path) -> list[pathlib.Path]:
    paths = sorted(path for path in folder.iterdir() if path.suffix != ".md")
    return [p for p in paths if not any(part in p.name for part in (*REFUSED, *DAMAGED))]


def test_frames_of_every_intact_clip_equal_a_full_decode(shared: pathlib.Path) -> None:
    paths = intact(shared / "clips")
    assert len(paths) >= 45
    for path in paths:
        assert clips.verify(path, strides=()).result.startswith("exact"), path.name


@pytest.mark.slow
def test_all_strides_of_every_intact_clip_equal_a_full_decode(shared: pathlib.Path) -> None:
    for path in intact(shared / "clips"):
        assert clips.verify(path).result.startswith("exact"), path.name


def test_every_frame_alone_of_clips_whose_order_is_in_the_bitstream(shared: pathlib.Path) -> None:
    for name in ("mmaction2_test__ucf101_v_ApplyEyeMakeup_g01_c01.avi", "hiera_dog.mp4"):
        path = shared / "clips" / name
        with decode.open_video(str(path)) as video:
            n = video.header.num_frames
            full, count = clips.full_decode(path, set(range(n)))
            assert count == n
            for index in [*range(0, n, 5), 1, 2, 3, n - 2, n - 1]:
                # Alone, a frame shows no disorder: its place must be known beforehand.
                assert np.array_equal(video.read([index])[0], full[index]), (name, index)


@pytest.mark.parametrize("part", REFUSED)
def test_unusable_clip_has_one_reason(shared: pathlib.Path, part: str) -> None:
    (path,) = [p for p in (shared / "clips").iterdir() if part in p.name and p.suffix != ".md"]
    with pytest.raises(decode.VideoError) as error:
        decode.probe(str(path))
    assert str(error.value) == REFUSED[part]


@pytest.mark.parametrize("part", DAMAGED)
def test_damaged_clip_gives_what_it_has(shared: pathlib.Path, part: str) -> None:
    (path,) = (shared / "clips").glob(f"*{part}*")
    with decode.open_video(str(path)) as video:
        n = video.header.num_frames
        assert n == DAMAGED[part]
        frames = video.read(range(n))
        assert len(frames) == n
        assert len({frame.shape for frame in frames}) == 1
        assert video.damage > 0


def test_rotation_equals_opencv(shared: pathlib.Path) -> None:
    for path in [*(shared / "clips").glob("decord_video_*"), *(shared / "clips").glob("*rotated*")]:
        capture = cv2.VideoCapture(str(path))
        image = cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB)
        frame = decode.read_frames(str(path), np.array([0]))[0]
        assert frame.shape == image.shape
        assert np.abs(frame.astype(int) - image).mean() < 2, path.name


def test_uneven_times_are_followed(shared: pathlib.Path) -> None:
    # 25 frames a second, but only every third between 1 s and 3 s.
    with decode.open_video(str(shared / "clips" / "derived_vfr.mp4")) as video:
        assert isinstance(video, decode.Video)
        n = video.header.num_frames
        assert np.array_equal(video.at_rate(25.0)[:25], np.arange(25))
        numbers = video.at_rate(25.0)
        middle = numbers[27:75]  # From 1.08 s to 2.96 s.
        assert np.array_equal(middle, np.arange(25, 41).repeat(3))
        seconds = video.clock.times[-1] + 1 / video.fps
        assert len(numbers) == pytest.approx(25 * seconds, abs=1)
        assert numbers[-1] == n - 1
