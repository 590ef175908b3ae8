"""Packed folders are read as written; damage is named."""

import concurrent.futures
import json
import os
import pickle
import sys

import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from packing import GOOD, read_frames

from input_pipeline.sources import packed
from input_pipeline.sources.load import Source, load_records
from input_pipeline.sources.records import DataError, Record
from input_pipeline.video import decode


def test_a_copy_is_bytes_of_the_source_in_its_order(source, copied):
    found = packed.load(str(copied), num_classes=3)
    expected = [
        Record(name, f"{copied}[{i}]", label, (source.parent / name).read_bytes())
        for i, (name, label) in enumerate(GOOD)
    ]
    assert list(found) == expected
    assert packed.class_names(str(copied)) == ["run", "jump", "sit"]
    again = pickle.loads(pickle.dumps(found))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(again.__getitem__, list(range(3)) * 40)) == expected * 40
    with pytest.raises(IndexError):
        found[3]
    assert "tensorflow" not in sys.modules
    with pytest.raises(DataError, match="has 3 classes, 5 wanted"):
        load_records([Source(str(copied))], num_classes=5)


def test_labels_splits_and_versions_are_checked(copy):
    with pytest.raises(DataError, match=r"label 2 is outside 0\.\.1; correct data.num_classes"):
        list(packed.load(str(copy), num_classes=2))
    with pytest.raises(DataError, match="no whole split 'val' in it, only: train"):
        packed.load(str(copy), split="val")
    manifest = json.loads((copy / packed.MANIFEST).read_text())
    manifest["splits"]["test"] = manifest["splits"]["train"]
    (copy / packed.MANIFEST).write_text(json.dumps(manifest))
    assert list(packed.load(str(copy), split="val")) == list(packed.load(str(copy), split="test"))
    (file,) = copy.glob("*.array_record*")
    os.truncate(file, 1000)
    for one in packed.load(str(copy)):
        assert one.data.reason.startswith("record cannot be read")
    (copy / packed.MANIFEST).write_text('{"version": 9, "splits": {}}')
    with pytest.raises(DataError, match="another version; pack again"):
        packed.load(str(copy))


def test_a_damaged_record_says_so_and_spoils_no_other(source, copy, tmp_path):
    (file,) = copy.glob("*.array_record*")
    data = bytearray(file.read_bytes())
    at = data.find((source.parent / "xvid.avi").read_bytes()[1000:1100])
    assert at > 0
    data[at] ^= 1
    file.write_bytes(data)
    first, second, third = packed.load(str(copy))
    with pytest.raises(decode.VideoError, match=r"record cannot be read \(.*hash mismat"):
        read_frames(second.source, range(4))
    for record in (first, third):
        assert record.data == (source.parent / record.id).read_bytes()
    other = str(tmp_path / "other.array_record")  # Somebody else's.
    writer = ArrayRecordWriter(other, "group_size:1")
    for content in (b"anything", b"", b"\n\x00"):
        writer.write(content)
    writer.close()
    for record in packed.Packed(other, "train", [packed.File(other, 0, 3, 3)]):
        with pytest.raises(decode.VideoError, match="record cannot be read"):
            read_frames(record.source, range(4))
