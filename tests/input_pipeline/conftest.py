"""Videos to pack, and a pack of them as they are."""

import shutil

import pytest
from packing import UNEVEN, packing, video


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A list of five videos, of which one is text and one is empty, with the names of classes."""
    folder = tmp_path_factory.mktemp("source")
    video(folder / "b.mp4", ticks=UNEVEN, bf="2", g="250")
    video(folder / "xvid.avi", "mpeg4", bf="2", g="12")
    video(folder / "uneven.mkv", ticks=UNEVEN)
    (folder / "text.mp4").write_text("no video\n" * 50)
    (folder / "empty.mp4").touch()
    rows = ["b.mp4 0", "text.mp4 1", "xvid.avi 2", "empty.mp4 1", "uneven.mkv 1"]
    (folder / "train.txt").write_text("\n".join(rows))
    (folder / "classes.txt").write_text("run\njump\nsit\n")
    return folder / "train.txt"


@pytest.fixture(scope="module")
def copied(source, tmp_path_factory):
    return packing(source, tmp_path_factory.mktemp("packed") / "out")


@pytest.fixture
def copy(copied, tmp_path):
    """A copy to do harm to."""
    return shutil.copytree(copied, tmp_path / "copy")
