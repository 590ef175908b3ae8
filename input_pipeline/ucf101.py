"""Downloads UCF101 (1212.0402) and packs an official split of it, without TensorFlow or ffmpeg.

python -m input_pipeline.ucf101 DATA_DIR --split 1  # 7 GB to download, 14 GB on disk
Train from it with --config.data.train=DATA_DIR/ucf101_1 and --config.data.test=DATA_DIR/ucf101_1.
"""

import argparse
import functools
import math
import os
import pathlib
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from input_pipeline import decode, download, packed, staging
from input_pipeline.download import Download
from input_pipeline.progress import Progress
from input_pipeline.records import DataError
from input_pipeline.video import VideoError

# As TFDS knows them.
VIDEOS = Download(
    "https://storage.googleapis.com/thumos14_files/UCF101_videos.zip",
    6_960_400_115,
    "dabf56f573cd19c79e096563529fec8126a2a34e18e10c72eb621dd687532b0d",
)
SPLITS = Download(
    "https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip",
    113_943,
    "5c0d1a53b8ed364a2ac830a73f405e51bece7d98ce1254fd19ed4a36b224bd27",
)
_NAME = "ucf101"
_SHARD = 256 << 20  # Bytes of a file, about.


class _Video(NamedTuple):
    """A row of a split list, and its file in the archive."""

    id: str
    label: int
    file: zipfile.ZipInfo


def fetch(
    data_dir: str, split_number: int = 1, videos: Download = VIDEOS, splits: Download = SPLITS
) -> str:
    """Makes `DATA_DIR/ucf101_N`, which `packed.load` opens: the original files, "train" and "test".

    A finished folder and finished downloads are used at once; a call that was killed is repeated.

    Args:
        data_dir: local folder, also of TFDS's own data sets; archives are kept in its `downloads`.
            Empty: `default_dir`.
        split_number: official split, 1 to 3.
        videos: the archive of the videos.
        splits: the archive of the split lists.

    Returns:
        The folder.

    Raises:
        DataError: a server cannot be reached, a download fails or is not what it should be, or
            the disk is full.
    """
    where = data_dir or default_dir()
    if "://" in where:
        raise DataError(
            f"{where}: UCF101 is prepared in a local folder; name one as data.root, copy what is "
            f"made there and give the copy as data.train"
        )
    root = pathlib.Path(where).expanduser()
    folder = root / f"{_NAME}_{split_number}"
    if packed.is_packed(str(folder)):
        return str(folder)
    if not (root / "downloads").exists():
        download.check(_NAME, root / "downloads", [videos, splits])  # Before anything is written.
    try:
        with staging.only_writer(root / "downloads", wait=True):
            if packed.is_packed(str(folder)):
                return str(folder)  # By another process, meanwhile.
            download.check(_NAME, root / "downloads", [videos, splits])
            archive, lists = download.fetch(_NAME, root / "downloads", [videos, splits])
            with zipfile.ZipFile(archive) as files, zipfile.ZipFile(lists) as rows:
                _pack(folder, files, rows, split_number)
    except zipfile.BadZipFile as error:
        raise DataError(f"{root}: a downloaded archive is damaged ({error})") from error
    except OSError as error:
        reason = error.strerror or packed.reason(error)
        raise DataError(f"{root}: cannot be written ({reason}); repeat: it goes on") from error
    return str(folder)


def default_dir() -> str:
    """TFDS's own: `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    return os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"


def _pack(
    folder: pathlib.Path, files: zipfile.ZipFile, rows: zipfile.ZipFile, split_number: int
) -> None:
    from input_pipeline import builder  # Loads TFDS.

    names = [line.split()[1] for line in _lines(rows, "classInd.txt")]
    # The lists say HandStandPushups where the files say HandstandPushups.
    there = {info.filename.rpartition("/")[2].lower(): info for info in files.infolist()}
    manifest: dict[str, Any] = {"version": packed.VERSION, "class_names": names, "splits": {}}
    splits: dict[str, builder.Split] = {}
    for split in ("train", "test"):
        videos, missing = _videos(_lines(rows, f"{split}list{split_number:02}.txt"), names, there)
        if not videos:
            raise DataError(f"{VIDEOS.name}: none of the {len(missing)} videos of {split!r} in it")
        labels, size = [one.label for one in videos], sum(one.file.file_size for one in videos)
        manifest["splits"][split] = about = {
            "source": f"{_NAME} {split_number}",
            "digest": "",
            "options": "--codec copy",
            "videos": len(videos),
            "frames": 0,
            "labels": [min(labels), max(labels)],
            "bytes_in": size,
            "bytes_out": size,
            "left_out": len(missing),
            "failures": {"not in the archive": missing} if missing else {},
            "damaged": [],
            "without_times": 0,
        }
        examples = functools.partial(_examples, split, videos, files, about)
        shards = min(math.ceil(size / _SHARD), len(videos))
        splits[split] = builder.Split(len(videos), shards, examples)
    text = f"UCF101, official split {split_number}: the original files."
    with staging.only_writer(folder):
        builder.write(folder, splits, manifest, about=text)
    shutil.rmtree(folder / staging.FOLDER)


def _lines(rows: zipfile.ZipFile, name: str) -> list[str]:
    for info in rows.infolist():
        if info.filename.rpartition("/")[2] == name:
            return [line for line in rows.read(info).decode().splitlines() if line.strip()]
    raise DataError(f"{SPLITS.name}: no {name} in it")


def _videos(
    lines: Sequence[str], names: Sequence[str], there: Mapping[str, zipfile.ZipInfo]
) -> tuple[list[_Video], list[str]]:
    """The rows whose files are in the archive, and the ids of the others.

    Rows are `CLASS/FILE` with the number of the class, from 1, or without; labels are from 0.
    """
    videos, missing = [], []
    labels = {name: label for label, name in enumerate(names)}
    for line in lines:
        name = line.split()[0]
        folder = name.partition("/")[0]
        if folder not in labels:
            raise DataError(f"{SPLITS.name}: no class {folder} in its classInd.txt")
        file = there.get(name.rpartition("/")[2].lower())
        if file is None:
            missing.append(name)
        else:
            videos.append(_Video(name, labels[folder], file))
    return videos, missing


def _examples(
    split: str, videos: Sequence[_Video], files: zipfile.ZipFile, about: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Reads the archive video by video; a damaged one stays, so that the split is the official one.

    Notes frames and damaged videos in `about`.
    """
    show = Progress(f"videos of {split!r} written")
    for done, (name, label, file) in enumerate(videos, 1):
        data, count = files.read(file), 0
        try:
            count = decode.probe(data).num_frames
        except VideoError:
            about["damaged"].append(name)
        about["frames"] += count
        yield {"id": name, "label": label, "num_frames": count, "video": data}
        show(done, len(videos))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.ucf101", description=(__doc__ or "").split("\n")[0]
    )
    default = default_dir()
    parser.add_argument("data_dir", nargs="?", default=default, help=f"({default})")
    parser.add_argument(
        "--split", type=int, choices=[1, 2, 3], default=1, help="official split (1)"
    )
    given = parser.parse_args(argv)
    try:
        folder = fetch(given.data_dir, given.split)
    except DataError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("stopped; repeat the command to go on", file=sys.stderr)
        return 130
    splits = packed.manifest(folder)["splits"]
    counts = ", ".join(f"{split['videos']} videos in {name!r}" for name, split in splits.items())
    print(f"{folder}: {counts}; train with --config.data.train={folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
