"""Packed folders, TFDS sets are read as written; damage is named."""

import concurrent.futures
import io
import os
import pickle
import sys

import cv2
import numpy as np
import pytest
from packing import GOOD, read_frames, refused

from input_pipeline.sources import load as sources
from input_pipeline.sources import packed
from input_pipeline.sources.frames import Stills
from input_pipeline.sources.load import Source, load_records
from input_pipeline.sources.records import ANY, Record
from input_pipeline.video import decode

tfds = pytest.importorskip("tensorflow_datasets")

NAMES = ("ApplyEyeMakeup", "Archery", "YoYo")
TRAIN, TEST = 7, 3
SPEC = "tfds:ucf101_test/ucf101_1"


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


def test_labels_splits_and_files_are_checked(copy):
    said = r"label 2 is outside 0\.\.1; correct data.num_classes"
    refused(said, list, packed.load(str(copy), num_classes=2))
    refused("no whole split 'val' in it, only: train", packed.load, str(copy), split="val")
    (file,) = copy.glob("*.array_record*")
    os.truncate(file, 1000)
    for one in packed.load(str(copy)):
        assert one.data.reason.startswith("record cannot be read")


def test_a_damaged_record_says_so_and_spoils_no_other(source, copy):
    (file,) = copy.glob("*.array_record*")
    data = bytearray(file.read_bytes())
    at = data.find((source.parent / "xvid.avi").read_bytes()[1000:1100])
    assert at > 0
    data[at] ^= 1
    file.write_bytes(data)
    first, second, third = packed.load(str(copy))
    said = r"record cannot be read \(.*hash mismat"
    refused(said, read_frames, second.source, range(4), kind=decode.VideoError)
    for record in (first, third):
        assert record.data == (source.parent / record.id).read_bytes()


def frames_of(index):
    grays = (np.full((24, 32, 3), 30 * index + t, np.uint8) for t in range(8 + index))
    return [cv2.imencode(".jpg", gray)[1].tobytes() for gray in grays]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """The feature `Video` needs TensorFlow to be made, but on disk it is a sequence of images."""

    class Ucf101(tfds.dataset_builders.AdhocBuilder, skip_registration=True):
        def _split_generators(self, dl_manager):  # Theirs asks TensorFlow for types.
            return {"train": examples(TRAIN), "test": examples(TEST)}

    def examples(count):
        for index in range(count):
            frames = [io.BytesIO(frame) for frame in frames_of(index)]
            yield f"v{index}", {"video": frames, "label": index % 3}

    folder = tmp_path_factory.mktemp("tfds")
    image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
    label = tfds.features.ClassLabel(names=NAMES)
    features = tfds.features.FeaturesDict({"video": tfds.features.Sequence(image), "label": label})
    named = {"name": "ucf101_test", "config": "ucf101_1", "version": "2.0.0", "data_dir": folder}
    builder = Ucf101(**named, features=features, split_datasets={}, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
    return folder


def test_the_frames_that_tfds_wrote(data_dir):
    records = packed.load(SPEC, str(data_dir), num_classes=3)
    assert len(list((data_dir / "ucf101_test/ucf101_1/2.0.0").glob("*train*"))) == 3
    found = {len(record.data.frames) - 8: record for record in records}  # TFDS shuffles them.
    assert sorted(found) == list(range(TRAIN))
    for index, record in found.items():
        assert record.data == Stills(tuple(frames_of(index)))
        assert record.label == index % 3
    assert [record.id for record in records] == [f"train/{i:06}" for i in range(TRAIN)]
    assert "tensorflow" not in sys.modules


def test_splits_configs_versions_and_parts(data_dir, copied, monkeypatch):
    assert len(packed.load(SPEC, str(data_dir), split="test")) == TEST
    assert len(packed.load(f"{SPEC}/2.0.0", str(data_dir), split="val")) == TEST
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert sources.named([Source(SPEC)]) == [sources.Classes(NAMES, SPEC)]
    assert packed.load(SPEC, num_classes=ANY).num_classes == 3
    mixture = load_records([Source(str(copied)), Source(SPEC, weight=3.0)])
    assert [mixture[i].id for i in (2, 3)] == [f"out:{GOOD[2][0]}", "ucf101_1:train/000000"]


def test_what_is_not_there_is_named_with_its_cure(tmp_path):
    (tmp_path / "old/1.0.0").mkdir(parents=True)
    (tmp_path / "old/1.0.0/dataset_info.json").write_text('{"fileFormat": "tfrecord"}')
    (tmp_path / "old/1.0.0/features.json").write_text("{}")
    for spec, message in (
        ("tfds:absent/x", "tfds:absent/x: not prepared in .*data.root"),
        ("tfds:old", "prepared as tfrecord; convert it with `tfds convert_format"),
    ):
        refused(message, packed.load, spec, str(tmp_path))
