"""Features of whole videos: files that another program reads, whole, resumed, of one encoder."""

import json
import logging
import re

import numpy as np
import pytest

import mvm
from configs import features as recipe
from mvm import frozen, sweep
from mvm.data import Record
from mvm.types import UserError


def configure(shapes, pretrained, argument=""):
    config = recipe.get_config(argument)
    config.init_from, config.data.test = str(pretrained), str(shapes / "test.txt")
    config.data.update(frame_stride=1, image_size=32, threads=2)
    return config


def test_files_and_index_are_whole_and_resumed(shapes, pretrained, tmp_path):
    config, index = configure(shapes, pretrained), tmp_path / "features.json"
    values = sweep.run(config, tmp_path)
    assert values == {"num_videos": 19, "num_unreadable": 0, "num_windows": 38}
    made = json.loads(index.read_text())
    assert (made["window"], made["stride"], made["pixels"]) == (16, 4, "normalised")
    assert set(tmp_path.rglob("*.npy")) == {tmp_path / f"{name}.npy" for name in made["videos"]}
    model = mvm.load(pretrained)
    for name, entry in list(made["videos"].items())[:2]:
        assert entry == {"fps": 12.0, "frames": 20, "windows": 2}
        rows = np.load(tmp_path / f"{name}.npy")
        assert (rows.dtype, rows.shape) == (np.float32, (2, 48))
        found = model.features(shapes / "videos" / f"{name}.mp4", window=16, stride=4)
        np.testing.assert_allclose(found, rows, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="window=20 is not 16 frames n apart"):
        model.features(shapes / "videos" / f"{name}.mp4", window=20)
    # Repeated: nothing is written; killed, the index behind: the same bytes again.
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("?*.*")}
    rows = {path: path.read_bytes() for path in tmp_path.rglob("*.npy")}
    assert sweep.run(config, tmp_path) == values
    written = {path.name for path in files if path.stat().st_mtime_ns != files[path]}
    assert written <= {"config.json", ".lock"}
    for path in list(rows)[3:9]:
        path.unlink()
    index.write_text(json.dumps({**made, "videos": dict(list(made["videos"].items())[:1])}))
    assert sweep.run(config, tmp_path) == values
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.npy")} == rows
    assert json.loads(index.read_text()) == made
    # Others are refused.
    index.write_text(json.dumps({**made, "digest": "0"}))
    with pytest.raises(UserError, match="features of digest=0, not "):
        sweep.run(config, tmp_path)
    config.options.stride = 2
    with pytest.raises(UserError, match=r"stride.* 4 -> 2"):
        sweep.run(config, tmp_path)


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
    assert list(index["unreadable"].values()) == ["the file is empty (0 bytes)"]
    listed.write_text(f"{tmp_path / 'empty.mp4'}\n")
    with pytest.raises(UserError, match=r"no video can be used \(first: .*empty\.mp4"):
        sweep.run(config, tmp_path / "none")


def test_names_are_paths_below_the_folder_that_all_share():
    for ids, names in {
        ("a/b.mp4", "a/c.d.avi"): ["b", "c.d"],
        ("raw.frames", "v/e.mp4"): ["raw.frames", "v/e"],
        ("/x/y/a.mp4", "/x/z/b.mp4"): ["y/a", "z/b"],
        ("gs://x/y/a.mp4", "../b.mp4"): ["gs:/x/y/a", "b"],
    }.items():
        assert frozen.names_of([Record(one, "", -1) for one in ids])[1] == names
    with pytest.raises(UserError, match=r"a\.mp4 and a\.avi would both be a\.npy"):
        frozen.names_of([Record("a.mp4", "", -1), Record("a.avi", "", -1)])
