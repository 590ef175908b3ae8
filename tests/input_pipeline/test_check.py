"""The checker finds what is wrong with a list, and outlives what kills or stops a decoder."""

import csv
import os
import pathlib
import signal
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
import pytest

from input_pipeline import check, index, isolate, show
from input_pipeline.check import Row
from input_pipeline.sources.records import Record
from input_pipeline.synthetic import shapes


def movie(path: pathlib.Path, num_frames: int, size: int = 48) -> pathlib.Path:
    """An mp4 with its index in front, so that a cut file can be opened."""
    rng = np.random.default_rng(num_frames)
    options = {"movflags": "faststart"}
    with av.open(str(path), "w", options=options) as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = size, size, "yuv420p"
        for array in rng.integers(0, 256, (num_frames, size, size, 3), np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("check")
    good = movie(folder / "good.mp4", 30)
    movie(folder / "other.mp4", 20)
    movie(folder / "short.mp4", 3)
    movie(folder / "tiny.mp4", 12, size=16)
    (folder / "copy.mp4").write_bytes(good.read_bytes())
    (folder / "empty.mp4").touch()
    data = good.read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    (folder / "classes.txt").write_text("run\njump\nsleep\n")
    names = ["good", "other", "short", "tiny", "copy", "empty", "cut", "gone"]
    lines = [f"{name}.mp4 {int(name == 'copy')}\n" for name in names]
    (folder / "list.txt").write_text("".join(lines))
    return folder


def test_a_list_with_everything_wrong(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "new" / "table.csv"
    arguments = [str(folder / "list.txt"), "--workers", "2", "--out", str(out)]
    assert check.main(arguments) == 1
    with out.open(newline="") as file:
        rows = {row["id"].removesuffix(".mp4"): row for row in csv.DictReader(file)}
    assert list(rows) == ["good", "other", "short", "tiny", "copy", "empty", "cut", "gone"]
    assert tuple(rows["good"]) == check.COLUMNS
    assert rows["good"] == {
        **{"id": "good.mp4", "label": "0", "frames": "30", "height": "48", "width": "48"},
        **{"fps": "25", "codec": "h264", "seconds": "1.20", "problem": ""},
    }
    problems = {name: row["problem"] for name, row in rows.items()}
    cut = problems.pop("cut").split("; ")
    frames = int(rows["cut"]["frames"])
    assert 8 < frames < 30
    assert cut[0] == f"cut short: {30 - frames} packets of its header are missing"
    assert problems == {
        "good": "",
        "other": "",
        "short": "too short: 3 of 8 frames",
        "tiny": "small: 16x16 pixels",
        "copy": "duplicate: same frames as good.mp4, whose label is 0",
        "empty": "unreadable: the file is empty (0 bytes)",
        "gone": "unreadable: no such file",
    }
    printed = capsys.readouterr().out
    assert "8 videos: 2 good, 6 with a problem" in printed
    assert "1  unreadable: no such file" in printed
    assert "1  cut short\n" in printed
    assert "classes with too few usable videos: sleep (0)" in printed


def test_a_good_list(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.txt").write_text("good.mp4 0\nother.mp4 1\n")
    options = ["--root", str(folder), "--workers", "1", "--out", str(tmp_path / "a.csv")]
    assert check.main([str(tmp_path / "good.txt"), *options]) == 0
    printed = capsys.readouterr().out
    assert "2 videos: 2 good, 0 with a problem" in printed
    assert "20 to 30 frames" in printed


def test_a_flipped_byte_is_damage_with_the_frame_count_unchanged(tmp_path: pathlib.Path) -> None:
    data = bytearray(movie(tmp_path / "a.mp4", 30).read_bytes())
    start = data.rindex(b"mdat") + 200
    data[start + 4000 : start + 4400] = bytes(400)
    row = check.look([Record("a", "a", 0, bytes(data))], check.Limits(), 0)
    assert row.frames == 30
    assert row.problem.startswith("damaged: ")
    assert int(row.problem.split()[1]) >= 1


class Fatal(Sequence[Record]):
    """Records of which one ends the process that reads it, as a decoder's bug would."""

    def __init__(self, records: list[Record], fatal: int, parent: int):
        self.records, self.fatal, self.parent = records, fatal, parent

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        if index == self.fatal and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGSEGV)
        return self.records[index]


def test_a_crash_and_a_hang_cost_one_file_each(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in training: twice 17.5 s of processor time and 30 s, here without the minute.
    started = isolate.Children
    monkeypatch.setattr(isolate, "Children", lambda *args: started(*args[:2], args[2] - 60))
    os.mkfifo(tmp_path / "pipe.mp4")  # Opening it waits for ever, as on a dead network disk.
    videos = [shapes.encode(np.full((16, 32, 32, 3), 40 * i, np.uint8)) for i in range(6)]
    records = [Record(f"{i}", "", 0, data) for i, data in enumerate(videos)]
    records[1] = Record("hangs", str(tmp_path / "pipe.mp4"), 0)
    seen: list[tuple[int, int]] = []
    rows = check.look_at_all(
        Fatal(records, 4, os.getpid()),
        check.Limits(timeout=17.5),
        2,
        lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 6) for done in range(1, 7)]
    assert [row.id for row in rows] == ["0", "hangs", "2", "3", "4", "5"]
    problems = {row.id: row.problem for row in rows if row.problem}
    assert problems == {
        "hangs": "unreadable: the decoder did not answer in 5 s",
        "4": "unreadable: the decoder crashed (SIGSEGV)",
    }
    assert [row.frames for row in rows] == [16, 0, 16, 16, 0, 16]


def test_rare_classes_count_videos_that_can_be_used() -> None:
    rows = [Row("a", 0, 9), Row("b", 0, 9), Row("c", 2, 9), Row("d", 3, 0), Row("e", -1, 9)]
    assert check.rare(rows, ["w", "x", "y", "z", "end"], few=1) == [(1, 0), (3, 0), (4, 0)]
    assert check.rare(rows, [], few=2) == [(1, 0), (2, 1), (3, 0)]


@pytest.mark.parametrize("command", [check, show, index])
def test_ctrl_c_ends_quietly(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: Any,
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "load", stop)
    monkeypatch.setattr(index, "build", stop)
    dataset = ["ucf101"] if command is index else []
    assert command.main([*dataset, str(tmp_path)]) == 130
    assert capsys.readouterr() == ("", "")


def test_an_absent_list_is_one_line(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        check.main([str(tmp_path / "none.txt")])
    assert end.value.code == 2
    assert "no list file" in capsys.readouterr().err.splitlines()[-1]
