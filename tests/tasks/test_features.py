"""Features of whole videos: files that another program reads, whole, resumed, of one encoder."""

import json
import logging
import pathlib
import re

import numpy as np
import tiny
from models_on_disk import refused

import mvm
from configs import features as recipe
from mvm import frozen, sweep
from mvm.tasks import features


def test_files_and_index_are_whole_and_resumed(shapes, pretrained, tmp_path):
    config, index = tiny.frozen(recipe, shapes, pretrained), tmp_path / "features.json"
    values = sweep.run(config, tmp_path)
    assert values == {"num_videos": 19, "num_unreadable": 0, "num_windows": 38}
    made = json.loads(index.read_text())
    assert (made["window"], made["stride"], made["pixels"]) == (16, 4, "normalised")
    assert set(tmp_path.rglob("*.npy")) == {tmp_path / f"{name}.npy" for name in made["videos"]}
    model = mvm.load(pretrained)
    for name, entry in list(made["videos"].items())[:2]:
        assert (entry["fps"], entry["frames"], entry["windows"]) == (12.0, 20, 2)
        # ActionFormer puts a moment at (t fps - num_frames / 2) / feat_stride: row i, its middle.
        seconds = entry["first"] + entry["step"] * np.arange(2)
        moments = (seconds * entry["fps"] - made["window"] / 2) / made["stride"]
        np.testing.assert_allclose(moments, [0, 1], atol=1e-9)
        rows = np.load(tmp_path / f"{name}.npy")
        assert (rows.dtype, rows.shape) == (np.float32, (2, made["width"]))
        found = model.features(shapes / f"{name}.mp4", window=16, stride=4)
        np.testing.assert_allclose(found, rows, rtol=1e-4, atol=1e-5)
    said = "window=20 is not 16 frames n apart"
    refused(said, model.features, shapes / f"{name}.mp4", window=20)
    # Repeated, no row is written; killed, the index behind: the same again.
    rows = {path: np.load(path) for path in tmp_path.rglob("*.npy")}
    before = {path: path.stat().st_mtime_ns for path in [*rows, index]}
    assert sweep.run(config, tmp_path) == values
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for path in list(rows)[3:9]:
        path.unlink()
    index.write_text(json.dumps({**made, "videos": dict(list(made["videos"].items())[:1])}))
    assert sweep.run(config, tmp_path) == values
    assert {*tmp_path.rglob("*.npy")} == rows.keys()
    for path, before in rows.items():  # Batches are others, so sums may be, too.
        np.testing.assert_allclose(np.load(path), before, rtol=1e-4, atol=1e-5)
    assert json.loads(index.read_text()) == made
    # Others are refused.
    config.options.stride = 2
    refused("stride.* 4 -> 2", sweep.run, config, tmp_path)


def test_smoke_makes_its_own_videos(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "run", lambda config, workdir: config.data.test)
    made = sweep.run(recipe.get_config("smoke"), tmp_path)
    assert len(pathlib.Path(made).read_text().splitlines()) == 8


def test_one_bad_video_is_named_and_all_bad_ones_end_it(shapes, pretrained, tmp_path, caplog):
    config, listed = tiny.frozen(recipe, shapes, pretrained, "videomaev2"), tmp_path / "videos.txt"
    (tmp_path / "empty.mp4").write_bytes(b"")
    good = shapes / (shapes / "test.txt").read_text().split()[0]
    listed.write_text(f"{good}\n{tmp_path / 'empty.mp4'}\n")
    config.data.test = str(listed)
    with caplog.at_level(logging.WARNING):
        values = sweep.run(config, tmp_path / "one")
    assert values == {"num_videos": 1, "num_unreadable": 1, "num_windows": 2}
    assert re.search(r"cannot use video .*empty\.mp4: the file is empty", caplog.text)
    index = json.loads((tmp_path / "one" / "features.json").read_text())
    assert list(index["unreadable"].values()) == ["the file is empty (0 bytes)"]
    listed.write_text(f"{tmp_path / 'empty.mp4'}\n")
    said = r"no video can be used \(first: .*empty\.mp4"
    refused(said, sweep.run, config, tmp_path / "none")


def test_names_follow_the_list_and_stay_inside():
    for ids, names in {
        ("a/b.mp4", "a/c.d.avi", "raw.frames"): ["a/b", "a/c.d", "raw.frames"],
        ("/x/y/a.mp4", "/x/z/b.mp4"): ["y/a", "z/b"],
        ("gs://x/y/a.mp4", "gs://x/y/b.mp4"): ["a", "b"],
        ("../v/a.mp4", "../w/b.mp4"): ["v/a", "w/b"],
    }.items():
        assert frozen.names_of(ids) == names
    said = r"a\.mp4 and a\.avi would both be a\.npy"
    refused(said, frozen.names_of, ["a.mp4", "a.avi"])
