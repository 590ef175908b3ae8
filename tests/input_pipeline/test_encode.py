"""Encoded videos keep size and damage of their source."""

import numpy as np
from packing import N, read_frames, video

from input_pipeline.encode import Options, encode
from input_pipeline.video import decode


def test_sizes_are_even_and_never_larger(tmp_path):
    for size, short_side, expected in (
        ((96, 160), 48, (48, 80)),
        ((160, 96), 48, (80, 48)),
        ((96, 160), 0, (96, 160)),
        ((48, 64), 256, (48, 64)),  # not enlarged
        ((90, 122), 45, (44, 60)),  # 45 x 61, made even
    ):
        path = video(tmp_path / "a.mp4", count=4, size=size)
        data = encode(str(path), Options(short_side=short_side))
        assert decode.probe(data)[:3] == (4, *expected), (size, short_side)


def test_damage_is_kept_as_a_read_gives_it(tmp_path):
    whole = video(tmp_path / "whole.mp4", bf="0", g="250", movflags="faststart").read_bytes()
    data = bytearray(whole)
    middle = whole.find(b"mdat") + (len(whole) - whole.find(b"mdat")) // 2
    data[middle : middle + 200] = bytes(200)
    with decode.open_video(bytes(data)) as opened:
        frames = np.stack(opened.read(range(N))).astype(float)
        encoded = encode(bytes(data), Options(crf=1))
        assert opened.damage > 0
    found = np.stack(read_frames(encoded, range(N))).astype(float)
    assert np.abs(found - frames).mean((1, 2, 3)).max() < 5
