"""Lists and folders become records; every bad one is refused with one line that says where."""

import pathlib

import numpy as np
import pytest

from benchmarks.input import write_videos
from input_pipeline import lists, preflight, records
from input_pipeline.lists import load
from input_pipeline.records import DataError, Record


def write(path: pathlib.Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_lines_of_every_kind(tmp_path: pathlib.Path) -> None:
    spec = write(
        tmp_path / "train.csv",
        "# a comment",
        "",
        "a b/c d.mp4 3",
        "tab.mp4\t4",
        "comma, with space.mp4, 0",
        '"quoted.mp4",1',
        "/absolute.mp4 2",
        "gs://bucket/x.mp4 2",
        "a b/c d.mp4 1",
    )
    here = str(tmp_path)
    assert load(spec, num_classes=5) == [
        Record("a b/c d.mp4", f"{here}/a b/c d.mp4", 3),
        Record("tab.mp4", f"{here}/tab.mp4", 4),
        Record("comma, with space.mp4", f"{here}/comma, with space.mp4", 0),
        Record("quoted.mp4", f"{here}/quoted.mp4", 1),
        Record("/absolute.mp4", "/absolute.mp4", 2),
        Record("gs://bucket/x.mp4", "gs://bucket/x.mp4", 2),
        Record("a b/c d.mp4#2", f"{here}/a b/c d.mp4", 1),
    ]
    assert load(spec, root="gs://videos/")[0].path == "gs://videos/a b/c d.mp4"


def test_lists_without_labels(tmp_path: pathlib.Path) -> None:
    spec = write(tmp_path / "list.txt", "clip 1.mp4", "b.mp4 7")
    assert [(r.id, r.label) for r in load(spec)] == [("clip 1.mp4", -1), ("b.mp4", 7)]


def test_ids_stay_unique_when_a_path_looks_like_a_copy(tmp_path: pathlib.Path) -> None:
    spec = write(tmp_path / "l", "a#2 0", "a 0", "a 0", "a 0")
    ids = [r.id for r in load(spec)]
    assert len(set(ids)) == 4
    assert ids[:2] == ["a#2", "a"]


def test_class_folders(tmp_path: pathlib.Path) -> None:
    for name in ("walk/b.MP4", "walk/a.avi", "walk/notes.txt", "run/x.webm", ".hidden/y.mp4"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
    records = load(str(tmp_path), num_classes=2)
    assert [(r.id, r.label) for r in records] == [
        ("run/x.webm", 0),
        ("walk/a.avi", 1),
        ("walk/b.MP4", 1),
    ]
    assert records[0].path == str(tmp_path / "run/x.webm")
    assert lists.class_names(str(tmp_path), 2) == ["run", "walk"]
    with pytest.raises(DataError, match=r"2 class folders, but data.num_classes=3"):
        load(str(tmp_path), num_classes=3)


def test_class_names_of_a_list(tmp_path: pathlib.Path) -> None:
    spec = write(tmp_path / "val.csv", "a.mp4 0")
    assert lists.class_names(spec, 3) == ["0", "1", "2"]
    write(tmp_path / "classes.txt", "run", "walk slowly")
    assert lists.class_names(spec, 2) == ["run", "walk slowly"]
    with pytest.raises(DataError, match=r"classes.txt: 2 class names, but data.num_classes=3"):
        lists.class_names(spec, 3)


def test_bad_lists_are_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.mp4").touch()
    (tmp_path / "hollow" / "class").mkdir(parents=True)
    binary = tmp_path / "video.mp4"
    binary.write_bytes(bytes(range(256)))
    cases = {
        "": "no list file or folder at ''",
        str(tmp_path / "absent.csv"): "absent.csv'; check the path",
        write(tmp_path / "empty.csv", "# only this"): "empty.csv: no videos in it",
        str(tmp_path / "nothing"): "nothing: no class folders in it",
        str(tmp_path / "flat"): "flat: no class folders in it",
        str(tmp_path / "hollow"): "hollow: no videos in it",
        str(binary): "video.mp4: not a text file",
        write(tmp_path / "word.csv", "a.mp4 0", "b.mp4 run"): (
            "word.csv, line 2: no integer label after the path in 'b.mp4 run'"
        ),
        write(tmp_path / "high.csv", "a.mp4 1"): (
            "high.csv, line 1: label 1 is outside 0..0; correct it or data.num_classes=1"
        ),
        write(tmp_path / "low.csv", "#", "a.mp4 -1"): "low.csv, line 2: label -1 is outside 0..0",
    }
    for spec, message in cases.items():
        with pytest.raises(DataError) as error:
            load(spec, num_classes=1)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_preflight_finds_the_bad_files(tmp_path: pathlib.Path) -> None:
    good = write_videos(tmp_path, 2, num_frames=10)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    names = ["0.mp4", "empty.mp4", "absent.mp4", "text.mp4", "1.mp4"]
    records = [Record(name, str(tmp_path / name), 0) for name in names]
    unreadable = "not a video FFmpeg can read (Invalid data found when processing input)"
    assert preflight.check(records, min_frames=8) == [
        (records[1], "the file is empty (0 bytes)"),
        (records[2], "no such file"),
        (records[3], unreadable),
    ]
    assert preflight.check(good, 11)[0][1] == "10 frames, fewer than data.min_frames=11"
    # Two evenly spaced records are opened, the first and the last: the text is not noticed.
    assert [r.id for r, _ in preflight.check(records, 8, sample=2)] == ["empty.mp4", "absent.mp4"]
    assert preflight.check([], 8) == []


def test_failures_are_listed_once_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    failures = records.Failures()
    for name in np.array(["b", "a", "b"]):
        failures.add(str(name), f"reason {name}")
    assert failures.items == [("b", "reason b"), ("a", "reason a")]
    assert failures.count == 3
    assert [r.getMessage() for r in caplog.records] == [
        "cannot use video b: reason b",
        "cannot use video a: reason a",
    ]
