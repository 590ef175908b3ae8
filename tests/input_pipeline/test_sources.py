"""Lists, folders and mixtures become records; every bad one is one line that says where."""

import pathlib
import pickle

import av
import cv2
import numpy as np
import pytest

from input_pipeline import preflight
from input_pipeline.sources import lists
from input_pipeline.sources import load as sources
from input_pipeline.sources.frames import Folder, Numbered
from input_pipeline.sources.lists import load
from input_pipeline.sources.load import Source, load_records
from input_pipeline.sources.records import ANY, DataError, Failures, Record
from input_pipeline.video import decode
from input_pipeline.video.base import VideoError


def write(path: pathlib.Path, *lines: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def write_pictures(folder: pathlib.Path, numbers: range, template: str = "img_{:05}.jpg") -> None:
    """Each is a gray of its own number."""
    folder.mkdir(parents=True)
    for n in numbers:
        cv2.imwrite(str(folder / template.format(n)), np.full((12, 16, 3), n, np.uint8))


def grays(record: Record) -> list[int]:
    """The numbers painted into all frames of a record."""
    return [round(frame.mean()) for frame in decode.read_frames(record.source, np.arange, 1)]


def refused(message: str, *args: object, **kwargs: object) -> None:
    """`lists.load` or `load_records` of parts says this in one line."""
    read = load if isinstance(args[0], str) else load_records
    with pytest.raises(DataError) as error:
        read(*args, **kwargs)  # type: ignore[operator]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_lines_of_every_kind(tmp_path: pathlib.Path) -> None:
    rows = {
        "": None,
        "a b/c d.mp4 3": ("a b/c d.mp4", 3),
        "tab.mp4\t4": ("tab.mp4", 4),
        "comma, with space.mp4, 0": ("comma, with space.mp4", 0),
        '"quo,ted.mp4","1"': ("quo,ted.mp4", 1),
        "#20_clap.mp4 2": ("#20_clap.mp4", 2),
        "/absolute.mp4 2": ("/absolute.mp4", 2),
        "gs://bucket/x.mp4 2": ("gs://bucket/x.mp4", 2),
        "my clip 2.avi 7": ("my clip 2.avi", 7),
        "'take 3' 4": ("take 3", 4),
        '"take 3.mp4" 5 ': ("take 3.mp4", 5),
        "take3 6": ("take3", 6),
        "a b/c d.mp4 1": ("a b/c d.mp4#2", 1),
    }
    spec = write(tmp_path / "train.csv", *rows)
    found = load(spec, num_classes=8)
    assert [(r.id, r.label) for r in found] == [row for row in rows.values() if row]
    assert [r.path for r in found[:2]] == [f"{tmp_path}/a b/c d.mp4", f"{tmp_path}/tab.mp4"]
    assert [r.path for r in found[5:7]] == ["/absolute.mp4", "gs://bucket/x.mp4"]
    assert found[-1].path == f"{tmp_path}/a b/c d.mp4"
    unlabelled = write(tmp_path / "list.txt", "clip 1.mp4", "b.mp4 7", "c.mp4 0 -1")
    assert [(r.id, r.label) for r in load(unlabelled)] == [
        ("clip 1.mp4", -1),
        ("b.mp4", 7),
        ("c.mp4", -1),
    ]
    assert load(unlabelled, root="gs://videos/")[0].path == "gs://videos/clip 1.mp4"


def test_text_in_other_encodings(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "list.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "gbk", "utf-16-le"):
        file.write_text("视频.mp4 1\r\nb.mp4 0", encoding)
        if encoding in ("gbk", "utf-16-le"):
            refused("list.txt: is not UTF-8 text; save it as UTF-8", str(file), num_classes=2)
            continue
        found = load(str(file), num_classes=2)
        assert [(r.id, r.label) for r in found] == [("视频.mp4", 1), ("b.mp4", 0)]


def test_bad_lists_are_named(tmp_path: pathlib.Path) -> None:
    for name in ("nothing", "flat", "hollow/class", "split/train/run", "split/val/run"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "flat/a.mp4").touch()
    binary = tmp_path / "video.mp4"
    binary.write_bytes(bytes(range(256)))
    cases = {
        "": "no list file or folder at ''",
        str(tmp_path / "absent.csv"): "absent.csv'; check the path",
        f"{tmp_path}/a.txt + {tmp_path}/b.txt": "give several sources as data.mix",
        str(tmp_path / "nothing"): "nothing: no class folders in it",
        str(tmp_path / "flat"): "flat: no class folders in it",
        str(tmp_path / "hollow"): "hollow: no videos in it",
        str(tmp_path / "split"): f"holds train and val, no classes; name one of them, "
        f"such as {tmp_path}/split/train",
        str(binary): "video.mp4: is not UTF-8 text",
    }
    rows = {
        "": "no videos in it",
        "a.mp4 0\nb.mp4 run": "line 2: no integer label after the path in 'b.mp4 run'",
        "a.mp4 1": "line 1: label 1 is outside 0..0; correct it or data.num_classes=1",
        "path,label\na.mp4,0": "'path,label', which looks like a header: delete that line",
        "\na.mp4 -1": "line 2: label -1 is outside 0..0",
        "a.mp4 0 -1": "line 1: label -1 is outside 0..0",
        "b.mp4 0\na.mp4 1 3": "line 2: more than one label in 'a.mp4 1 3'",
        "a.mp4 1,3,4": "line 1: more than one label in 'a.mp4 1,3,4'",
        "some/folder 24 1 3 4": "line 1: more than one label",
        f"a.mp4 {2**31}": f"line 1: {2**31} does not fit into 32 bits",
    }
    for number, (text, message) in enumerate(rows.items()):
        cases[write(tmp_path / f"{number}.csv", text)] = message
    for spec, message in cases.items():
        refused(message, spec, num_classes=1)
    for text in ("path,label\na.mp4,0", "path\na.mp4", "x y\nrun 0 8"):
        header = text.partition("\n")[0]
        spec = write(tmp_path / "list.csv", text)
        refused(f"line 1: '{header}' looks like a header: del", spec)
    (tmp_path / "path").mkdir()  # A folder of pictures may be called so.
    assert load(write(tmp_path / "list.csv", "path\na.mp4"))[0].id == "path"


def test_class_folders_are_walked_to_their_depth_and_nothing_is_lost_in_silence(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    videos = ["run/x.apng", "run/y.gif", "walk/a.MPG4", "walk/b/c/d.3gp", "walk/²/f.ts"]
    for name in (*videos, "walk/notes.txt", "run/z.jpg", "readme.md", ".hidden/y.mp4", "run/1.mxf"):
        write(tmp_path / name)
    (tmp_path / "swim").mkdir()
    (tmp_path / "walk/b/again").symlink_to(tmp_path / "walk", target_is_directory=True)
    write_pictures(tmp_path / "walk/v1", range(8, 12), "{}.png")
    found = load(str(tmp_path), num_classes=3)
    wanted = sorted([*videos, "run/1.mxf", "walk/v1"])
    assert sorted((r.id, r.label) for r in found) == [(n, 2 * n.startswith("walk")) for n in wanted]
    assert all(r.path == str(tmp_path / r.id) for r in found)
    (pictures,) = (record for record in found if record.id == "walk/v1")
    assert grays(pictures) == [8, 9, 10, 11]  # Not 10, 11, 8, 9.
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path}: 3 files passed over, no videos by name: readme.md, run/z.jpg, walk/notes.txt",
        f"{tmp_path}: no video in class swim",
    ]


def test_folders_of_pictures_in_a_list(tmp_path: pathlib.Path) -> None:
    write_pictures(tmp_path / "v 2.x", range(3), "{}.png")
    found = load(write(tmp_path / "list.txt", "absent 0", "clip.mp4 0", "'v 2.x' 1"), num_classes=2)
    assert [isinstance(r.data, Folder) for r in found] == [True, False, True]
    assert grays(found[2]) == [0, 1, 2]
    with pytest.raises(VideoError, match="no such folder"):
        decode.probe(found[0].source)


def test_raw_frames(tmp_path: pathlib.Path) -> None:
    write_pictures(tmp_path / "ssv2/7", range(1, 21))
    write_pictures(tmp_path / "ava 2", range(30, 60))
    spec = write(tmp_path / "train.csv", "k400/a b 2.mp4 0 -1", "ssv2/7 1 20", "'ava 2',40,16")
    whole, *raw = load(spec)
    assert whole == Record("k400/a b 2.mp4", f"{tmp_path}/k400/a b 2.mp4", -1)
    assert raw[0].data == Numbered(f"{tmp_path}/ssv2/7", lists.TEMPLATE, 1, 20)
    assert [record.label for record in raw] == [-1, -1]
    assert [grays(record) for record in raw] == [list(range(1, 21)), list(range(40, 56))]
    for first in (0, 1):
        write_pictures(tmp_path / f"{first}/9", range(first, first + 6), "{:03}.png")
        spec = write(tmp_path / "val.csv", "absent 7 0", f"{first}/9 6 1")
        found = load(spec, num_classes=2, template="{:03}.png")
        assert [(r.label, r.num_frames) for r in found] == [(0, 7), (1, 6)]
        assert grays(found[1]) == list(range(first, first + 6))
    message = f"no picture {tmp_path}/absent/img_00001.jpg; rows of raw frames are `folder total "
    refused(message, spec, num_classes=2)
    refused("`folder start total` here; say how the files are called: data.template=", spec)
    for template in ("img.jpg", "{}{}.jpg", "{:q}.jpg", "{name}.jpg"):
        refused("has no place for a number", spec, num_classes=2, template=template)
    rows = [f"1/9 8 {n % 3}" for n in range(5_000)]
    big = load(write(tmp_path / "big.csv", *rows), num_classes=3, template="{:03}.png")
    assert big[-1].data == Numbered(f"{tmp_path}/1/9", "{:03}.png", 1, 8)


def test_a_plain_source_is_the_sequence_itself(tmp_path: pathlib.Path) -> None:
    spec = write(tmp_path / "a.csv", "x.mp4 1", "y.mp4 0")
    records = sources.load(spec, num_classes=2)
    assert records == load_records([Source(spec)], 2) == lists.load(spec, num_classes=2)
    assert sources.parts_of(records) == (sources.Part(0, 1.0, records),)
    (record,) = load_records([Source(write(tmp_path / "b.csv", "x.mp4 1"), "gs://v", stride=3)], 2)
    assert record == Record("x.mp4", "gs://v/x.mp4", 1, stride=3)


def test_parts_keep_their_order_and_take_their_values(tmp_path: pathlib.Path) -> None:
    parts = [
        Source(write(tmp_path / "a+b/k400.csv", "x.mp4 0", "y.mp4 1", "x.mp4 2")),
        Source(write(tmp_path / "ssv2.csv", "x.mp4 3", "y.mp4 1"), weight=2.5, stride=2),
        Source(write(tmp_path / "other/k400.csv", "x.mp4 2"), root="gs://videos"),
    ]
    records = load_records(parts, 4)
    assert isinstance(records, sources.Mixture)
    shape = [(p.offset, len(p.records), p.weight) for p in sources.parts_of(records)]
    assert shape == [(0, 3, 1.0), (3, 2, 2.5), (5, 1, 1.0)]
    expected = [
        Record("k400:x.mp4", f"{tmp_path}/a+b/x.mp4", 0),
        Record("k400:y.mp4", f"{tmp_path}/a+b/y.mp4", 1),
        Record("k400:x.mp4#2", f"{tmp_path}/a+b/x.mp4", 2),
        Record("ssv2:x.mp4", f"{tmp_path}/x.mp4", 3, stride=2),
        Record("ssv2:y.mp4", f"{tmp_path}/y.mp4", 1, stride=2),
        Record("k400#2:x.mp4", "gs://videos/x.mp4", 2),
    ]
    assert list(records) == records[:] == list(pickle.loads(pickle.dumps(records))) == expected
    assert records[-1] == expected[-1]
    with pytest.raises(IndexError):
        records[6]
    plain = parts[0].path
    for bad, message in {
        Source(plain, weight=0.0): "weight=0.0; it must be a number above 0",
        Source(plain, weight=float("nan")): "weight=nan",
        Source(plain, weight=float("inf")): "weight=inf",
        Source(plain, stride=-1): "stride=-1; it must be a whole number",
        Source("absent.csv"): "no list file or folder at 'absent.csv'",
        Source("tfds:absent", str(tmp_path)): "tfds:absent: not prepared in",
    }.items():
        refused(message, [parts[0], bad])


def named(folder: pathlib.Path, rows: list[str], names: list[str]) -> Source:
    if names:
        write(folder / "classes.txt", *names)
    return Source(write(folder / "list.txt", *rows))


def test_labels_of_parts_are_matched_by_name(tmp_path: pathlib.Path) -> None:
    rows = ["x.mp4 0", "y.mp4 1", "z.mp4 2"]
    bare = named(tmp_path / "a", rows, [])
    numbered = named(tmp_path / "b", rows, ["0", "1", "2"])
    first = named(tmp_path / "c", rows, ["run", "walk", "jump"])
    turned = named(tmp_path / "d", rows, ["jump", "run", "walk"])
    for name in ("jump/x.mp4", "run/y.mp4", "walk/z.mp4", ".cache/z.mp4"):
        write(tmp_path / "e" / name)
    tree = Source(str(tmp_path / "e"), weight=3.0)
    assert sources.given_names([numbered, first]) == ["run", "walk", "jump"]
    assert sources.given_names([bare, tree]) == ["jump", "run", "walk"]
    records = load_records([bare, first, turned, numbered, tree], 3)
    assert [r.label for r in records] == [0, 1, 2, 0, 1, 2, 2, 0, 1, 0, 1, 2, 2, 0, 1]
    wanted = sources.Classes(("jump", "walk", "run"), "the model")
    alone = load_records([first], ANY, classes=wanted)
    assert [r.label for r in pickle.loads(pickle.dumps(alone))] == [2, 1, 0]
    assert [r.id for r in alone] == ["x.mp4", "y.mp4", "z.mp4"]
    with pytest.raises(DataError, match="classes in another order"):
        sources.given_names([first, turned])
    assert sources.num_classes_of(records) == 3


def test_other_names_are_refused_with_both_sources(tmp_path: pathlib.Path) -> None:
    first = named(tmp_path / "a", ["x.mp4 0"], ["run", "walk", "jump"])
    for names, said in (
        (["Run", "jump", "walk"], "class 'run' only in {first} and class 'Run' only in {other}"),
        (["run", "walk"], "class 'jump' only in {first}"),
        (["run", "walk", "jump", "sit"], "class 'sit' only in {other}"),
    ):
        other = named(tmp_path / "-".join(names), ["x.mp4 0"], names)
        refused(said.format(first=first.path, other=other.path), [first, other], ANY)
        load_records([first, other])  # Pre-training knows no classes.
    twice = named(tmp_path / "twice", ["x.mp4 0"], ["run", "walk", "run"])
    refused("two classes are called 'run'", [twice], 3)
    for folder, classes in (("one", range(11)), ("two", range(10))):
        for name in classes:
            write(tmp_path / folder / str(name) / "x.mp4")
    trees = [Source(str(tmp_path / name)) for name in ("one", "two")]
    refused("class '10' only in ", trees, ANY)
    refused("has 3 classes, 8 wanted", [first], 8)


def test_preflight_finds_the_bad_files(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("0.mp4", "1.mp4"):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(10):
                frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    (tmp_path / "empty.mp4").touch()
    write(tmp_path / "text.mp4", "no video")
    names = ["0.mp4", "empty.mp4", "absent.mp4", "text.mp4", "1.mp4"]
    records = [Record(name, str(tmp_path / name), 0) for name in names]
    reasons = ["the file is empty (0 bytes)", "no such file", "not a video FFmpeg can read"]
    bad = preflight.check(records, min_frames=8)
    assert [one[:2] for one in bad] == [(1, True), (2, True), (3, True)]
    assert all(one.reason.startswith(reason) for one, reason in zip(bad, reasons))
    assert "data.min_frames=11" in preflight.check(records[:1], 11)[0].reason
    # Two evenly spaced records are opened, the first and the last: the text is not noticed.
    assert [one[:2] for one in preflight.check(records, 8, sample=2)] == [(1, False), (2, False)]
    assert preflight.check([], 8) == []
    for name, count in {"a": 10, "b": 9, "c": 10}.items():
        write_pictures(tmp_path / name, range(1, count + 1))
    (tmp_path / "c/img_00010.jpg").write_bytes(b"")
    (tmp_path / "none").mkdir()
    spec = write(tmp_path / "l", "a 10 0", "b 10 0", "c 10 0", "a 5 0", "none 0", "a 0", "off 0")
    found = load(spec, num_classes=1)
    assert [(found[one.position].id, one.reason) for one in preflight.check(found, 8)] == [
        ("b", "img_00010.jpg: no such file"),
        ("c", "img_00010.jpg: the file is empty (0 bytes)"),
        ("a#2", "5 frames, fewer than data.min_frames=8"),
        ("none", "no pictures in the folder"),
        ("off", "no such folder"),
    ]
    shares = [preflight.check(found, 8, shard=(number, 3)) for number in range(3)]
    assert sorted(one for share in shares for one in share) == preflight.check(found, 8)


def test_failures_are_listed_once_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    failures = Failures()
    for name in ("b", "a", "b"):
        failures.add(name, f"reason {name}")
    assert failures.items == [("b", "reason b"), ("a", "reason a")]
    assert failures.count == 3
    assert [r.getMessage() for r in caplog.records] == [
        "cannot use video b: reason b",
        "cannot use video a: reason a",
    ]
