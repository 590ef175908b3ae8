"""Data sets that TFDS itself wrote are read without TensorFlow, one record at a time."""

import concurrent.futures
import io
import json
import pathlib
import pickle
import sys
from typing import Any

import cv2
import numpy as np
import pytest

from input_pipeline import preflight
from input_pipeline.sources import load as sources
from input_pipeline.sources import tfds as tfds_records
from input_pipeline.sources.frames import Stills
from input_pipeline.sources.records import ANY, DataError, Record
from input_pipeline.video import decode

tfds = pytest.importorskip("tensorflow_datasets")

NAMES = ("ApplyEyeMakeup", "Archery", "YoYo")
TRAIN, TEST = 7, 3


def jpeg(value: int, extension: str = ".jpg") -> bytes:
    return cv2.imencode(extension, np.full((24, 32, 3), value, np.uint8))[1].tobytes()


def frames_of(index: int) -> list[bytes]:
    return [jpeg(30 * index + t) for t in range(8 + index)]


def build(data_dir: pathlib.Path, config: str, feature: Any, encode: Any, **kwargs: Any) -> None:
    class Ucf101(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("2.0.0")
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name=config),)
        name = "ucf101_test"

        def _info(self) -> Any:
            label = tfds.features.ClassLabel(names=NAMES)
            features = tfds.features.FeaturesDict({"video": feature, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples(TRAIN), "test": self._generate_examples(TEST)}

        def _generate_examples(self, count: int) -> Any:
            for index in range(count):
                yield f"v{index}", {"video": encode(index), "label": index % 3}

    builder = Ucf101(config=config, data_dir=str(data_dir), file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(**kwargs))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """`ucf101_1` as TFDS stores it and `files`, in which `video` is one encoded file.

    The feature `Video` needs TensorFlow to be made, but on disk it is its base class, a sequence of
    images; only `features.json` tells them apart, and is given `Video`'s own message here.
    """
    folder = tmp_path_factory.mktemp("tfds")
    images = tfds.features.Sequence(
        tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
    )
    build(folder, "ucf101_1", images, lambda i: [io.BytesIO(f) for f in frames_of(i)], num_shards=3)
    build(folder, "files", tfds.features.Text(), lambda i: b"encoded %d" % i)
    from tensorflow_datasets.core.features import feature as feature_lib
    from tensorflow_datasets.core.proto import feature_pb2

    class Video(tfds.features.Sequence):  # What `Video.to_json_content` gives.
        def to_json_content(self) -> Any:
            return feature_pb2.VideoFeature(
                shape=feature_lib.to_shape_proto(self.shape), dtype="uint8", encoding_format="jpeg"
            )

    file = folder / "ucf101_test/ucf101_1/2.0.0/features.json"
    content = json.loads(file.read_text())
    proto = Video(images.feature).to_proto()
    from google.protobuf import json_format

    content["featuresDict"]["features"]["video"] = json_format.MessageToDict(proto)
    file.write_text(json.dumps(content, indent=4, sort_keys=True))
    return folder


SPEC = "tfds:ucf101_test/ucf101_1"


def test_the_frames_that_tfds_wrote(data_dir: pathlib.Path) -> None:
    records = tfds_records.load(SPEC, str(data_dir), num_classes=3)
    assert len(list((data_dir / "ucf101_test/ucf101_1/2.0.0").glob("*train*"))) == 3
    assert len(records) == len(list(records)) == TRAIN
    found = {record.num_frames - 8: record for record in records}  # TFDS shuffles the examples.
    assert sorted(found) == list(range(TRAIN))
    for index, record in found.items():
        assert record.data == Stills(tuple(frames_of(index)))
        assert record.label == index % 3
    (frame,) = decode.read_frames(found[4].source, np.array([5]))
    expected = cv2.imdecode(np.frombuffer(frames_of(4)[5], np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(frame, expected[..., ::-1])
    assert [record.id for record in records[5:]] == ["train/000005", "train/000006"]
    assert records[-1] == records[TRAIN - 1]
    with pytest.raises(IndexError):
        records[TRAIN]
    (bad,) = preflight.check(records, 9, sample=TRAIN)
    assert records[bad.position] == found[0]
    assert bad.reason == "8 frames, fewer than data.min_frames=9"
    assert "tensorflow" not in sys.modules


def test_splits_configs_and_versions(
    data_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(tfds_records.load(SPEC, str(data_dir), split="test")) == TEST
    assert len(tfds_records.load(f"{SPEC}:2.0.0", str(data_dir), split="val")) == TEST
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert sources.given_names(SPEC) == list(NAMES)
    assert tfds_records.load(SPEC, num_classes=ANY).num_classes == 3
    for version in ("1.9.0", "2.0.0", "10.0.0"):
        (data_dir / "one/only" / version).mkdir(parents=True)
        (data_dir / "one/only" / version / "dataset_info.json").write_text("{}")
    for spec in ("tfds:one", "tfds:one/only"):
        assert tfds_records.find(spec).name == "10.0.0"
    assert tfds_records.find("tfds:one/only:1.9.0").name == "1.9.0"


def test_one_encoded_file_per_record(data_dir: pathlib.Path) -> None:
    records = tfds_records.load("tfds:ucf101_test/files", str(data_dir))
    assert sorted(r.data for r in records if isinstance(r.data, bytes)) == [
        b"encoded %d" % i for i in range(TRAIN)
    ]


def test_it_is_shared_by_threads_and_processes(data_dir: pathlib.Path) -> None:
    records = tfds_records.load(SPEC, str(data_dir))
    first = list(records)
    copy = pickle.loads(pickle.dumps(records))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        positions = np.random.default_rng(0).integers(TRAIN, size=200)
        for position, record in zip(positions, pool.map(copy.__getitem__, positions.tolist())):
            assert record == first[position]


def test_the_example_reader_equals_the_protocol_buffers() -> None:
    from tensorflow_datasets.proto import tf_example_pb2

    rng = np.random.default_rng(0)
    for _ in range(50):
        example = tf_example_pb2.Example()
        feature = example.features.feature
        values = rng.integers(-(2**63), 2**63 - 1, size=rng.integers(4), endpoint=True).tolist()
        feature["label"].int64_list.value.extend([*values, 0, -1, 300])
        frames = [rng.bytes(int(rng.integers(300))) for _ in range(rng.integers(1, 5))]
        feature["video"].bytes_list.value.extend(frames)
        feature["speed"].float_list.value.extend(rng.normal(size=3).tolist())
        data = example.SerializeToString()
        found = tfds_records.parse(data)
        assert found == {"label": [*values, 0, -1, 300], "video": frames, "speed": []}
        with pytest.raises(ValueError, match=r"no tf\.train\.Example"):
            tfds_records.parse(data[: int(rng.integers(1, len(data)))])


def test_a_broken_record_is_reported_and_the_others_stay(
    data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    source = data_dir / "ucf101_test/ucf101_1/2.0.0"
    folder = tmp_path / "ucf101_test/ucf101_1/2.0.0"
    folder.mkdir(parents=True)
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    whole = list(tfds_records.load(SPEC, str(tmp_path)))
    shard = sorted(folder.glob("*train*"))[0]
    data = bytearray(shard.read_bytes())
    held = np.flatnonzero(np.frombuffer(bytes(data), np.uint8))  # The rest is padding.
    at = int(held[np.searchsorted(held, 400)])
    data[at : at + 20] = bytes(255 - byte for byte in data[at : at + 20])
    shard.write_bytes(data)
    records = tfds_records.load(SPEC, str(tmp_path))
    bad = [i for i, record in enumerate(records) if record != whole[i]]
    assert bad
    assert len(bad) < TRAIN
    with pytest.raises(decode.VideoError, match=r"^record cannot be read"):
        decode.probe(records[bad[0]].source)
    assert [one.position for one in preflight.check(records, 2)] == bad
    shard.write_bytes(b"")
    with pytest.raises(DataError, match=r"ucf101_1/2\.0\.0/train: cannot open its files"):
        tfds_records.load(SPEC, str(tmp_path))


def test_what_is_not_there_is_named_with_its_cure(data_dir: pathlib.Path) -> None:
    version = data_dir / "old/only/1.0.0"
    version.mkdir(parents=True)
    info = {"name": "old", "fileFormat": "tfrecord", "splits": []}
    (version / "dataset_info.json").write_text(json.dumps(info))
    plain = data_dir / "plain/only/1.0.0"
    plain.mkdir(parents=True)
    (plain / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "array_record"}))
    features = {"featuresDict": {"features": {"image": {}}}}
    (plain / "features.json").write_text(json.dumps(features))
    broken = data_dir / "broken/only/1.0.0"
    broken.mkdir(parents=True)
    (broken / "dataset_info.json").write_text("{")
    cases = {
        "tfds:absent/x": "tfds:absent/x: not prepared in",
        "tfds:ucf101_test/ucf101_1:9.9.9": "prepare it with `tfds build ucf101_test/ucf101_1",
        "tfds:": "not prepared in",
        "tfds:ucf101_test": "choose a config, such as tfds:ucf101_test/files; prepared are files",
        "tfds:old": "prepared as tfrecord; convert it with `tfds convert_format",
        "tfds:plain": "no feature 'video' among image",
        "tfds:broken": "dataset_info.json: cannot be read",
    }
    for spec, message in cases.items():
        with pytest.raises(DataError) as error:
            tfds_records.load(spec, str(data_dir))
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="has 3 classes, 5 wanted"):
        sources.load(SPEC, str(data_dir), num_classes=5)
    with pytest.raises(DataError, match="no split for 'extra' among train, test"):
        tfds_records.load(SPEC, str(data_dir), split="extra")


def test_training_batches_of_a_tfds_data_set(data_dir: pathlib.Path) -> None:
    from input_pipeline import pipeline

    records = tfds_records.load(SPEC, str(data_dir), num_classes=3)
    spec = pipeline.ClipSpec(num_frames=4, frame_stride=1, image_size=16)
    batches = pipeline.train_batches(records, spec, batch_size=4, seed=1)
    batch = next(batches)
    batches.close()
    assert batch["skipped"].sum() == 0
    for clip, label, index in zip(batch["video"], batch["label"], batch["index"]):
        record: Record = records[int(index)]
        assert label == record.label
        first = round(float(clip[0].mean()))
        assert 0 <= first - 30 * (record.num_frames - 8) < record.num_frames
