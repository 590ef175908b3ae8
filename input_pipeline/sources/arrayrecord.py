"""Encoded videos as `tf.train.Example`s in ArrayRecord files: packed folders, single files, TFDS.

`FOLDER/manifest.json` is written last, so a packed folder that has one is complete.
"""

import json
import operator
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath
from google.protobuf.message import DecodeError

from input_pipeline.sources.frames import Stills
from input_pipeline.sources.records import DataError, LazyRecords, Record

MANIFEST = "manifest.json"
VERSION = 1  # of the manifest
# Many data sets, UCF101 for one, hold out one part only.
INSTEAD = {"val": ("validation", "test"), "test": ("val", "validation")}
# TFDS names files DATASET-SPLIT.array_record-00000-of-00004.
_BARE = re.compile(r".*\.array_record(-\d{5}-of-\d{5})?")
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"BM")


class File(NamedTuple):
    """One ArrayRecord file to read; its fields are what `ArrayRecordDataSource` asks for."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class Packed(LazyRecords):
    """The records of one split, each read when it is asked for.

    "video" is one encoded file or pictures, or "frames" are pictures; "id", "label" and
    "num_frames" may be there. A record that cannot be read has no frames, and says why. It can be
    pickled and shared by threads: each process opens the files it reads from.

    Args:
        path: what messages call it; a record is `PATH[POSITION]`.
        files: in order, opened when they are first read from, or now where they are only paths.
        num_classes: labels must be in `[0, num_classes)`; 0 accepts all.
        prefix: of the ids of records that have none.
    """

    def __init__(
        self, path: str, files: Sequence[File | str], num_classes: int = 0, prefix: str = ""
    ) -> None:
        self._path, self._num_classes, self._prefix = path, num_classes, prefix
        self._source = ArrayRecordDataSource(list(files))

    def __len__(self) -> int:
        return len(self._source)

    def at(self, position: int) -> Record:
        """The record at a position from 0 on."""
        record = Record(f"{self._prefix}{position:06}", f"{self._path}[{position}]", -1)
        try:
            record = _filled(record, parse(self._source[position]))
        except (RuntimeError, ValueError, LookupError, OSError) as error:
            return record._replace(data=Stills((), f"record cannot be read ({reason(error)})"))
        if self._num_classes and not 0 <= record.label < self._num_classes:
            raise DataError(
                f"{record.path}: label {record.label} is outside 0..{self._num_classes - 1}; "
                f"correct data.num_classes={self._num_classes}"
            )
        return record


def parse(example: bytes) -> dict[str, list[Any]]:
    """The features of a serialised `tf.train.Example` that are bytes or integers.

    Raises:
        ValueError: it is none.
    """
    from tensorflow_datasets.proto import tf_example_pb2  # Half a second, but no TensorFlow.

    try:
        features = tf_example_pb2.Example.FromString(example).features.feature
    except DecodeError as error:
        raise ValueError("no tf.train.Example") from error
    return {
        name: list(one.int64_list.value) or list(one.bytes_list.value)
        for name, one in features.items()
    }


def _filled(record: Record, fields: dict[str, list[Any]]) -> Record:
    """With what is stored.

    Raises:
        LookupError: there is no video.
    """
    frames = tuple(fields.get("video") or fields["frames"])
    whole = len(frames) == 1 and "frames" not in fields and not _is_picture(frames[0])
    numbers = (next(iter(fields.get(name, ())), -1) for name in ("label", "num_frames"))
    label, count = (one if isinstance(one, int) else -1 for one in numbers)
    return record._replace(
        id=fields["id"][0].decode() if fields.get("id") else record.id,
        label=label,
        data=frames[0] if whole else Stills(frames),
        num_frames=count if count >= 0 else len(frames) * (not whole),
    )


def _is_picture(data: bytes) -> bool:
    return data.startswith(_PICTURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def is_packed(path: str) -> bool:
    """Whether `path` is a folder written by `pack` or `ucf101`, or an ArrayRecord file."""
    if _BARE.fullmatch(path):
        return True
    return bool(path) and (epath.Path(path) / MANIFEST).exists()


def load(path: str, split: str = "train", num_classes: int = 0) -> Packed:
    """The records of one split; nothing of a video is read before it is asked for.

    Args:
        path: a folder written by `pack` or `ucf101`, or one `*.array_record` file of such a
            folder (`split` is then ignored). Local or `gs://`.
        split: which part of the folder; where there is none of that name, "test" stands in for
            "val" and the other way round.
        num_classes: labels must be in `[0, num_classes)`; 0 accepts all.

    Raises:
        DataError: no such split (those there are named), labels out of range, or a file that is
            missing, cut short or no ArrayRecord.
    """
    if _BARE.fullmatch(path):
        try:
            return Packed(path, [path], num_classes)
        except RuntimeError as error:
            raise DataError(f"{path}: not a whole ArrayRecord file ({reason(error)})") from error
    splits = manifest(path)["splits"]
    found = next((name for name in (split, *INSTEAD.get(split, ())) if name in splits), "")
    if not found:
        there = ", ".join(sorted(splits)) or "none"
        raise DataError(f"{path}: no split {split!r} in it, only: {there}")
    low, high = splits[found]["labels"]
    if num_classes and low < 0:
        raise DataError(
            f"{path}: split {found!r} holds videos without a label; pack a list with labels"
        )
    if num_classes and high >= num_classes:
        raise DataError(
            f"{path}: split {found!r} has labels {low}..{high}, but data.num_classes="
            f"{num_classes}; make them agree"
        )
    files = []
    for one in splits[found]["files"]:
        name, count = os.path.join(path, one["name"]), one["videos"]
        if "://" not in name:
            _check_size(name, one["bytes"])
        files.append(File(name, 0, count, count))
    packed = Packed(path, files)
    packed.num_classes = max(high + 1, len(class_names(path)))
    return packed


def class_names(path: str) -> list[str]:
    """The names of the classes in the order of their labels; empty where nobody knows them."""
    return [] if _BARE.fullmatch(path) else list(manifest(path)["class_names"])


def manifest(path: str) -> dict[str, Any]:
    """What `FOLDER/manifest.json` says.

    Raises:
        DataError: it is missing, damaged, of another version, or names files elsewhere.
    """
    file = epath.Path(path) / MANIFEST
    try:
        found = json.loads(file.read_text())
        version = found["version"]
        list(found["class_names"])
        for split in found["splits"].values():
            low, high = split["labels"]
            for one in split["files"]:
                for number in (low, high, one["videos"], one["bytes"]):
                    operator.index(number)
                if os.path.basename(one["name"]) != one["name"]:
                    raise ValueError("it names a file outside its folder")
    except FileNotFoundError as error:
        raise DataError(f"{path}: not a packed folder ({MANIFEST} is missing)") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: cannot be read ({reason(error)}); pack again") from error
    if version != VERSION:
        raise DataError(f"{file}: version {version}, but this program reads {VERSION}; pack again")
    return found


def _check_size(name: str, size: int) -> None:
    try:
        found = os.stat(name).st_size
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror}); copy it again") from error
    if found != size:
        raise DataError(f"{name}: {found} bytes instead of {size}; copy it again")


def reason(error: Exception) -> str:
    """The first clause of what a library says."""
    text = " ".join(str(error).split()).removeprefix("Corrupted Riegeli/records file: ")
    return re.split(r"[;:(]", text)[0].strip()
