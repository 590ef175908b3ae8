"""Mixtures are the union of their parts, with names, strides and weights of their own."""

import pathlib
import pickle
from typing import Any

import cv2
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from input_pipeline.sources import lists
from input_pipeline.sources import load as sources
from input_pipeline.sources import tfds as tfds_records
from input_pipeline.sources.frames import Numbered
from input_pipeline.sources.records import ANY, DataError, Record


def write(path: pathlib.Path, *lines: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer that holds up to 127 bytes."""
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def example(name: str, label: int) -> bytes:
    """A `tf.train.Example` as `input_pipeline.pack` stores it, byte by byte."""
    strings = {"id": name.encode(), "video": b"encoded " + name.encode()}
    features = {key: field(1, field(1, value)) for key, value in strings.items()}
    numbers = {"label": label, "num_frames": 9}
    features |= {key: field(3, field(1, bytes([value]))) for key, value in numbers.items()}
    return b"".join(
        field(1, field(1, field(1, key.encode()) + field(2, value)))
        for key, value in features.items()
    )


def joined(message: bytes) -> bytes:
    """One `Features` of the fields that `example` wrote as several: both mean the same."""
    inner = b""
    while message:
        inner, message = inner + message[2 : 2 + message[1]], message[2 + message[1] :]
    return bytes([0x0A, len(inner) & 0x7F | 0x80, len(inner) >> 7]) + inner


def test_a_plain_source_is_the_sequence_itself(tmp_path: pathlib.Path) -> None:
    spec = write(tmp_path / "a.csv", "x.mp4 1", "y.mp4 0")
    records = sources.load(spec, num_classes=2)
    assert records == lists.load(spec, num_classes=2)
    assert sources.parts_of(records) == (sources.Part(0, 1.0, records),)
    for name in ("walk/x.mp4", "run/y.mp4"):
        write(tmp_path / "tree" / name)
    assert [r.id for r in sources.load(str(tmp_path / "tree"))] == ["run/y.mp4", "walk/x.mp4"]


def test_parts_keep_their_order_and_take_their_options(tmp_path: pathlib.Path) -> None:
    first = write(tmp_path / "a+b/k400.csv", "x.mp4 0", "y.mp4 1", "x.mp4 2")
    second = write(tmp_path / "ssv2.csv", "x.mp4 3", "y.mp4 1")
    third = write(tmp_path / "other/k400.csv", "x.mp4 2")
    spec = f"{first} + {second}?weight=2.5&stride=2 + {third}?root=gs://videos"
    records = sources.load(spec, num_classes=4)
    assert isinstance(records, sources.Mixture)
    assert [(p.offset, len(p.records), p.weight) for p in sources.parts_of(records)] == [
        (0, 3, 1.0),
        (3, 2, 2.5),
        (5, 1, 1.0),
    ]
    there = str(tmp_path)
    expected = [
        Record("k400:x.mp4", f"{there}/a+b/x.mp4", 0),
        Record("k400:y.mp4", f"{there}/a+b/y.mp4", 1),
        Record("k400:x.mp4#2", f"{there}/a+b/x.mp4", 2),
        Record("ssv2:x.mp4", f"{there}/x.mp4", 3, stride=2),
        Record("ssv2:y.mp4", f"{there}/y.mp4", 1, stride=2),
        Record("k400#2:x.mp4", "gs://videos/x.mp4", 2),
    ]
    assert list(records) == records[:] == expected
    assert len(records) == 6
    assert records[-1] == expected[-1]
    assert list(pickle.loads(pickle.dumps(records))) == expected
    with pytest.raises(IndexError):
        records[6]


def test_one_source_may_have_options_too(tmp_path: pathlib.Path) -> None:
    (tmp_path / "v").mkdir()
    for n in range(4):
        cv2.imwrite(str(tmp_path / f"v/{n}.png"), np.zeros((8, 8, 3), np.uint8))
    spec = write(tmp_path / "raw.csv", "v 4 1")
    (record,) = sources.load(f"{spec}?template={{}}.png", num_classes=2)
    raw = Numbered(str(tmp_path / "v"), "{}.png", 0, 4)
    assert record == Record("v", str(tmp_path / "v"), 1, raw, 4)
    (record,) = sources.load(f"{spec}?stride=3", num_classes=2, template="{}.png")
    assert record == Record("v", str(tmp_path / "v"), 1, raw, 4, 3)


def test_packed_files_and_tfds_are_parts_like_any_other(tmp_path: pathlib.Path) -> None:
    packed = str(tmp_path / "hmdb-train.array_record-00000-of-00001")
    writer: Any = ArrayRecordWriter(packed, "group_size:1")
    for name, label in (("a", 1), ("b", 0)):
        writer.write(joined(example(name, label)))
    writer.close()
    assert tfds_records.parse(example("a", 1)) == tfds_records.parse(joined(example("a", 1)))
    listed = write(tmp_path / "l.txt", "x.mp4 1")
    records = sources.load(f"{packed} + {listed}?weight=3", num_classes=2)
    assert [(r.id, r.label, r.data) for r in records] == [
        ("hmdb-train:a", 1, b"encoded a"),
        ("hmdb-train:b", 0, b"encoded b"),
        ("l:x.mp4", 1, None),
    ]
    with pytest.raises(DataError, match="tfds:absent: not prepared in"):
        sources.load(f"{listed} + tfds:absent", str(tmp_path))


def named(folder: pathlib.Path, rows: list[str], names: list[str]) -> str:
    folder.mkdir()
    if names:
        write(folder / "classes.txt", *names)
    return write(folder / "list.txt", *rows)


def test_labels_of_parts_are_matched_by_name(tmp_path: pathlib.Path) -> None:
    rows = ["x.mp4 0", "y.mp4 1", "z.mp4 2"]
    bare = named(tmp_path / "a", rows, [])
    numbered = named(tmp_path / "b", rows, ["0", "1", "2"])
    first = named(tmp_path / "c", rows, ["run", "walk", "jump"])
    turned = named(tmp_path / "d", rows, ["jump", "run", "walk"])
    for name in ("jump/x.mp4", "run/y.mp4", "walk/z.mp4", ".cache/z.mp4"):
        write(tmp_path / "e" / name)
    tree = str(tmp_path / "e")
    assert sources.given_names(f"{numbered} + {first}") == ["run", "walk", "jump"]
    assert sources.given_names(f"{bare} + {tree}?weight=3") == ["jump", "run", "walk"]
    records = sources.load(" + ".join([bare, first, turned, numbered, tree]), num_classes=3)
    assert [r.label for r in records] == [0, 1, 2, 0, 1, 2, 2, 0, 1, 0, 1, 2, 2, 0, 1]
    wanted = sources.Classes(("jump", "walk", "run"), "the model")
    alone = sources.load(first, num_classes=ANY, classes=wanted)
    assert [r.label for r in alone] == [2, 1, 0]
    assert [r.label for r in pickle.loads(pickle.dumps(sources.shared(alone)))] == [2, 1, 0]
    assert [r.id for r in alone] == ["x.mp4", "y.mp4", "z.mp4"]
    with pytest.raises(DataError, match=f"{first} and {turned}: classes in another order"):
        sources.given_names(f"{first} + {turned}")


def test_other_names_are_refused_with_both_sources(tmp_path: pathlib.Path) -> None:
    first = named(tmp_path / "a", ["x.mp4 0"], ["run", "walk", "jump"])
    for names, said in (
        (["Run", "jump", "walk"], "class 'run' only in {first} and class 'Run' only in {other}"),
        (["run", "walk"], "class 'jump' only in {first}"),
        (["run", "walk", "jump", "sit"], "class 'sit' only in {other}"),
    ):
        cure = "name them alike" if " and " in said else "add it to the other, empty if need be"
        other = named(tmp_path / "-".join(names), ["x.mp4 0"], names)
        with pytest.raises(DataError) as error:
            sources.load(f"{first} + {other}", num_classes=ANY)
        said = said.format(first=first, other=other)
        assert str(error.value) == (f"{other} has other classes than {first}: {said}; {cure}")
        sources.load(f"{first} + {other}")  # Pre-training knows no classes.
    twice = named(tmp_path / "twice", ["x.mp4 0"], ["run", "walk", "run"])
    with pytest.raises(DataError, match="two classes are called 'run'"):
        sources.load(twice, num_classes=3)
    for folder, classes in (("train", range(11)), ("test", range(10))):
        for name in classes:
            write(tmp_path / folder / str(name) / "x.mp4")
    with pytest.raises(DataError, match="class '10' only in "):
        sources.load(f"{tmp_path / 'train'} + {tmp_path / 'test'}", num_classes=ANY)
    with pytest.raises(DataError, match="has 3 classes, 8 wanted"):
        sources.load(first, num_classes=8)


def test_bad_options_are_named(tmp_path: pathlib.Path) -> None:
    spec = write(tmp_path / "a.csv", "x.mp4 0")
    cases = {
        f"{spec}?wieght=2": "option 'wieght' is none of weight, stride, template, root",
        f"{spec}?weight=0": "weight=0; it must be a number above 0",
        f"{spec} + {spec}?weight=-1": "weight=-1; it must be a number above 0",
        f"{spec}?weight=nan": "weight=nan; it must be a number above 0",
        f"{spec}?weight=inf": "weight=inf; it must be",
        f"{spec}?weight=": "weight=; it must be a number above 0",
        f"{spec}?stride=1.5": "stride=1.5; it must be a whole number above 0",
        f"{spec}?stride=0": "stride=0; it must be a whole number above 0",
        f"{spec} + absent.csv": "no list file or folder at 'absent.csv'",
        f"{spec} + ": "no list file or folder at ",
        "": "no list file or folder at ''",
    }
    for bad, message in cases.items():
        with pytest.raises(DataError) as error:
            sources.load(bad)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
