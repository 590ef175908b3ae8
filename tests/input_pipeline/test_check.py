"""The checker finds what is wrong with a list, and outlives what kills or stops a decoder."""

import csv
import os
import unittest.mock

import numpy as np
import pytest
from deadly import Deadly
from packing import video

from input_pipeline import check, command
from input_pipeline.elements import ClipSpec
from input_pipeline.encode import Options, h264
from input_pipeline.sources.records import DataError, Record
from input_pipeline.workers import each


def movie(num_frames):
    rng = np.random.default_rng(num_frames)
    return h264(rng.integers(0, 256, (num_frames, 48, 48, 3), np.uint8), 25, Options())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    for name, count in (("good", 30), ("other", 20), ("short", 3)):
        (folder / f"{name}.mp4").write_bytes(movie(count))
    (folder / "empty.mp4").touch()
    (folder / "classes.txt").write_text("run\njump\n")
    # With its index in front a cut file can be opened.
    whole = video(folder / "cut.mp4", movflags="faststart", crf="1").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    names = ["good", "other", "short", "empty", "cut", "gone"]
    (folder / "list.txt").write_text("".join(f"{name}.mp4 0\n" for name in names))
    return folder


def test_every_broken_video_is_named(folder, capsys):
    out = folder / "table.csv"
    assert check.main([str(folder / "list.txt"), "--workers", "2", "--out", str(out)]) == 1
    with out.open(newline="") as file:
        rows = {row["id"].removesuffix(".mp4"): row for row in csv.DictReader(file)}
    assert rows["good"] == {
        **{"id": "good.mp4", "label": "0", "frames": "30", "height": "48", "width": "48"},
        **{"fps": "25.0", "codec": "h264", "problem": "", "class": "run", "split": "train"},
    }
    frames = int(rows["cut"]["frames"])
    assert 8 < frames < 40
    cut = f"cut short: {40 - frames} packets of its header are missing"
    assert rows["cut"]["problem"].split("; ")[0] == cut
    assert {name: row["problem"] for name, row in rows.items() if name != "cut"} == {
        "good": "",
        "other": "",
        "short": "too short: 3 of 8 frames",
        "empty": rows["empty"]["problem"],
        "gone": "unreadable: no such file",
    }
    printed = capsys.readouterr()
    for line in ("gone.mp4: unreadable: no such file\n", "2 good"):
        assert line in printed.out
    assert "6/6" in printed.err
    good = folder / "good.txt"
    good.write_text("good.mp4 0\nother.mp4 1\n")
    assert check.main(["--workers", "1", "--out", str(out), str(good)]) == 0
    assert capsys.readouterr().out.startswith("train: 2 videos: run 1, jump 1\n2 good\n")
    mixed = {"train": [Record("a", "a", 0), Record("b", "b", -1)]}
    mixed = command.Data(mixed, ("run",), ClipSpec())
    assert mixed.lines() == ["train: 2 videos: run 1"]


def test_a_flipped_byte_is_damage_with_the_frame_count_unchanged():
    data = bytearray(movie(30))
    start = data.rindex(b"mdat") + 200
    data[start + 4000 : start + 4400] = bytes(400)
    row = check.look(Record("a", "a", 0, bytes(data)))
    assert row.frames == 30
    assert row.problem.startswith("damaged: ")
    assert int(row.problem.split()[1]) >= 1


def test_a_crash_and_a_hang_cost_one_record_each(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")  # Opening it waits for ever, as on a dead network disk.
    (tmp_path / "good.mp4").write_bytes(movie(16))
    records = [Record(f"{i}", str(tmp_path / "good.mp4"), 0) for i in range(6)]
    records[1] = Record("hangs", str(tmp_path / "pipe.mp4"), 0)
    records[4] = Deadly("crashes", "", 0)
    rows = list(each(check.look, records, workers=2, timeout=1))
    assert {row.id: row.problem for row in rows if row.problem} == {
        "hangs": "unreadable: no answer from the decoder in 1 s",
        "crashes": "unreadable: the decoder crashed (SIGSEGV)",
    }
    assert [row.frames for row in rows] == [16, 0, 16, 16, 0, 16]


def test_a_command_ends_with_one_line(capsys):
    for raised, code, line in (
        (KeyboardInterrupt(), "130", "stopped by Ctrl-C"),
        (DataError("train.txt: no videos in it"), "2", "error: train.txt: no videos in it"),
        (OSError("disk full"), "2", "error: disk full"),
    ):
        with pytest.raises(SystemExit, match=code):
            command.run(unittest.mock.Mock(side_effect=raised))
        assert capsys.readouterr().err == f"{line}\n"
