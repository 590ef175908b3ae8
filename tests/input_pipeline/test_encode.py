"""Encoded videos keep count, times, size and damage of their source."""

import pathlib

import cv2
import numpy as np
import pytest
from packing import N, paint, video

from input_pipeline import encode as module
from input_pipeline.encode import Options, encode
from input_pipeline.sources.frames import Stills
from input_pipeline.synthetic import shapes
from input_pipeline.video import decode


def test_rates_are_resampled_alike(source: pathlib.Path) -> None:
    path = str(source.parent / "uneven.mkv")
    data = encode(path, Options("h264"))
    with decode.open_video(path) as before, decode.open_video(data) as after:
        for fps in (5, 7.5, 10, 15, 24, 30):
            assert np.array_equal(before.at_rate(fps), after.at_rate(fps)), fps


def test_sizes_are_even_and_never_larger(tmp_path: pathlib.Path) -> None:
    for size, short_side, expected in (
        ((96, 160), 48, (48, 80)),
        ((160, 96), 48, (80, 48)),
        ((96, 160), 0, (96, 160)),
        ((48, 64), 256, (48, 64)),  # not enlarged
        ((90, 122), 45, (44, 60)),  # 45 x 61, made even
    ):
        path = video(tmp_path / "a.mp4", size=size, ticks=range(0, 160, 40))
        data = encode(str(path), Options(short_side=short_side))
        assert decode.probe(data)[:3] == (4, *expected), (size, short_side)


def test_pictures_lose_an_odd_line_and_no_sharpness() -> None:
    images = [paint(t, 49, 65) for t in range(5)]
    frames = [cv2.imencode(".png", cv2.cvtColor(one, cv2.COLOR_RGB2BGR))[1] for one in images]
    data = encode(Stills(tuple(frame.tobytes() for frame in frames)), Options(crf=1))
    found = np.stack(decode.read_frames(data, range(5))).astype(float)
    light = (found - np.stack(images)[:, :48, :64]) @ (0.299, 0.587, 0.114)
    assert np.abs(light).mean() < 2  # 3.0 where it is scaled by 48 / 49


def test_long_videos_are_encoded_in_parts(
    source: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(source.parent / "xvid.avi")
    whole = encode(path, Options("h264"))
    monkeypatch.setattr("input_pipeline.encode._MEMORY", 0)  # 32 frames at a time
    assert encode(path, Options("h264")) == whole


def test_pictures_do_not_depend_on_the_instructions_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Those of x264 that differ between CPUs are also those that differ from call to call.
    for seed in range(8):
        clip = shapes.render(np.random.default_rng(seed), seed)
        usual = shapes.encode(clip)
        with monkeypatch.context() as patch:
            patch.setitem(module._X264, "x264-params", "asm=sse4.2")
            plain = shapes.encode(clip)
        found = [np.stack(decode.read_frames(data, range(len(clip)))) for data in (usual, plain)]
        np.testing.assert_array_equal(*found)


def test_damage_is_kept_as_a_read_gives_it(tmp_path: pathlib.Path) -> None:
    whole = video(tmp_path / "whole.mp4", bf="0", g="250", movflags="faststart").read_bytes()
    data = bytearray(whole)
    middle = whole.find(b"mdat") + (len(whole) - whole.find(b"mdat")) // 2
    data[middle : middle + 200] = bytes(200)
    with decode.open_video(bytes(data)) as opened:
        frames = np.stack(opened.read(range(N))).astype(float)
        encoded = encode(bytes(data), Options(crf=1))
        assert opened.damage > 0
    found = np.stack(decode.read_frames(encoded, range(N))).astype(float)
    assert np.abs(found - frames).mean((1, 2, 3)).max() < 5


def test_videos_are_turned(shared: pathlib.Path) -> None:
    path = str(shared / "clips" / "decord_video_90.mov")
    data = encode(path, Options("h264", 0))
    before, after = (decode.read_frames(one, range(3)) for one in (path, data))
    assert before[0].shape == after[0].shape == (568, 320, 3)
    assert np.abs(np.stack(before).astype(float) - np.stack(after)).mean() < 4
