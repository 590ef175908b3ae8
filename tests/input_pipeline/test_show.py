"""The contact sheet shows the pixels that training gets, under the right frame numbers."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from input_pipeline import loader, show
from input_pipeline.elements import ClipSpec
from input_pipeline.sources.records import DataError, Record
from input_pipeline.synthetic import shapes
from input_pipeline.transforms.clips import SAMPLING

FRAMES, FPS = 60, 10
SPEC = ClipSpec(num_frames=6, frame_stride=4, image_size=32)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """Two videos; frame n of the first is grey, `20 + 3 n` bright, of the second 10 more."""
    found = []
    for label in (0, 1):
        grey = (20 + 10 * label + 3 * np.arange(FRAMES, dtype=np.uint8))[:, None, None, None]
        data = shapes.encode(np.broadcast_to(grey, (FRAMES, 64, 64, 3)), FPS)
        found.append(Record(f"video{label}", "", label, data))
    return found


def test_captions_are_the_frames_whose_pixels_are_shown(records: list[Record]) -> None:
    specs = [SPEC._replace(sampling=name, crop="random_resized", flip=True) for name in SAMPLING]
    specs.append(SPEC._replace(sampling="strided", fps=5.0, num_frames=4, frame_stride=3))
    for spec in specs:
        for position in (0, 1):
            one = show.show(records, spec, position, 7)
            brightness = one.video.mean((1, 2, 3)) - 20 - 10 * position
            np.testing.assert_allclose(brightness / 3, one.frames, atol=0.7, err_msg=spec.sampling)
            np.testing.assert_allclose(one.times, one.frames / FPS, atol=1e-6)
    assert np.diff(one.frames).tolist() == [6, 6, 6]  # Every third of every second frame.


def test_pixels_are_those_of_training_and_grey_where_erased(records: list[Record]) -> None:
    spec = SPEC._replace(rand_augment="rand-m7-n4-mstd0.5-inc1", erasing=1.0)
    trained = loader.clip(records, spec, 1, 3)
    expected, (y, x, h, w) = trained["video"].copy(), trained["erase"]
    expected[:, y : y + h, x : x + w] = 128
    np.testing.assert_array_equal(show.show(records, spec, 1, 3).video, expected)
    assert (expected != trained["video"]).any()


def test_the_command_draws_what_can_be_read_and_names_the_rest(
    records: list[Record], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for record in records:
        (tmp_path / f"{record.id}.mp4").write_bytes(record.source)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    listed, out = tmp_path / "list.txt", tmp_path / "new" / "sheet.png"
    listed.write_text("video0.mp4 0\nvideo1.mp4 1\nbroken.mp4 0\n")
    options = ["--out", str(out), "--num-frames", "6", "--image-size", "32", "--flip"]
    options += ["--seed", "20261128"]
    assert show.main([str(listed), *options]) == 0
    assert "broken.mp4" in capsys.readouterr().err
    picture = np.asarray(Image.open(out))
    assert picture.shape[1] > picture.shape[0] > 2 * 144
    listed.write_text("broken.mp4 0\n")
    for option, text in (
        (["--crop", "round"], "'round'"),
        ([], "none of its videos"),
    ):
        with pytest.raises(DataError, match=text):
            show.main([str(listed), *option])
