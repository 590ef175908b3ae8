"""The checker finds what is wrong with a list, and outlives what kills a decoder."""

import csv
import os
import unittest.mock

import pytest
from deadly import Deadly
from packing import one_by_one, video

from input_pipeline import check, command
from input_pipeline.sources.records import DataError, Record
from input_pipeline.workers import each


def test_every_broken_video_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check, "each", one_by_one)
    for name, count in (("good", 30), ("other", 20), ("short", 3)):
        video(tmp_path / f"{name}.mp4", count=count)
    flipped = bytearray(video(tmp_path / "flipped.mp4", count=30, g="1", crf="1").read_bytes())
    flipped[8000:8400] = bytes(400)  # Of 45 kB.
    (tmp_path / "flipped.mp4").write_bytes(flipped)
    # With its index in front a cut file can be opened.
    whole = video(tmp_path / "cut.mp4", movflags="faststart", crf="1").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    names = ["good", "other", "short", "flipped", "cut", "gone"]
    (tmp_path / "list.txt").write_text("".join(f"{name}.mp4 0\n" for name in names))
    (tmp_path / "classes.txt").write_text("run\njump\n")
    out = tmp_path / "table.csv"
    assert check.main([str(tmp_path / "list.txt"), "--out", str(out)]) == 1
    with out.open(newline="") as file:
        rows = {row["id"].removesuffix(".mp4"): row for row in csv.DictReader(file)}
    assert rows["good"] == {
        **{"id": "good.mp4", "label": "0", "frames": "30", "height": "48", "width": "64"},
        **{"fps": "25.0", "codec": "h264", "problem": "", "class": "run", "split": "train"},
    }
    frames = int(rows["cut"]["frames"])
    assert 8 < frames < 40
    cut = f"cut short: {40 - frames} packets of its header are missing"
    assert rows["cut"]["problem"].split("; ")[0] == cut
    assert rows["flipped"]["frames"] == "30"
    assert int(rows["flipped"]["problem"].removeprefix("damaged: ").split()[0]) >= 1
    others = {name: rows[name]["problem"] for name in ("other", "short", "gone")}
    assert others == {
        "other": "",
        "short": "too short: 3 of 8 frames",
        "gone": "unreadable: no such file",
    }
    printed = capsys.readouterr().out
    assert "gone.mp4: unreadable: no such file\n" in printed
    assert "2 good" in printed
    good = tmp_path / "good.txt"
    good.write_text("good.mp4 0\nother.mp4 1\nother.mp4\n")
    assert check.main(["--out", str(out), str(good)]) == 0
    assert capsys.readouterr().out.startswith("train: 3 videos: run 1, jump 1\n3 good\n")


def test_a_crash_or_a_hang_costs_its_record(tmp_path, capsys):
    good = Record("good", str(video(tmp_path / "good.mp4", count=16)), 0)
    os.mkfifo(tmp_path / "hangs.mp4")  # Reading waits for a writer.
    bad = [Deadly("crashes", "", 0), Record("hangs", str(tmp_path / "hangs.mp4"), 0)]
    rows = list(each(check.look, [good, *bad, good], workers=2, timeout=1))
    assert [row.id for row in rows] == ["good", "crashes", "hangs", "good"]
    assert [row.frames for row in rows] == [16, 0, 0, 16]
    assert rows[1].problem == "unreadable: the decoder crashed (SIGABRT)"
    assert rows[2].problem == "unreadable: no answer from the decoder in 1 s"
    assert "4/4" in capsys.readouterr().err


def test_a_command_ends_with_one_line(capsys):
    for raised, code, line in (
        (KeyboardInterrupt(), "130", "stopped by Ctrl-C"),
        (DataError("train.txt: no videos in it"), "2", "error: train.txt: no videos in it"),
    ):
        with pytest.raises(SystemExit, match=code):
            command.run(unittest.mock.Mock(side_effect=raised))
        assert capsys.readouterr().err == f"{line}\n"
