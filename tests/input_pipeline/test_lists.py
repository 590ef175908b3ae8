"""Lists and folders become records; every bad one is refused with one line that says where."""

import pathlib
from typing import Any

import av
import cv2
import numpy as np
import pytest

from input_pipeline import preflight
from input_pipeline.sources import lists, records
from input_pipeline.sources.frames import Folder, Numbered
from input_pipeline.sources.lists import load
from input_pipeline.sources.records import DataError, Record
from input_pipeline.video import decode
from input_pipeline.video.base import VideoError


def write(path: pathlib.Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def write_video(path: pathlib.Path, num_frames: int) -> Record:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for t in range(num_frames):
            image = np.full((48, 64, 3), 20 * t, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return Record(path.name, str(path), 0)


def write_pictures(folder: pathlib.Path, numbers: range, template: str = "img_{:05}.jpg") -> None:
    """Each is a gray of its own number."""
    folder.mkdir(parents=True)
    for n in numbers:
        cv2.imwrite(str(folder / template.format(n)), np.full((12, 16, 3), n, np.uint8))


def grays(record: Record) -> list[int]:
    """The numbers painted into all frames of a record."""
    return [round(frame.mean()) for frame in decode.read_frames(record.source, np.arange, 1)]


def test_lines_of_every_kind(tmp_path: pathlib.Path) -> None:
    spec = write(
        tmp_path / "train.csv",
        "",
        "a b/c d.mp4 3",
        "tab.mp4\t4",
        "comma, with space.mp4, 0",
        '"quo,ted.mp4","1"',
        "#20_clap.mp4 2",
        "/absolute.mp4 2",
        "gs://bucket/x.mp4 2",
        "a b/c d.mp4 1",
    )
    here = str(tmp_path)
    assert load(spec, num_classes=5) == [
        Record("a b/c d.mp4", f"{here}/a b/c d.mp4", 3),
        Record("tab.mp4", f"{here}/tab.mp4", 4),
        Record("comma, with space.mp4", f"{here}/comma, with space.mp4", 0),
        Record("quo,ted.mp4", f"{here}/quo,ted.mp4", 1),
        Record("#20_clap.mp4", f"{here}/#20_clap.mp4", 2),
        Record("/absolute.mp4", "/absolute.mp4", 2),
        Record("gs://bucket/x.mp4", "gs://bucket/x.mp4", 2),
        Record("a b/c d.mp4#2", f"{here}/a b/c d.mp4", 1),
    ]
    assert load(spec, root="gs://videos/")[0].path == "gs://videos/a b/c d.mp4"


def test_lists_without_labels(tmp_path: pathlib.Path) -> None:
    spec = write(tmp_path / "list.txt", "clip 1.mp4", "b.mp4 7")
    assert [(r.id, r.label) for r in load(spec)] == [("clip 1.mp4", -1), ("b.mp4", 7)]


@pytest.mark.parametrize(
    "row", ["a.mp4 2147483648", "a -2147483649", "a 16 20240101123456", f"a.mp4 {2**63}"]
)
def test_a_label_that_no_batch_could_hold(tmp_path: pathlib.Path, row: str) -> None:
    path, _, last = row.rpartition(" ")
    spec = write(tmp_path / "list.txt", "first.mp4", row)
    with pytest.raises(DataError, match=f"list.txt, line 2: {last} does not fit into 32"):
        load(spec)
    mended = write(tmp_path / "list.txt", f'"{row}"', f"{path}.mp4 2147483647")
    assert [(r.id, r.label) for r in load(mended)] == [(row, -1), (f"{path}.mp4", 2**31 - 1)]


def test_class_folders_are_walked_to_their_depth_and_nothing_is_lost_in_silence(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    videos = [
        "run/x.apng",
        "run/y.gif",
        "walk/a.MPG4",
        "walk/b/c/d.3gp",
        "walk/e.mxf",
        "walk/²/f.ts",
    ]
    for name in (*videos, "walk/notes.txt", "run/z.jpg", "readme.md", ".hidden/y.mp4"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "swim").mkdir()
    (tmp_path / "walk/b/again").symlink_to(tmp_path / "walk", target_is_directory=True)
    records = load(str(tmp_path), num_classes=3)
    assert sorted((r.id, r.label) for r in records) == [
        (name, 2 * name.startswith("walk")) for name in sorted(videos)
    ]
    assert all(r.path == str(tmp_path / r.id) for r in records)
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path}: 3 files passed over, no videos by name: readme.md, run/z.jpg, walk/notes.txt",
        f"{tmp_path}: no video in class swim",
    ]


def test_text_in_other_encodings(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "list.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        file.write_text("视频.mp4 1\r\nb.mp4 0", encoding)
        assert [(r.id, r.label) for r in load(str(file), num_classes=2)] == [
            ("视频.mp4", 1),
            ("b.mp4", 0),
        ]
    for encoding in ("gbk", "utf-16-le"):
        file.write_text("视频.mp4 1\r\nb.mp4 0", encoding)
        with pytest.raises(DataError, match=r"list\.txt: is not UTF-8 text; save it as UTF-8$"):
            load(str(file), num_classes=2)


@pytest.mark.parametrize("row", ["a.mp4 1 3", "a.mp4 1 3 4", "a.mp4 1,3,4", "some/folder 24 1 3 4"])
def test_several_labels_are_refused(tmp_path: pathlib.Path, row: str) -> None:
    spec = write(tmp_path / "list.txt", "b.mp4 2", row)
    with pytest.raises(DataError, match=rf"^{spec}, line 2: more than one label in '{row}'"):
        load(spec, num_classes=5)


def test_raw_frames_of_pretraining(tmp_path: pathlib.Path) -> None:
    write_pictures(tmp_path / "ssv2/7", range(1, 21))
    write_pictures(tmp_path / "ava 2", range(30, 60))
    spec = write(
        tmp_path / "train.csv",
        "k400/a b 2.mp4 0 -1",
        "k400/odd.ogv 0 -1",
        "ssv2/7 1 20",
        "'ava 2',40,16",
    )
    here = str(tmp_path)
    assert load(spec) == [
        Record("k400/a b 2.mp4", f"{here}/k400/a b 2.mp4", -1),
        Record("k400/odd.ogv", f"{here}/k400/odd.ogv", -1),
        Record(
            "ssv2/7", f"{here}/ssv2/7", -1, Numbered(f"{here}/ssv2/7", lists.TEMPLATE, 1, 20), 20
        ),
        Record("ava 2", f"{here}/ava 2", -1, Numbered(f"{here}/ava 2", lists.TEMPLATE, 40, 16), 16),
    ]
    assert grays(load(spec)[2]) == list(range(1, 21))
    assert grays(load(spec)[3]) == list(range(40, 56))


@pytest.mark.parametrize("first", [0, 1])
def test_raw_frames_with_labels(tmp_path: pathlib.Path, first: int) -> None:
    write_pictures(tmp_path / "9", range(first, first + 6), "{:03}.png")
    write_pictures(tmp_path / "10", range(first, first + 5), "{:03}.png")
    spec = write(tmp_path / "val.csv", "absent 7 0", "9 6 1", "10 5 0")
    for num_classes in (2, 0):
        found = load(spec, num_classes=num_classes, template="{:03}.png")
        assert [r.num_frames for r in found] == [7, 6, 5]
        assert [r.label for r in found] == [0, 1, 0]
        assert grays(found[1]) == list(range(first, first + 6))
        assert grays(found[2]) == list(range(first, first + 5))
    with pytest.raises(DataError) as error:
        load(spec, num_classes=2)
    assert str(error.value) == (
        f"{spec}, line 1: no picture {tmp_path}/absent/img_00001.jpg; say how raw frames are "
        "called: val.csv?template=img_{:05}.jpg"
    )
    for template in ("img.jpg", "{}{}.jpg", "{:q}.jpg", "{name}.jpg"):
        with pytest.raises(DataError, match="has no place for a number"):
            load(spec, num_classes=2, template=template)


def test_numbers_behind_names(tmp_path: pathlib.Path) -> None:
    rows = ("my clip 2.avi 7", "'take 3' 4", '"take 3.mp4" 5 ', "take3 6", "x.ogv\t1", "3.mp4, 2")
    found = load(write(tmp_path / "list", *rows), num_classes=8)
    assert [(r.id, r.label, r.data) for r in found] == [
        ("my clip 2.avi", 7, None),
        ("take 3", 4, None),
        ("take 3.mp4", 5, None),
        ("take3", 6, None),
        ("x.ogv", 1, None),
        ("3.mp4", 2, None),
    ]
    bad = write(tmp_path / "bad", "a.mp4 0", "b.mp4 120 5")
    assert [r.label for r in load(bad)] == [0, -1]
    with pytest.raises(DataError, match=r"list, line 1: label -1 is outside 0\.\.7"):
        load(write(tmp_path / "list", "a.mp4 0 -1"), num_classes=8)


def test_folders_of_pictures(tmp_path: pathlib.Path) -> None:
    for name, numbers in {"a/v1": range(8, 12), "a/v 2.x": range(3), "b/v3": range(5)}.items():
        write_pictures(tmp_path / "tree" / name, numbers, "{}.png")
    (tmp_path / "tree/b/notes.txt").touch()
    (tmp_path / "tree/c").mkdir()
    (tmp_path / "tree/c/y.mp4").touch()
    (tmp_path / "tree/a/w").mkdir()
    (tmp_path / "tree/a/w/z.mp4").touch()
    found = load(str(tmp_path / "tree"), num_classes=3)
    assert [(r.id, r.label) for r in found] == [
        ("a/v 2.x", 0),
        ("a/v1", 0),
        ("a/w/z.mp4", 0),
        ("b/v3", 1),
        ("c/y.mp4", 2),
    ]
    assert grays(found[1]) == [8, 9, 10, 11]  # Not 10, 11, 8, 9.
    rows = ("absent 0", "tree/a/v1 1", "clip.mp4 0", "'tree/a/v 2.x' 1")
    found = load(write(tmp_path / "list.txt", *rows), num_classes=2)
    assert [isinstance(r.data, Folder) for r in found] == [True, True, False, True]
    assert [grays(found[i]) for i in (1, 3)] == [[8, 9, 10, 11], [0, 1, 2]]
    with pytest.raises(VideoError, match="no such folder"):
        decode.probe(found[0].source)


def test_text_decides_without_looking_at_every_file(tmp_path: pathlib.Path) -> None:
    write_pictures(tmp_path / "0", range(1, 9))
    rows = [f"{n} 8 {n % 3}" for n in range(5_000)]
    found = load(write(tmp_path / "big.csv", *rows), num_classes=3)
    assert len(found) == 5_000
    assert found[-1].data == Numbered(f"{tmp_path}/4999", lists.TEMPLATE, 1, 8)


@pytest.mark.parametrize("rows", [("path,label", "a.mp4,0"), ("path", "a.mp4"), ("x y", "run 8 0")])
def test_a_header_is_no_video_of_a_list_without_labels(
    tmp_path: pathlib.Path, rows: tuple[str, ...]
) -> None:
    spec = write(tmp_path / "list.csv", "", *rows)
    with pytest.raises(DataError, match=rf"^{spec}, line 2: '{rows[0]}' looks like a header: del"):
        load(spec)
    write_pictures(tmp_path / rows[0], range(1, 9))
    write_pictures(tmp_path / "run", range(8))
    assert load(spec)[0].id == rows[0]


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
        write(tmp_path / "empty.csv", ""): "empty.csv: no videos in it",
        str(tmp_path / "nothing"): "nothing: no class folders in it",
        str(tmp_path / "flat"): "flat: no class folders in it",
        str(tmp_path / "hollow"): "hollow: no videos in it",
        str(binary): "video.mp4: is not UTF-8 text",
        write(tmp_path / "word.csv", "a.mp4 0", "b.mp4 run"): (
            "word.csv, line 2: no integer label after the path in 'b.mp4 run'"
        ),
        write(tmp_path / "high.csv", "a.mp4 1"): (
            "high.csv, line 1: label 1 is outside 0..0; correct it or data.num_classes=1"
        ),
        write(
            tmp_path / "header.csv", "path,label", "a.mp4,0"
        ): "line 1: no integer label after the "
        "path in 'path,label', which looks like a header: delete that line",
        write(tmp_path / "low.csv", "", "a.mp4 -1"): "low.csv, line 2: label -1 is outside 0..0",
    }
    for spec, message in cases.items():
        with pytest.raises(DataError) as error:
            load(spec, num_classes=1)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_preflight_finds_the_bad_files(tmp_path: pathlib.Path) -> None:
    good = [write_video(tmp_path / f"{n}.mp4", 10) for n in range(2)]
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    names = ["0.mp4", "empty.mp4", "absent.mp4", "text.mp4", "1.mp4"]
    records = [Record(name, str(tmp_path / name), 0) for name in names]
    unreadable = "not a video FFmpeg can read (Invalid data found when processing input)"
    assert preflight.check(records, min_frames=8) == [
        (1, True, "the file is empty (0 bytes)"),
        (2, True, "no such file"),
        (3, True, unreadable),
    ]
    assert preflight.check(good, 11)[0].reason == "10 frames, fewer than data.min_frames=11"
    # Two evenly spaced records are opened, the first and the last: the text is not noticed.
    assert [bad[:2] for bad in preflight.check(records, 8, sample=2)] == [(1, False), (2, False)]
    assert preflight.check([], 8) == []


def test_shares_together_look_at_every_file_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [Record(f"{n}", str(tmp_path / f"{n}"), 0) for n in range(1000)]
    seen: list[str] = []
    monkeypatch.setattr(preflight, "_bad_size", lambda path: seen.append(path) or "absent")
    shares = []
    for number in range(3):
        shares.append(preflight.check(records, 8, shard=(number, 3)))
        assert len(seen) in (334, 333)
        seen.clear()
    whole = preflight.check(records, 8)
    assert sorted(one for share in shares for one in share) == whole
    assert sum(one.opened for one in whole) == 256


def test_preflight_looks_at_raw_frames(tmp_path: pathlib.Path) -> None:
    write_pictures(tmp_path / "a", range(1, 11))
    write_pictures(tmp_path / "b", range(1, 10))
    write_pictures(tmp_path / "c", range(1, 11))
    (tmp_path / "c/img_00010.jpg").write_bytes(b"")
    (tmp_path / "none").mkdir()
    spec = write(tmp_path / "l", "a 10 0", "b 10 0", "c 10 0", "a 5 0", "none 0", "a 0", "off 0")
    found = load(spec, num_classes=1)
    bad = preflight.check(found, min_frames=8)
    assert [(found[one.position].id, one.reason) for one in bad] == [
        ("b", "img_00010.jpg: no such file"),
        ("c", "img_00010.jpg: the file is empty (0 bytes)"),
        ("a#2", "5 frames, fewer than data.min_frames=8"),
        ("none", "no pictures in the folder"),
        ("off", "no such folder"),
    ]


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
