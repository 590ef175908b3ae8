"""Lists, folders and mixtures become records; every bad one is one line that says where."""

import pickle
import re

import numpy as np
from packing import put, read_frames, refused, write, write_pictures

from benchmarks.input import write_videos
from input_pipeline import check
from input_pipeline.sources import folders
from input_pipeline.sources import load as sources
from input_pipeline.sources.frames import Numbered
from input_pipeline.sources.lists import TEMPLATE, load
from input_pipeline.sources.load import Source, load_records
from input_pipeline.sources.records import ANY, Record


def grays(record):
    """The numbers painted into all frames of a record."""
    return [round(frame.mean()) for frame in read_frames(record.source, np.arange, 1)]


def test_lines_of_every_kind(tmp_path):
    rows = {
        "": None,
        "a b/c d.mp4 3": ("a b/c d.mp4", 3),
        "tab.mp4\t4": ("tab.mp4", 4),
        "comma, with space.mp4, 0": ("comma, with space.mp4", 0),
        '"quo,ted.mp4","1"': ("quo,ted.mp4", 1),
        "#20_clap.mp4 2": ("#20_clap.mp4", 2),
        "/absolute.mp4 2": ("/absolute.mp4", 2),
        "gs://bucket/视频.mp4 2\r": ("gs://bucket/视频.mp4", 2),
        "my clip 2.avi 7": ("my clip 2.avi", 7),
        "'take 3' 4": ("take 3", 4),
        "a b/c d.mp4 1": ("a b/c d.mp4#2", 1),
    }
    found = load(write(tmp_path / "train.csv", *rows), num_classes=8)
    assert [(r.id, r.label) for r in found] == [row for row in rows.values() if row]
    assert found[0].path == found[-1].path == f"{tmp_path}/a b/c d.mp4"
    assert [r.path for r in found[5:7]] == ["/absolute.mp4", "gs://bucket/视频.mp4"]
    unlabelled = write(tmp_path / "list.txt", "clip 1.mp4", "b.mp4 7", "c.mp4 0 -1")
    wanted = [("clip 1.mp4", -1), ("b.mp4", 7), ("c.mp4", -1)]
    assert [(r.id, r.label) for r in load(unlabelled)] == wanted
    assert load(unlabelled, root="gs://videos/")[0].path == "gs://videos/clip 1.mp4"


def test_bad_lists_are_named(tmp_path):
    for name in ("nothing", "hollow/class", "split/train/run", "split/val/run"):
        (tmp_path / name).mkdir(parents=True)
    cases = {
        "": "no list file or folder at ''",
        str(tmp_path / "absent.csv"): "absent.csv'; check the path",
        str(tmp_path / "nothing"): "nothing: no class folders in it",
        str(tmp_path / "hollow"): "hollow: no videos in it",
        str(tmp_path / "split"): f"name one, such as {tmp_path}/split/train",
        write(tmp_path / "gbk.csv", "视频.mp4 0", encoding="gbk"): "not UTF-8 text; save it as",
    }
    rows = {
        "": "no videos in it",
        "a.mp4 0\nb.mp4 run": "line 2, 'b.mp4 run': no integer label",
        "a.mp4 1": "line 1, 'a.mp4 1': label 1 is outside 0..0; correct it or data.num_classes",
        "path,label\na.mp4,0": "line 1, 'path,label': looks like a header: name its columns: data.",
        "b.mp4 0\na.mp4 1 3": "line 2, 'a.mp4 1 3': more than one label",
        "some/folder 24 0": f"no picture {tmp_path}/some/folder/img_00001.jpg",
    }
    for number, (text, message) in enumerate(rows.items()):
        cases[write(tmp_path / f"{number}.csv", text)] = message
    for spec, message in cases.items():
        refused(re.escape(message), load, spec, num_classes=1)


def test_class_folders_are_walked_to_their_depth(tmp_path, caplog):
    videos = ["run/x.mxf", "run/y.gif", "walk/a.MPG4", "walk/b/c/d.3gp", "walk/²/f.ts"]
    put(tmp_path, *videos, "walk/notes.txt", "readme.md", ".hidden/y.mp4")
    (tmp_path / "swim").mkdir()
    write_pictures(tmp_path / "walk/v1", range(8, 12), "{}.png")
    found = load(str(tmp_path), num_classes=3)
    wanted = sorted([*videos, "walk/v1"])
    assert sorted((r.id, r.label) for r in found) == [(n, 2 * n.startswith("walk")) for n in wanted]
    assert all(r.path == str(tmp_path / r.id) for r in found)
    (pictures,) = (record for record in found if record.id == "walk/v1")
    assert grays(pictures) == [8, 9, 10, 11]  # Not 10, 11, 8, 9.
    passed, empty = (record.getMessage() for record in caplog.records)
    assert "2 files passed over" in passed
    assert "no video in class swim" in empty


