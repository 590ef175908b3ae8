"""The contact sheet shows the pixels that training gets, under the right frame numbers."""

import importlib

import numpy as np
import pytest
from PIL import Image

from input_pipeline import command, show
from input_pipeline.elements import ClipSpec
from input_pipeline.sources import folders
from input_pipeline.sources.records import DataError, Record
from input_pipeline.synthetic import shapes
from input_pipeline.transforms.clips import SAMPLING
from mvm import tasks

FRAMES, FPS = 60, 10
SPEC = ClipSpec(num_frames=6, frame_stride=4, image_size=32)


@pytest.fixture(scope="module")
def records():
    """Two videos; frame n of the first is grey, `20 + 3 n` bright, of the second 10 more."""
    found = []
    for label in (0, 1):
        grey = (20 + 10 * label + 3 * np.arange(FRAMES, dtype=np.uint8))[:, None, None, None]
        data = shapes.encode(np.broadcast_to(grey, (FRAMES, 64, 64, 3)), FPS)
        found.append(Record(f"video{label}", "", label, data))
    return found


def test_captions_are_the_frames_whose_pixels_are_shown(records):
    specs = [SPEC._replace(sampling=name, crop="random_resized", flip=True) for name in SAMPLING]
    specs.append(SPEC._replace(sampling="strided", fps=5.0, num_frames=4, frame_stride=3))
    for spec in specs:
        for position in (0, 1):
            one = show.show(records, spec, position, 7)
            brightness = one.video.mean((1, 2, 3)) - 20 - 10 * position
            np.testing.assert_allclose(brightness / 3, one.frames, atol=0.7, err_msg=spec.sampling)
            np.testing.assert_allclose(one.times, one.frames / FPS, atol=1e-6)
    assert np.diff(one.frames).tolist() == [6, 6, 6]  # Every third of every second frame.


def test_the_command_draws_what_a_recipe_sees_and_names_the_rest(records, tmp_path, capsys):
    for record, name in zip(records, ("run", "walk")):
        (tmp_path / "clips" / name).mkdir(parents=True)
        (tmp_path / "clips" / name / "a.mp4").write_bytes(record.source)
    (tmp_path / "clips/run/broken.mp4").write_bytes(b"no video")
    listed, out = tmp_path / "list.txt", tmp_path / "new" / "sheet.png"
    keys = [f"--config.data.train={tmp_path}/clips", "--config.data.num_frames=6"]
    recipe = ["--config=configs/my_clips.py:head,smoke", *keys]
    assert show.main([*recipe, "--out", str(out), "--seed", "20261128"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("train: 3 videos: run 2, walk 1\n")
    assert "run/broken.mp4" in printed.err
    picture = np.asarray(Image.open(out))
    assert picture.shape[1] > picture.shape[0] > 2 * 144
    listed.write_text("broken.mp4 0\n")
    for wrong, text in (
        (["--config=configs/my_clips.py:hed"], "'hed' is unknown; choose finetune"),
        (recipe[:1], "give --config.data.root=FOLDER"),
        ([str(listed)], "none of the videos"),
    ):
        with pytest.raises(DataError, match=text):
            show.main(wrong)


def test_a_recipe_is_shown_as_its_task_trains(monkeypatch):
    """`ClipSpec` of every variant, which the command makes without asking the task."""
    monkeypatch.setattr(command.sources, "given", lambda d, split: [])
    found = folders.Found({"train": []}, (), ())
    monkeypatch.setattr(command.folders, "find", lambda *args: found)
    for leaf, argument in (("everest_ucf101", ""), ("everest_ssv2", "finetune"), ("my_clips", "")):
        config = importlib.import_module(f"configs.{leaf}").get_config(argument)
        recipe = [f"--config=configs/{leaf}.py:{argument}", "--config.data.root=x"]
        seen = command.parse(command.parser("show", ""), [*recipe, "--config.data.fetch="])[1].spec
        config.data.num_classes = 5
        assert seen == tasks.build(config).clips["train"]
