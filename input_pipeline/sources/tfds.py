"""Videos of a prepared TFDS data set in ArrayRecord files, such as `ucf101`, without TensorFlow."""

import json
import os
from collections.abc import Sequence
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath
from google.protobuf.message import DecodeError

from input_pipeline.sources.frames import Stills, natural
from input_pipeline.sources.records import DataError, LazyRecords, Record

PREFIX = "tfds:"
# Which of a data set's splits serves which of ours, best first.
_SPLITS = {"train": ("train",), "val": ("validation", "test"), "test": ("test", "validation")}
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"BM")

Feature = list[bytes] | list[int]


class TfdsRecords(LazyRecords):
    """One split of a prepared data set; an element is read when it is asked for.

    It can be pickled and shared by threads: each process opens the files it reads from. A record
    that cannot be read has no frames, and says why.
    """

    def __init__(self, folder: epath.Path, split: str, files: Sequence[str], num_classes: int):
        """Counts the records.

        Args:
            folder: `.../NAME/CONFIG/VERSION`.
            split: the data set's own name of it.
            files: of the split, in order.
            num_classes: labels must be in `[0, num_classes)`; 0 accepts all.

        Raises:
            DataError: a file that cannot be opened.
        """
        self._name = f"{folder}/{split}"
        self._num_classes = num_classes
        try:
            self._source = ArrayRecordDataSource(list(files))
        except Exception as error:  # The reader raises what its C++ names, mostly RuntimeError.
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{self._name}: cannot open its files ({reason})") from error

    def __len__(self) -> int:
        return len(self._source)

    def at(self, position: int) -> Record:
        """The record at a position from 0 on."""
        name = f"{self._name}/{position:06}"
        record = Record("/".join(name.rsplit("/", 2)[1:]), name, -1)
        try:
            features = parse(self._source[position])
            videos = features["video"]
        except Exception as error:  # Also a broken file, for which the reader has no one class.
            text = " ".join(str(error).split())[:100]
            return record._replace(data=Stills((), f"record cannot be read ({text})"))
        label = next((one for one in features.get("label", []) if isinstance(one, int)), -1)
        if self._num_classes and not 0 <= label < self._num_classes:
            raise DataError(
                f"{name}: label {label} is outside 0..{self._num_classes - 1}; "
                f"correct data.num_classes={self._num_classes}"
            )
        frames = tuple(video for video in videos if isinstance(video, bytes))
        record = record._replace(label=label)
        if len(frames) == 1 and not _is_picture(frames[0]):
            return record._replace(data=frames[0])
        return record._replace(data=Stills(frames), num_frames=len(frames))


def load(spec: str, root: str = "", num_classes: int = 0, split: str = "train") -> TfdsRecords:
    """Opens a split of a data set that TFDS has prepared in the ArrayRecord format.

    Its feature `video` is a sequence of encoded pictures, as TFDS stores the feature `Video`, or
    one encoded file (features `Text` or `Tensor` of bytes); `label`, if there, is an integer.

    Args:
        spec: `tfds:NAME/CONFIG:VERSION`; without a version the newest, without a config the only
            one.
        root: TFDS's data folder; if empty `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
        num_classes: labels must be in `[0, num_classes)`; 0 accepts data without labels.
        split: "train", "val" (TFDS's `validation`, else `test`) or "test" (the other way round).

    Raises:
        DataError: the data set is not there, in another format, has no such split, no feature
            `video` (`label` if `num_classes`), or broken files.
    """
    folder = find(spec, root)
    info = _json(folder / "dataset_info.json")
    form = info.get("fileFormat", "tfrecord")
    if form != "array_record":
        raise DataError(
            f"{folder}: prepared as {form}; convert it with `tfds convert_format "
            f"--dataset_version_dir={folder} --out_file_format=array_record --out_dir=...`"
        )
    features = _json(folder / "features.json").get("featuresDict", {}).get("features", {})
    for name in ("video", "label") if num_classes else ("video",):
        if name not in features:
            raise DataError(f"{folder}: no feature {name!r} among {', '.join(features) or 'none'}")
    splits = {one["name"]: one for one in info.get("splits", [])}
    found = [name for name in _SPLITS.get(split, (split,)) if name in splits]
    if not found:
        raise DataError(f"{folder}: no split for {split!r} among {', '.join(splits) or 'none'}")
    files = sorted(map(str, folder.glob(f"*-{found[0]}.array_record*")))
    count = len(splits[found[0]]["shardLengths"])
    if len(files) != count:
        raise DataError(f"{folder}: {len(files)} of {count} files of {found[0]!r}; copy it again")
    records = TfdsRecords(folder, found[0], files, num_classes)
    label = features.get("label", {}).get("classLabel", {})
    records.num_classes = int(label.get("numClasses", 0))
    return records


def find(spec: str, root: str = "") -> epath.Path:
    """The folder of a prepared version; arguments and errors as in `load`."""
    name, _, version = spec.removeprefix(PREFIX).strip("/ ").partition(":")
    data_dir = root or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folder = epath.Path(data_dir).expanduser() / name
    file = f"{version or '*'}/dataset_info.json"
    files = [one for depth in (file, f"*/{file}") for one in folder.glob(depth)] if name else []
    if not files:
        raise DataError(
            f"{spec}: not prepared in {folder}; prepare it with `tfds build {name or 'NAME'} "
            f"--file_format=array_record --data_dir={data_dir}`, or give its data_dir as data.root"
        )
    if len(configs := sorted({one.parent.parent.name for one in files})) > 1:
        raise DataError(
            f"{spec}: choose a config, such as {PREFIX}{name}/{configs[0]}; "
            f"prepared are {', '.join(configs)}"
        )
    return max((one.parent for one in files), key=lambda one: natural(one.name))


def parse(example: bytes) -> dict[str, Feature]:
    """The features of a serialised `tf.train.Example` that are bytes or integers.

    Raises:
        ValueError: it is none.
    """
    from tensorflow_datasets.proto import tf_example_pb2  # It takes half a second.

    message = tf_example_pb2.Example()
    try:
        message.ParseFromString(example)
    except DecodeError as error:
        raise ValueError("no tf.train.Example") from error
    return {
        name: list(one.int64_list.value) or list(one.bytes_list.value)
        for name, one in message.features.feature.items()
    }


def _is_picture(data: bytes) -> bool:
    return data.startswith(_PICTURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _json(file: epath.Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); prepare the data set again") from error
