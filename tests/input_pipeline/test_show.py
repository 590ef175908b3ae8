"""The contact sheet shows the pixels that training gets, under the right frame numbers."""

import pathlib

import cv2
import numpy as np
import pytest
from PIL import Image

from input_pipeline import pipeline, show
from input_pipeline.elements import ClipSpec
from input_pipeline.sources.records import Record
from input_pipeline.synthetic import shapes
from input_pipeline.transforms.clips import SAMPLING

FRAMES, FPS = 60, 10
SPEC = ClipSpec(num_frames=6, frame_stride=4, image_size=32)


def painted(first: int) -> bytes:
    """Frame n is grey, `first + 3 n` bright."""
    grey = first + 3 * np.arange(FRAMES, dtype=np.uint8)
    return shapes.encode(np.broadcast_to(grey[:, None, None, None], (FRAMES, 64, 64, 3)), FPS)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [Record(f"video {i}", "", i % 2, painted(20 + 10 * i)) for i in range(4)]


@pytest.mark.parametrize("sampling", SAMPLING)
def test_captions_are_the_frames_whose_pixels_are_shown(
    records: list[Record], sampling: str
) -> None:
    spec = SPEC._replace(sampling=sampling, crop="random_resized", flip=True)
    shown, failed = show.collect(records, spec, 4, 7)
    assert not failed
    assert sorted(one.id for one in shown) == [record.id for record in records]
    for one in shown:
        brightness = one.video.mean((1, 2, 3)) - 20 - 10 * int(one.id[-1])
        np.testing.assert_allclose(brightness / 3, one.frames, atol=0.7)
        np.testing.assert_allclose(one.times, one.frames / FPS, atol=1e-6)


def test_captions_follow_the_rate_and_the_stride_of_a_record(records: list[Record]) -> None:
    spec = SPEC._replace(sampling="strided", fps=5.0, num_frames=4)
    strided = [record._replace(stride=3) for record in records]
    for one in show.collect(strided, spec, 4, 2)[0]:
        assert np.diff(one.frames).tolist() == [6, 6, 6]  # Every third of every second frame.
        brightness = one.video.mean((1, 2, 3)) - 20 - 10 * int(one.id[-1])
        np.testing.assert_allclose(brightness / 3, one.frames, atol=0.7)


def test_pixels_are_those_of_training(records: list[Record]) -> None:
    spec = SPEC._replace(rand_augment="rand-m7-n4-mstd0.5-inc1")
    shown, _ = show.collect(records, spec, 4, 3)
    for one in shown:
        expected = pipeline.clip(records, spec, int(one.id[-1]), 3)["video"]
        np.testing.assert_array_equal(one.video, expected)


def test_an_erased_box_is_grey_and_the_rest_stays(records: list[Record]) -> None:
    spec = SPEC._replace(image_size=64)
    plain = {one.id: one for one in show.collect(records, spec, 4, 5)[0]}
    for one in show.collect(records, spec._replace(erasing=1.0), 4, 5)[0]:
        changed = (one.video != plain[one.id].video).any((0, 3))
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        h, w = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert changed.sum() == h * w  # One full rectangle.
        assert f"{w} x {h} pixels erased" in one.details
        assert (one.video[:, changed] == 128).all()


def test_repeats_share_frames_but_not_crops(records: list[Record]) -> None:
    still = cv2.resize(np.arange(64, dtype=np.uint8).reshape(8, 8, 1).repeat(3, 2) * 3, (64, 64))
    data = shapes.encode(np.broadcast_to(still, (FRAMES, 64, 64, 3)))
    shown, _ = show.collect([Record("still", "", 0, data)], SPEC._replace(repeats=3), 1, 0)
    assert [one.title.partition("(")[2] for one in shown] == [f"clip {i} of 3)" for i in (1, 2, 3)]
    assert all((one.frames == shown[0].frames).all() for one in shown)
    assert len({one.video.tobytes() for one in shown}) == 3


def test_unreadable_videos_are_named_and_others_take_their_place(records: list[Record]) -> None:
    broken = Record("broken", "", 0, b"no video")
    shown, failed = show.collect([broken, *records], SPEC, 4, 1)
    assert {one.id for one in shown} == {record.id for record in records}
    assert all(line.startswith("broken: ") for line in failed)


def test_the_picture(records: list[Record], tmp_path: pathlib.Path) -> None:
    lines = []
    for record in records:
        (tmp_path / f"{record.id}.mp4").write_bytes(record.source)
        lines.append(f"{record.id}.mp4 {record.label}\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    (tmp_path / "classes.txt").write_text("run\njump\n")
    options = ["--count", "2", "--num-frames", "6", "--image-size", "32", "--seed", "1"]
    paths = [tmp_path / "new" / f"{i}.png" for i in range(2)]
    for path in paths:
        assert show.main([str(tmp_path / "list.txt"), "--out", str(path), *options]) == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
    picture = np.asarray(Image.open(paths[0]))
    assert picture.shape[1] == 2 * 20 + 6 * (144 + 8) - 8
    edges = (picture[0], picture[-1], picture[:, 0], picture[:, -1])
    assert all((edge == 255).all() for edge in edges)
    # A tile is one grey, and the ink of captions and headings is somewhere below and above it.
    tile = picture[10 + 50 : 10 + 50 + 144, 20 : 20 + 144]
    assert np.ptp(tile) <= 2
    assert (picture[10 + 50 + 144 : 10 + 50 + 164, 20:164] < 100).any()
    assert (picture[10:60, 20:400] < 100).any()


def test_a_wrong_option_is_one_line(
    records: list[Record], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text("gone.mp4 0\n")
    for option, text in ((["--crop", "round"], "'round'"), ([], "none of its videos")):
        with pytest.raises(SystemExit) as end:
            show.main([str(tmp_path / "list.txt"), *option])
        assert end.value.code == 2
        assert text in capsys.readouterr().err.splitlines()[-1]
