"""Painted videos, and packs of them, for the tests of what reads and writes them."""

from fractions import Fraction
from functools import partial

import av
import cv2
import numpy as np
import pytest
from models_on_disk import refused as refused_as

from input_pipeline import pack
from input_pipeline.sources import packed
from input_pipeline.sources.records import DataError
from input_pipeline.video import decode

H, W, N = 48, 64, 40
refused = partial(refused_as, kind=DataError)
UNEVEN = np.cumsum([40 if t % 3 else 120 for t in range(N)]).tolist()
GOOD = [("b.mp4", 0), ("xvid.avi", 2), ("uneven.mkv", 1)]


def write(path, *lines, encoding="utf-8-sig"):
    """A file of some lines, or of none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding=encoding)
    return str(path)


def paint(t, h=H, w=W):
    """A smooth picture that moves, so that neighbouring frames differ."""
    y, x = np.mgrid[:h, :w] * (48 / h)
    waves = [np.sin((x + 3 * t) / 9), np.cos((y - 2 * t) / 7), np.sin((x + y + 5 * t) / 11)]
    return (127 + 100 * np.stack(waves, -1)).astype(np.uint8)


def put(folder, *names):
    """Files, where only names are looked at."""
    for name in names:
        write(folder / name)


def write_pictures(folder, numbers, template="img_{:05}.jpg"):
    """Each is a gray of its own number."""
    folder.mkdir(parents=True)
    for n in numbers:
        cv2.imwrite(str(folder / template.format(n)), np.full((12, 16, 3), n, np.uint8))
    return folder


def read_frames(source, indices, min_frames=2):
    """The frames `indices`, or those it gives for their number."""
    with decode.open_video(source, min_frames) as opened:
        count = opened.header.num_frames
        return opened.read(indices(count) if callable(indices) else indices)


def video(path, codec="libx264", count=N, size=(H, W), ticks=None, movflags="", **options):
    """A real file whose frame t is `paint(t)`, shown at `ticks[t]` milliseconds."""
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        if ticks:
            stream.codec_context.time_base = Fraction(1, 1000)
        for t in range(len(ticks) if ticks else count):
            frame = av.VideoFrame.from_ndarray(paint(t, *size), format="rgb24")
            if ticks:
                frame.pts, frame.time_base = ticks[t], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def one_by_one(function, records, workers, timeout=0, first=0):
    """Stands in for `each`: a worker takes longer to start than these videos to encode."""
    return (function(records[p], "") for p in range(first, len(records)))


def packing(source, out, codec="copy", split="train"):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "each", one_by_one)
        pack.main([str(source), str(out), "--codec", codec, "--split", split])
    return out


def contents(out, split="train"):
    return [record._replace(path="") for record in packed.load(str(out), split=split)]