def test_folders_of_pictures_and_raw_frames(tmp_path):
    write_pictures(tmp_path / "ssv2/7", range(1, 21))
    write_pictures(tmp_path / "ava 2", range(30, 60))
    spec = write(tmp_path / "train.csv", "k400/a b 2.mp4 0 -1", "ssv2/7/ 1 20", "'ava 2',40,16")
    whole, *raw = load(spec)
    assert whole == Record("k400/a b 2.mp4", f"{tmp_path}/k400/a b 2.mp4", -1)
    assert raw[0].data == Numbered(f"{tmp_path}/ssv2/7", TEMPLATE, 1, 20)
    assert [record.label for record in raw] == [-1, -1]
    assert [grays(record) for record in raw] == [list(range(1, 21)), list(range(40, 56))]
    for first in (0, 1):
        write_pictures(tmp_path / f"{first}/9", range(first, first + 6), "{:03}.png")
        spec = write(tmp_path / "val.csv", f"{first}/9 6 1", f"{first}/9 0")
        raw = load(spec, num_classes=2, template="{:03}.png")
        assert [record.label for record in raw] == [1, 0]
        assert [grays(record) for record in raw] == [list(range(first, first + 6))] * 2


def test_parts_keep_their_order_and_take_their_values(tmp_path):
    parts = [
        Source(write(tmp_path / "a+b/k400.csv", "x.mp4 0", "y.mp4 1", "x.mp4 2")),
        Source(write(tmp_path / "ssv2.csv", "x.mp4 3", "y.mp4 1"), weight=2.5, stride=2),
        Source(write(tmp_path / "other/k400.csv", "x.mp4 2"), root="gs://videos"),
    ]
    records = load_records(parts, 4)
    expected = [
        Record("k400:x.mp4", f"{tmp_path}/a+b/x.mp4", 0),
        Record("k400:y.mp4", f"{tmp_path}/a+b/y.mp4", 1),
        Record("k400:x.mp4#2", f"{tmp_path}/a+b/x.mp4", 2),
        Record("ssv2:x.mp4", f"{tmp_path}/x.mp4", 3, stride=2),
        Record("ssv2:y.mp4", f"{tmp_path}/y.mp4", 1, stride=2),
        Record("k400#2:x.mp4", "gs://videos/x.mp4", 2),
    ]
    assert list(records) == list(pickle.loads(pickle.dumps(records))) == expected
    for bad, message in {
        Source(parts[0].path, weight=0.0): "weight=0.0 must be above 0",
        Source(parts[0].path, stride=-2): "stride=-2 not below",
    }.items():
        refused(message, load_records, [parts[0], bad])


def named(folder, rows, names):
    write(folder / "classes.txt", *names)
    return Source(write(folder / "list.txt", *rows))


def test_labels_of_parts_are_matched_by_name(tmp_path):
    rows = ["x.mp4 0", "y.mp4 1", "z.mp4 2"]
    bare = Source(write(tmp_path / "list.txt", *rows))
    numbers = named(tmp_path / "b", rows, ["0", "1", "2"])
    first = named(tmp_path / "c", rows, ["run", "walk", "jump"])
    put(tmp_path / "e", "jump/x.mp4", "run/y.mp4", "walk/z.mp4", ".cache/z.mp4")
    tree = Source(str(tmp_path / "e"), weight=3.0)
    found = sources.named([bare, numbers, first, tree])
    assert [one.names[0] for one in found] == ["0", "run", "jump"]
    assert sources.reference(found) == found[1]
    records = load_records([bare, numbers, first, tree], 3)
    assert [r.label for r in records] == [*[0, 1, 2] * 3, 2, 0, 1]
    wanted = sources.Classes(("jump", "walk", "run"), "the model")
    alone = load_records([first], ANY, classes=wanted)
    assert [(r.id, r.label) for r in alone] == [("x.mp4", 2), ("y.mp4", 1), ("z.mp4", 0)]
    # Other names are refused with both sources.
    other = named(tmp_path / "d", ["x.mp4 0"], ["Run", "jump", "walk"])
    said = f"class 'run' only in {first.path} and class 'Run' only in {other.path}"
    refused(said, load_records, [first, other], ANY)
    load_records([first, other])  # Pre-training knows no classes.
    few = named(tmp_path / "few", ["x.mp4 0"], ["walk"])  # By name: it may lack some.
    assert [r.label for r in load_records([first, few], ANY)] == [0, 1, 2, 1]
    refused("has 3 classes, 8 wanted", load_records, [first], 8)
    twice = named(tmp_path / "twice", ["x.mp4 0"], ["run", "run"])
    refused("two classes are called 'run'", load_records, [twice], ANY)


