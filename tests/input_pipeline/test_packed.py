"""Packed videos are read as they were packed, and damage to a file is named."""

import concurrent.futures
import json
import os
import pathlib
import pickle
import shutil
from typing import Any

import pytest
from packing import GOOD, N, contents

from input_pipeline.sources import arrayrecord as packed
from input_pipeline.sources.records import DataError, Record
from input_pipeline.video import decode


def test_a_copy_is_bytes_of_the_source_in_its_order(
    source: pathlib.Path, copied: pathlib.Path
) -> None:
    found = packed.load(str(copied), "train", num_classes=3)
    expected = [
        Record(name, f"{copied}[{i}]", label, (source.parent / name).read_bytes(), N)
        for i, (name, label) in enumerate(GOOD)
    ]
    assert list(found) == expected
    assert found[-1] == expected[-1]
    assert packed.class_names(str(copied)) == ["run", "jump", "sit"]
    files = sorted(path.name.partition(".")[0] for path in copied.iterdir())
    assert files == ["", "manifest", "videos-train"]


def broken(key: str, value: object, where: str = "split") -> Any:
    """A change of a manifest."""

    def change(manifest: dict[str, Any]) -> None:
        split = manifest["splits"]["train"]
        {"split": split, "file": split["files"][0], "top": manifest}[where][key] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        broken("name", "../out/videos-train.array_record-00000-of-00001", "file"),
        broken("name", "/etc/passwd", "file"),
        broken("name", 3, "file"),
        broken("videos", "3", "file"),
        broken("bytes", None, "file"),
        broken("labels", 5),
        broken("files", {"a": 1}),
        broken("splits", [1], "top"),
        broken("class_names", 7, "top"),
        broken("version", 9, "top"),
        lambda manifest: manifest["splits"]["train"].pop("files"),
        lambda manifest: manifest.clear(),
    ],
)
def test_a_manifest_that_is_wrong_or_names_files_elsewhere_is_one_line(
    copy: pathlib.Path, change: Any
) -> None:
    file = copy / packed.MANIFEST
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"manifest\.json: .*pack again") as error:
        packed.load(str(copy))
    assert "\n" not in str(error.value)


def test_labels_and_splits_are_checked_before_reading(copied: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"labels 0\.\.2, but data.num_classes=2"):
        packed.load(str(copied), "train", num_classes=2)
    with pytest.raises(DataError, match="no split 'val' in it, only: train"):
        packed.load(str(copied), "val")


def test_one_file_alone_can_be_read(copied: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (file,) = copied.glob("*.array_record*")
    for name in ("alone.array_record", "alone.array_record-00000-of-00001"):
        alone = shutil.copy(file, tmp_path / name)
        assert packed.is_packed(str(alone))
        found = packed.load(str(alone), "whatever")
        assert [record._replace(path="") for record in found] == contents(copied)
        with pytest.raises(DataError, match=r"array_record.*\[1\]: label 2 is outside 0\.\.1"):
            list(packed.load(str(alone), num_classes=2))


@pytest.mark.parametrize("kept", [0, 1000, 100_000])
def test_a_cut_file_is_named_at_once(copy: pathlib.Path, kept: int) -> None:
    (file,) = copy.glob("*.array_record*")
    os.truncate(file, min(kept, file.stat().st_size - 65536))
    with pytest.raises(DataError, match=f"{file.name}: {file.stat().st_size} bytes instead of"):
        packed.load(str(copy))
    with pytest.raises(DataError, match="not a whole ArrayRecord file"):
        packed.load(str(file))
    file.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        packed.load(str(copy))


def test_a_damaged_record_says_so_and_spoils_no_other(
    source: pathlib.Path, copy: pathlib.Path
) -> None:
    (file,) = copy.glob("*.array_record*")
    data = bytearray(file.read_bytes())
    at = data.find((source.parent / "xvid.avi").read_bytes()[1000:1100])
    assert at > 0
    data[at] ^= 1
    file.write_bytes(data)
    first, second, third = packed.load(str(copy))
    assert second.path == f"{copy}[1]"
    with pytest.raises(decode.VideoError, match=r"record cannot be read \(chunk data hash mismat"):
        decode.read_frames(second.source, range(4))
    for record in (first, third):
        assert record.data == (source.parent / record.id).read_bytes()


def test_records_of_others_are_refused_one_by_one(tmp_path: pathlib.Path) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    path = str(tmp_path / "other.array_record")
    writer = ArrayRecordWriter(path, "group_size:1")
    for data in (b"anything", b"", b"\n\x00"):
        writer.write(data)
    writer.close()
    for record in packed.load(path):
        with pytest.raises(decode.VideoError, match="record cannot be read"):
            decode.read_frames(record.source, range(4))


def test_threads_and_pickles_share_a_source(copied: pathlib.Path) -> None:
    records = packed.load(str(copied))
    expected = list(records)
    again = pickle.loads(pickle.dumps(records))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(again.__getitem__, list(range(3)) * 40)) == expected * 40
    with pytest.raises(IndexError):
        records[3]
