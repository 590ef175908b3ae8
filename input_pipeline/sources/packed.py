"""Encoded videos as `tf.train.Example`s in ArrayRecord files: packed folders, prepared TFDS sets.

`FOLDER/manifest.json` says what is in a packed folder. TFDS's own readers import TensorFlow for the
feature `Video`; its files are plain ArrayRecord.
"""

import json
import os
from typing import Any, NamedTuple

from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath
from google.protobuf.message import DecodeError

from input_pipeline.sources.frames import Stills, natural
from input_pipeline.sources.records import DataError, LazyRecords, Record

PREFIX = "tfds:"
MANIFEST = "manifest.json"
VERSION = 1  # of the manifest
# Many data sets, UCF101 for one, hold out one part only.
_INSTEAD = {"val": ("validation", "test"), "test": ("val", "validation")}


class File(NamedTuple):
    """One ArrayRecord file to read; its fields are what `ArrayRecordDataSource` asks for."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


_Prepared = tuple[dict[str, list[File]], list[str], int]  # Splits, class names, their number.


class Packed(LazyRecords):
    """The records of one split, each read when it is asked for, of "id", "label" and "video".

    "video" is one encoded file or pictures, which "frames" are, too. A record that cannot be read
    has no frames, and says why. Labels must be in `[0, below)`; 0 accepts all.
    """

    def __init__(self, path: str, split: str, files: list[File], below: int = 0) -> None:
        self._path, self._split, self._below = path, split, below
        self._source = ArrayRecordDataSource(files)

    def __len__(self) -> int:
        return len(self._source)

    def at(self, position: int) -> Record:
        record = Record(f"{self._split}/{position:06}", f"{self._path}[{position}]", -1)
        try:
            features = new_example(self._source[position]).features.feature
            name, frames = (features[key].bytes_list.value for key in ("id", "frames"))
            videos = features["video"].bytes_list.value
            record = record._replace(
                id=name[0].decode() if name else record.id,
                label=next(iter(features["label"].int64_list.value), -1),
                data=videos[0] if len(videos) == 1 else Stills(tuple(videos or frames)),
            )
            if not videos and not frames:
                raise ValueError("no video in it")
        except (DecodeError, RuntimeError, ValueError, OSError) as error:
            reason = f"record cannot be read ({short(error)})"
            return record._replace(data=Stills((), reason))
        if self._below and not 0 <= record.label < self._below:
            raise DataError(
                f"{record.path}: label {record.label} is outside 0..{self._below - 1}; correct "
                f"data.num_classes={self._below}, or pack a list with labels"
            )
        return record


def new_example(content: bytes = b"") -> Any:
    from tensorflow_datasets.proto import tf_example_pb2  # Half a second, but no TensorFlow.

    return tf_example_pb2.Example.FromString(content)


def is_packed(path: str) -> bool:
    """Whether `path` is `tfds:NAME` or a folder written by `pack` or `ucf101`."""
    return path.startswith(PREFIX) or (epath.Path(path) / MANIFEST).exists()


def load(path: str, root: str = "", num_classes: int = 0, split: str = "train") -> Packed:
    """The records of one split; of "val" and "test" one stands in for the other.

    `path` is a folder written by `pack` or `ucf101`, or `tfds:NAME/CONFIG`, with `/VERSION` or the
    newest, whose feature `video` is a sequence of encoded pictures (`Video`) or one encoded file.
    `root` is TFDS's data folder.
    """
    splits, _, count = _prepared(path, root)
    name = next((one for one in (split, *_INSTEAD.get(split, ())) if splits.get(one)), "")
    if not name:
        there = ", ".join(splits) or "none"
        raise DataError(
            f"{path}: no whole split {split!r} in it, only: {there}; pack it to its end"
        )
    records = Packed(path, name, splits[name], num_classes)
    records.num_classes = count
    return records


def class_names(path: str, root: str = "") -> list[str]:
    """In the order of their labels; empty where nobody knows them."""
    return _prepared(path, root)[1]


def manifest(path: str) -> dict[str, Any]:
    """What `FOLDER/manifest.json` says; DataError if it is of another version."""
    found = json.loads((epath.Path(path) / MANIFEST).read_text())
    if found.get("version") != VERSION:
        raise DataError(f"{path}: its {MANIFEST} is of another version; pack again")
    return found


def _prepared(path: str, root: str) -> _Prepared:
    if path.startswith(PREFIX):
        return _tfds(path, root)
    content, splits = manifest(path), {}
    count = len(content["class_names"])
    for name, split in content["splits"].items():
        if not split.get("begun"):
            files = [(os.path.join(path, one["name"]), one["videos"]) for one in split["files"]]
            splits[name] = [File(file, 0, n, n) for file, n in files]
            count = max(count, split["labels"][1] + 1)
    return splits, content["class_names"], count


def _tfds(spec: str, root: str) -> _Prepared:
    data_dir = root or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    name = spec.removeprefix(PREFIX).replace(":", "/")  # As TFDS says NAME/CONFIG:VERSION.
    folder = epath.Path(data_dir).expanduser() / name
    if not (folder / "dataset_info.json").exists():
        versions = [file.parent for file in folder.glob("*/dataset_info.json")]
        if not versions:
            raise DataError(
                f"{spec}: not prepared in {folder}; give its data_dir as data.root, or prepare it: "
                f"`tfds build {name} --file_format=array_record`"
            )
        folder = max(versions, key=lambda one: natural(one.name))
    info, features = (
        json.loads((folder / name).read_text()) for name in ("dataset_info.json", "features.json")
    )
    if (form := info.get("fileFormat", "tfrecord")) != "array_record":
        raise DataError(
            f"{folder}: prepared as {form}; convert it with `tfds convert_format "
            f"--dataset_version_dir={folder} --out_file_format=array_record --out_dir=...`"
        )
    if "video" not in (features := features["featuresDict"]["features"]):
        raise DataError(f"{folder}: no feature 'video' among {', '.join(features)}")
    splits = {}
    for one in info["splits"]:
        counts = list(map(int, one["shardLengths"]))
        stem = f"{folder}/{info['name']}-{one['name']}.array_record"
        splits[one["name"]] = [
            File(f"{stem}-{number:05}-of-{len(counts):05}", 0, n, n)
            for number, n in enumerate(counts)
        ]
    label = features.get("label", {}).get("classLabel", {})
    names = folder / "label.labels.txt"
    found = names.read_text().splitlines() if names.exists() else []
    return splits, found, int(label.get("numClasses", 0))


def short(error: Exception) -> str:
    """The beginning of what a library says, in one line."""
    return " ".join(str(getattr(error, "strerror", "") or error).split())[:100]
