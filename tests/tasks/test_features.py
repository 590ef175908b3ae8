"""Features of whole videos: files that another program reads, whole, resumed, of one setting."""

import io
import json
import logging
import re

import numpy as np
import pytest

import mvm
from configs import features as recipe
from mvm import sweep
from mvm.tasks import features
from mvm.types import UserError


def configure(shapes, pretrained, argument=""):
    config = recipe.get_config(argument)
    config.init_from, config.data.test = str(pretrained), str(shapes / "test.txt")
    config.data.update(frame_stride=1, image_size=32, threads=2)
    return config


@pytest.fixture(scope="module")
def made(shapes, pretrained, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("features")
    values = sweep.run(configure(shapes, pretrained), workdir)
    return workdir, values, json.loads((workdir / "features.json").read_text())


def contents(workdir):
    return {path: path.read_bytes() for path in sorted(workdir.rglob("*.npy"))}


def test_each_video_has_its_rows_and_the_index_tells_their_seconds(made, shapes, pretrained):
    workdir, values, index = made
    assert (index["window"], index["stride"], index["image_size"]) == (16, 4, 32)
    assert values == {"num_videos": 19, "num_unreadable": 0, "num_windows": 38}
    assert {str(path) for path in contents(workdir)} == {
        str(workdir / f"{name}.npy") for name in index["videos"]
    }
    model = mvm.load(pretrained)
    for name, entry in list(index["videos"].items())[:2]:
        rows = np.load(workdir / f"{name}.npy")
        assert (rows.dtype, rows.shape) == (np.float32, (entry["windows"], index["width"]))
        assert entry["fps"] == 12.0
        assert (entry["frames"], entry["windows"]) == (20, 2)
        assert (entry["first"], entry["step"]) == (8 / 12, 4 / 12)
        # ActionFormer puts a moment at (t fps - num_frames / 2) / feat_stride: row i, its middle.
        seconds = entry["first"] + entry["step"] * np.arange(entry["windows"])
        row = (seconds * entry["fps"] - index["window"] / 2) / index["stride"]
        np.testing.assert_allclose(row, np.arange(entry["windows"]), atol=1e-9)
        found = model.features(shapes / f"{name}.mp4", window=16, stride=4)
        np.testing.assert_allclose(found, rows, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="window=20 does not hold 16 frames"):
        model.features(shapes / f"{name}.mp4", window=20)


def test_what_is_there_is_left_alone_and_what_is_not_is_made_again(made, shapes, pretrained):
    workdir, values, index = made
    before, config = contents(workdir), configure(shapes, pretrained)
    times = {path: path.stat().st_mtime_ns for path in workdir.rglob("?*.*")}
    assert sweep.run(config, workdir) == values
    written = [path.name for path in times if path.stat().st_mtime_ns != times[path]]
    assert set(written) <= {"config.json", ".lock"}
    for path in list(before)[3:9]:  # As after a kill: the index is behind.
        path.unlink()
    fewer = {**index, "videos": dict(list(index["videos"].items())[:1])}
    (workdir / "features.json").write_text(json.dumps(fewer))
    assert sweep.run(config, workdir) == values
    again = contents(workdir)
    assert again.keys() == before.keys()
    for path, rows in before.items():
        rows = np.load(io.BytesIO(rows))
        np.testing.assert_allclose(again_rows := np.load(path), rows, rtol=1e-4, atol=1e-5)
        assert again_rows.shape == rows.shape
    assert json.loads((workdir / "features.json").read_text()) == index


def test_other_settings_and_other_weights_are_refused(made, shapes, pretrained, tmp_path):
    workdir, *_ = made
    config = configure(shapes, pretrained)
    config.options.stride = 2
    with pytest.raises(UserError, match=r"stride.* 4 -> 2"):
        sweep.run(config, workdir)
    (tmp_path / "features.json").write_text((workdir / "features.json").read_text())
    with pytest.raises(UserError, match=r"other settings \(stride 4 -> 2\)") as caught:
        features.run(config, tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "features.json").write_text("[1]")
    with pytest.raises(UserError, match=r"features\.json cannot be read"):
        features.run(config, tmp_path)


def test_one_bad_video_is_named_and_all_bad_ones_end_it(shapes, pretrained, tmp_path, caplog):
    config, listed = configure(shapes, pretrained, "videomaev2"), tmp_path / "videos.txt"
    (tmp_path / "empty.mp4").write_bytes(b"")
    good = shapes / (shapes / "test.txt").read_text().split()[0]
    listed.write_text(f"{good}\n{tmp_path / 'empty.mp4'}\n")
    config.data.test = str(listed)
    with caplog.at_level(logging.WARNING):
        values = sweep.run(config, tmp_path / "one")
    assert values == {"num_videos": 1, "num_unreadable": 1, "num_windows": 2}
    assert re.search(r"cannot use video .*empty\.mp4: the file is empty", caplog.text)
    index = json.loads((tmp_path / "one" / "features.json").read_text())
    assert index["pixels"] == "videomaev2"
    assert list(index["unreadable"].values()) == ["the file is empty (0 bytes)"]
    listed.write_text(f"{tmp_path / 'empty.mp4'}\n")
    with pytest.raises(UserError, match=r"no video can be used \(first: .*empty\.mp4"):
        sweep.run(config, tmp_path / "none")


def test_names_follow_the_list_and_stay_inside():
    names = features.names_of(["a/b.mp4", "a/c.d.avi", "raw.frames", "e"])
    assert names == ["a/b", "a/c.d", "raw.frames", "e"]
    assert features.names_of(["/x/y/a.mp4", "/x/z/b.mp4"]) == ["y/a", "z/b"]
    assert features.names_of(["gs://x/y/a.mp4", "gs://x/y/b.mp4"]) == ["a", "b"]
    assert features.names_of(["../v/a.mp4", "../w/b.mp4"]) == ["v/a", "w/b"]
    with pytest.raises(UserError, match=r"a\.mp4 and a\.avi would both be a\.npy"):
        features.names_of(["a.mp4", "a.avi"])
