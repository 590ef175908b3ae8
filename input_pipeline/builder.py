"""Writes encoded videos as a TFDS data set of ArrayRecord files, without TensorFlow or ffmpeg.

`tfds.builder_from_directory(FOLDER).as_data_source(SPLIT)` opens it like any other data set.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.core import example_serializer

from input_pipeline import packed, staging
from input_pipeline.records import DataError

# Videos are compressed already: trying again costs time and gains nothing.
_OPTIONS = "group_size:1,uncompressed"

Example = dict[str, Any]


class Split(NamedTuple):
    """A split to write.

    Attributes:
        length: number of examples.
        shards: files to spread them over, evenly.
        examples: gives them in order, each with "id", "label", "num_frames" and "video" (bytes) or
            "frames" (a sequence of bytes).
    """

    length: int
    shards: int
    examples: Callable[[], Iterator[Example]]


class Videos(tfds.core.GeneratorBasedBuilder):
    """A data set of encoded videos, in the order given.

    Note:
        TFDS's own writer sorts by hashed key, through temporary files that need TensorFlow beyond
        1 GB, and compresses. This one streams: memory is that of one video.
    """

    VERSION = tfds.core.Version("1.0.0")
    # There are no checksums beside this file; to look, TFDS needs a package it does not declare.
    code_path = None

    def __init__(
        self,
        *,
        splits: Mapping[str, Split] | None = None,
        others: Sequence[tfds.core.SplitInfo] = (),
        names: Sequence[str] = (),
        frames: bool = False,
        about: str = "",
        **kwargs: Any,
    ) -> None:
        """Takes what is to be written; TFDS's own arguments follow.

        Args:
            splits: to write, by name.
            others: splits written before, which the data set keeps.
            names: of the classes; labels are plain integers without.
            frames: examples hold single pictures, not one file.
            about: one sentence of description.
        """
        self._splits, self._others = dict(splits or {}), list(others)
        self._names, self._frames, self._about = list(names), frames, about
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        stored = {"frames": features.Sequence(features.Text())} if self._frames else {}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._about,
            features=features.FeaturesDict(
                {
                    "id": features.Text(),
                    "label": features.ClassLabel(names=self._names)
                    if self._names
                    else features.Scalar(np.int64),
                    "num_frames": features.Scalar(np.int64),
                    **(stored or {"video": features.Text()}),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, Example]]]:
        return {name: self._generate_examples(split) for name, split in self._splits.items()}

    def _generate_examples(self, split: Split) -> Iterator[tuple[int, Example]]:
        yield from enumerate(split.examples())

    def _generate_splits(
        self, dl_manager: tfds.download.DownloadManager, download_config: Any
    ) -> list[tfds.core.SplitInfo]:
        features = self.info.features
        serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
        infos = list(self._others)
        for name, examples in self._split_generators(dl_manager).items():
            split, template = self._splits[name], self._get_filename_template(name)
            ends = [round(split.length * (i + 1) / split.shards) for i in range(split.shards)]
            lengths, num_bytes = np.diff([0, *ends]).tolist(), 0
            for shard, length in enumerate(lengths):
                path = template.sharded_filepath(shard_index=shard, num_shards=split.shards)
                writer = ArrayRecordWriter(os.fspath(path), _OPTIONS)
                for _ in range(length):
                    _, example = next(examples)
                    data = serializer.serialize_example(features.encode_example(example))
                    writer.write(data)
                    num_bytes += len(data)
                writer.close()
            infos.append(
                tfds.core.SplitInfo(
                    name=name,
                    shard_lengths=lengths,
                    num_bytes=num_bytes,
                    filename_template=template,
                )
            )
        return infos

    def _log_download_bytes(self) -> None:
        """Says nothing: there is no download."""

    def _log_download_done(self) -> None:
        """Says nothing: the folder is not yet in its place."""


def write(
    folder: pathlib.Path,
    splits: Mapping[str, Split],
    manifest: dict[str, Any],
    *,
    frames: bool = False,
    about: str = "",
) -> None:
    """Adds splits to a packed folder; the manifest is replaced last and makes them count.

    Args:
        folder: local; its other splits stay as they are.
        splits: by name; those of the same name are replaced.
        manifest: what `packed` reads; "files" is filled in for each of `splits`.
        frames: examples hold single pictures, not one file.
        about: one sentence of description.

    Raises:
        DataError: the disk is full, or what was written cannot be read back.
    """
    work = folder / staging.FOLDER / ".tfds"
    shutil.rmtree(work, ignore_errors=True)  # Of a call that was killed.
    others: list[tfds.core.SplitInfo] = []
    if (folder / "dataset_info.json").exists():
        before = tfds.builder_from_directory(folder).info.splits
        others = [info for name, info in before.items() if name not in splits]
    builder = Videos(
        splits=splits,
        others=others,
        names=manifest["class_names"],
        frames=frames,
        about=about,
        data_dir=os.fspath(work),
    )
    try:
        builder.download_and_prepare()
    except (OSError, RuntimeError) as error:
        raise DataError(f"{folder}: cannot be written ({packed.reason(error)})") from error
    prepared = pathlib.Path(builder.data_dir)
    for name in splits:
        lengths = builder.info.splits[name].shard_lengths
        paths = [prepared / pathlib.Path(path).name for path in builder.info.splits[name].filepaths]
        files = [_file(path, length) for path, length in zip(paths, lengths)]
        manifest["splits"][name]["files"] = files
    for path in sorted(prepared.iterdir()):
        os.replace(path, folder / path.name)
    staging.replace(folder / packed.MANIFEST, json.dumps(manifest, indent=1).encode())
    shutil.rmtree(work)


def _file(path: pathlib.Path, length: int) -> dict[str, Any]:
    try:
        reader = ArrayRecordReader(os.fspath(path))
        found = reader.num_records()
        reader.close()
    except RuntimeError as error:
        raise DataError(f"{path}: not written well ({packed.reason(error)})") from error
    if found != length:
        raise DataError(f"{path}: {found} records were written instead of {length}; pack again")
    return {"name": path.name, "videos": length, "bytes": path.stat().st_size}
