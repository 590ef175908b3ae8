"""Single pictures give the frames that OpenCV reads, of the wanted numbers only."""

import re

import cv2
import numpy as np
from packing import paint, read_frames, refused, write_pictures

from input_pipeline.sources.frames import Numbered, Stills
from input_pipeline.video import decode
from input_pipeline.video.base import VideoError


def encode(rgb, extension=".png"):
    return cv2.imencode(extension, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()


def test_only_the_wanted_pictures_are_read(tmp_path):
    folder = write_pictures(tmp_path / "v", range(1, 13), "{}.png")
    for t in (1, 5, 9):
        (folder / f"{t + 1}.png").unlink()
    for source in (
        Numbered(str(folder), "{}.png", 1, 12),  # From number 1 on.
        Stills(tuple(f"{folder}/{t + 1}.png" for t in range(12))),
    ):
        with decode.open_video(source, 8) as video:
            assert video.header == (12, 12, 16, "stills")
            frames = video.read([4, 0, 4, 11])
            assert video.damage == 0
        for frame, t in zip(frames, (4, 0, 4, 11)):
            assert (frame == t + 1).all()
        assert frames[0] is frames[2]


def test_pictures_of_every_depth_become_rgb():
    gray = paint(1)[..., 0]
    deep, alpha = gray.astype(np.uint16) * 256 + 17, np.dstack([gray, gray, gray, gray // 2])
    pictures = [cv2.imencode(".png", image)[1].tobytes() for image in (gray, deep, alpha)]
    for frame in read_frames(Stills(tuple(pictures)), range(3)):
        assert np.array_equal(frame, np.dstack([gray] * 3))


def test_a_bad_picture_is_its_nearest_wanted_neighbour(tmp_path):
    pictures = [encode(paint(t)) for t in range(8)]
    pictures[2], pictures[5] = b"no picture", encode(paint(5), ".jpg")[:-300]
    with decode.open_video(Stills(tuple(pictures))) as video:
        frames = video.read([0, 2, 3, 5, 7])
        assert video.damage == 2
        for frame, t in zip(frames, (0, 3, 3, 3, 7)):
            assert np.array_equal(frame, paint(t))
        said = "none of the wanted .*: picture 2: no picture"
        refused(said, video.read, [2, 5], kind=VideoError)
        said = r"neither times nor a frame rate; set data\.fps=0"
        refused(said, video.at_rate, 8.0, kind=VideoError)


def test_what_cannot_be_opened_says_why(tmp_path):
    folder = write_pictures(tmp_path / "six", range(1, 7), "{}.png")
    (folder / ".0.png").touch(), (folder / "notes.txt").touch()
    (folder / "1.png").write_bytes(b"")  # The size is that of another one.
    assert decode.probe(str(folder)) == (6, 12, 16, "stills")
    (tmp_path / "none").mkdir()
    cases = {
        str(folder): "6 frames, fewer than data.min_frames=8",
        str(tmp_path / "none"): "no pictures in the folder",
        Numbered(str(tmp_path), "{}.jpg", 3, 9): "3.jpg: no such file",
        Stills((b"",) * 8): "picture 0: no picture OpenCV can read (0 bytes)",
    }
    for source, reason in cases.items():
        refused(f"^{re.escape(reason)}$", decode.probe, source, 8, kind=VideoError)
