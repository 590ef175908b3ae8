"""Packed folders: encoded videos as `tf.train.Example`s in ArrayRecord files.

`FOLDER/manifest.json` says what is in one.
"""

import json
import os
from typing import Any, NamedTuple

from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath
from google.protobuf.message import DecodeError

from input_pipeline.sources.frames import Stills
from input_pipeline.sources.records import DataError, LazyRecords, Record

MANIFEST = "manifest.json"
VERSION = 1  # of the manifest
# Many data sets, UCF101 for one, hold out one part only.
_INSTEAD = {"val": "test", "test": "val"}


class File(NamedTuple):
    """One ArrayRecord file to read; its fields are what `ArrayRecordDataSource` asks for."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class Packed(LazyRecords):
    """The records of one split, each read when it is asked for, of "id", "label" and "video".

    "video" is one encoded file or pictures, which "frames" are, too. A record that cannot be read
    has no frames, and says why. It can be pickled and shared by threads: each process opens the
    files it reads from. Labels must be in `[0, below)`; 0 accepts all.
    """

    def __init__(self, path: str, split: str, files: list[File], below: int = 0) -> None:
        self._path, self._split, self._below = path, split, below
        self._source = ArrayRecordDataSource(files)

    def __len__(self) -> int:
        return len(self._source)

    def at(self, position: int) -> Record:
        """The record at a position from 0 on."""
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
    """A `tf.train.Example`, empty or from its bytes."""
    from tensorflow_datasets.proto import tf_example_pb2  # Half a second, but no TensorFlow.

    return tf_example_pb2.Example.FromString(content)


def is_packed(path: str) -> bool:
    """Whether `path` is a folder written by `pack` or `ucf101`."""
    return (epath.Path(path) / MANIFEST).exists()


def load(path: str, num_classes: int = 0, split: str = "train") -> Packed:
    """The records of one split; nothing of a video is read before it is asked for.

    Args:
        path: a folder written by `pack` or `ucf101`, local or `gs://`.
        num_classes: labels must be in `[0, num_classes)`, or reading says so; 0 accepts all.
        split: of "val" and "test", one stands in for the other.
    """
    content = manifest(path)
    splits = {name: one for name, one in content["splits"].items() if not one.get("begun")}
    name = next((one for one in (split, _INSTEAD.get(split, "")) if one in splits), "")
    if not name:
        there = ", ".join(splits) or "none"
        raise DataError(
            f"{path}: no whole split {split!r} in it, only: {there}; if its packing was killed, "
            "repeat that"
        )
    files = [(os.path.join(path, one["name"]), one["videos"]) for one in splits[name]["files"]]
    records = Packed(path, name, [File(file, 0, n, n) for file, n in files], num_classes)
    labels = [1 + one["labels"][1] for one in splits.values()]
    records.num_classes = max(len(content["class_names"]), *labels)
    return records


def class_names(path: str) -> list[str]:
    """The names of the classes in the order of their labels; empty where nobody knows them."""
    return manifest(path)["class_names"]


def manifest(path: str) -> dict[str, Any]:
    """What `FOLDER/manifest.json` says; DataError if it is of another version."""
    found = json.loads((epath.Path(path) / MANIFEST).read_text())
    if found.get("version") != VERSION:
        raise DataError(f"{path}: its {MANIFEST} is of another version; pack again")
    return found


def short(error: Exception) -> str:
    """The beginning of what a library says, in one line."""
    return " ".join(str(getattr(error, "strerror", "") or error).split())[:100]