def test_tables_name_paths_and_classes_by_column(tmp_path):
    rows = ["file,who,action", '"a, b.mp4",x,run', "c 2.mp4,y,jump", "/d.mp4,,run"]
    train = write(tmp_path / "train.csv", *rows)
    part = Source(train, columns=("file", "action"))
    assert sources.named([part]) == [sources.Classes(("jump", "run"), train)]
    found = load_records([part], ANY)
    assert [(r.id, r.label) for r in found] == [("a, b.mp4", 1), ("c 2.mp4", 0), ("/d.mp4", 1)]
    assert found[0].path == f"{tmp_path}/a, b.mp4"
    assert {r.label for r in load_records([part._replace(columns=("file", ""))])} == {-1}
    # Numbers may name classes beside words.
    wanted, given = (sources.Classes(names, "x") for names in (("1", "10", "b"), ("10",)))
    assert sources.order(wanted, given) == (1,)
    # A table of fewer classes has the labels of the first.
    few = Source(write(tmp_path / "val.csv", "file;action", "e.mp4;run"), columns=part.columns)
    assert load_records([few], 2, classes=sources.named([part])[0])[0].label == 1
    numbers = Source(write(tmp_path / "n.csv", "file\taction", "e.mp4\t7"), columns=part.columns)
    assert load_records([numbers], ANY)[0].label == 7
    for columns, said in (
        (("path", "action"), "data.path_column='path' is none of file, who, action"),
        (("file", "label"), "data.label_column='label' is none of"),
        (("file", "who"), "row 4: a path or a label is missing"),
        (("file", ""), "set data.label_column to one of file,who,action"),
    ):
        refused(said, load_records, [part._replace(columns=columns)], ANY)


def test_a_folder_without_splits_is_split_class_by_class(tmp_path):
    def find(seed=0, labelled=True):
        return folders.find(f"{tmp_path}/alone", labelled, seed)

    for n in range(20):
        write(tmp_path / f"alone/{'run' if n < 17 else 'sit'}/{n} 1.mp4")
    write(tmp_path / "alone/one/x.mp4")
    found = find()
    labels = {split: sorted(r.label for r in rs) for split, rs in found.splits.items()}
    assert labels == {"train": [0, *[1] * 13, 2], "test": [1, 1, 2], "val": [1, 1, 2]}
    assert (found.classes, set(found.drawn)) == (("one", "run", "sit"), {"val", "test"})
    assert len({r.path for rs in found.splits.values() for r in rs}) == 21
    assert find() == found == find(labelled=False) != find(seed=1)
    before = [r.id for r in found.splits["test"]]
    write(tmp_path / "alone/run/new.mp4")
    assert len(set(before) - {r.id for r in find().splits["test"]}) <= 1
    for name, text in folders.texts(found, f"{tmp_path}/alone").items():
        (tmp_path / f"{name}.txt").write_text(text)
    again = load(str(tmp_path / "train.txt"), str(tmp_path / "alone"), ANY)
    assert [(r.path, r.label) for r in again] == [(r.path, r.label) for r in found.splits["train"]]
    rows = [f"{n % 6}.mp4 {n % 2}" for n in range(12)]  # Each video twice.
    drawn = folders.find(write(tmp_path / "twice.txt", *rows), True, 0).splits.values()
    assert len([r.path for part in drawn for r in part]) == 6


def test_a_folder_of_splits_or_of_videos_alone(tmp_path):
    names = "Train/run/a.mp4", "Train/run/b.mp4", "Train/sit/a.mp4", "Validation/sit/c.mp4"
    put(tmp_path / "parts", *names)
    parts = folders.find(f"{tmp_path}/parts", True, 0)
    (only,) = parts.splits["val"]
    assert (only.path, only.label) == (f"{tmp_path}/parts/Validation/sit/c.mp4", 1)
    assert parts.splits["test"] == parts.splits["val"]
    assert (len(parts.splits["train"]), parts.drawn) == (3, ())
    (tmp_path / "parts/Validation").rename(tmp_path / "parts/Test")
    assert folders.find(f"{tmp_path}/parts", True, 0).drawn == ("val",)

    put(tmp_path / "flat", "a.mp4", "more/b.mp4")
    flat = folders.find(f"{tmp_path}/flat", False, 0).splits
    assert [(r.id, r.label) for r in flat["train"]] == [("a.mp4", -1), ("more/b.mp4", -1)]
    refused("one class folder alone, more", folders.find, f"{tmp_path}/flat", True, 0)


def test_a_glance_finds_the_bad_files(tmp_path):
    good = write_videos(tmp_path, 2, num_frames=10)
    write_pictures(tmp_path / "a", range(1, 10))
    rows = load(write(tmp_path / "l", "a 10 0", "a 9 0", "a 0", "off 0"), num_classes=1)
    last = "none of the wanted pictures can be read: img_00010.jpg: no such file"
    found = check.glance([good[0], *rows, good[1]], range(6), min_frames=8)
    assert found == [(1, last), (4, "no such file")]
    few = "10 frames, fewer than data.min_frames=11"
    assert check.glance(good, [1], min_frames=11) == [(1, few)]
