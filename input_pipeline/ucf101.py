"""Downloads UCF101 (1212.0402) and packs an official split of it, without TensorFlow or ffmpeg.

python -m input_pipeline.ucf101 DATA_DIR --split 1  # 7 GB to download, 14 GB on disk
Train from it with --config.data.train=DATA_DIR/ucf101_1 and --config.data.test=DATA_DIR/ucf101_1.
"""

import argparse
import functools
import os
import pathlib
import sys
import zipfile
from collections.abc import Sequence

from input_pipeline import download, pack
from input_pipeline.download import Download
from input_pipeline.encode import Options
from input_pipeline.sources import arrayrecord as packed
from input_pipeline.sources import shards
from input_pipeline.sources.records import DataError, LazyRecords, Record

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
_OTHER_WAYS = (
    "give data as --config.data.train=LIST, a folder of class folders, tfds:ucf101/ucf101_1 or a "
    "packed folder"
)


def fetch(
    data_dir: str, split_number: int = 1, videos: Download = VIDEOS, splits: Download = SPLITS
) -> str:
    """Makes `DATA_DIR/ucf101_N`, which `packed.load` opens: the original files, "train" and "test".

    A finished folder and finished downloads are used at once; a call that was killed is repeated,
    and of several processes one works while the others wait.

    Args:
        data_dir: local folder; archives are kept in its `downloads`. Empty: `default_dir`.
        split_number: official split, 1 to 3.
        videos: the archive of the videos.
        splits: the archive of the split lists.

    Raises:
        DataError: a server cannot be reached, a download fails or is not what it should be, or
            the disk is full.
    """
    where = data_dir or default_dir()
    if "://" in where:
        raise DataError(
            f"{where}: UCF101 is prepared in a local folder (data.root); give a copy as data.train"
        )
    root = pathlib.Path(where).expanduser()
    folder, downloads = root / f"ucf101_{split_number}", root / "downloads"
    if packed.is_packed(str(folder)) and "test" in packed.manifest(str(folder))["splits"]:
        return str(folder)
    try:
        with shards.only_writer(downloads, wait=True):
            lists, archive = (
                download.fetch(one, downloads, _OTHER_WAYS) for one in (splits, videos)
            )
            with zipfile.ZipFile(lists) as rows:
                names = [line.split()[1] for line in _lines(rows, "classInd.txt")]
                for split in ("train", "test"):
                    listed = _lines(rows, f"{split}list{split_number:02}.txt")
                    records = _Zipped(archive, [line.split()[0] for line in listed], names)
                    source = f"ucf101 {split_number}"
                    shards.write(records, folder, split, names, source, Options("copy"))
    except (zipfile.BadZipFile, LookupError) as error:
        raise DataError(f"{downloads}: not the archives of UCF101 ({error})") from error
    except OSError as error:
        raise DataError(
            f"{root}: cannot be written ({error.strerror}); repeat: it goes on"
        ) from error
    return str(folder)


def default_dir() -> str:
    """TFDS's own: `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    return os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"


class _Zipped(LazyRecords):
    """Videos in an archive, called `CLASS/FILE` in the lists.

    The lists say HandStandPushups where the files say HandstandPushups.
    """

    def __init__(self, archive: pathlib.Path, ids: Sequence[str], class_names: Sequence[str]):
        self._archive, self._ids, self._class_names = archive, list(ids), list(class_names)

    def __len__(self) -> int:
        return len(self._ids)

    def at(self, position: int) -> Record:
        name = self._ids[position]
        label = self._class_names.index(name.partition("/")[0])
        archive, files = _opened(self._archive)
        data = archive.read(files[name.rpartition("/")[2].lower()])
        return Record(name, f"{self._archive}/{name}", label, data)


@functools.lru_cache(maxsize=1)
def _opened(path: pathlib.Path) -> tuple[zipfile.ZipFile, dict[str, str]]:
    """An archive, once a process, and its files by their names in small letters."""
    archive = zipfile.ZipFile(path)
    return archive, {name.rpartition("/")[2].lower(): name for name in archive.namelist()}


def _lines(rows: zipfile.ZipFile, name: str) -> list[str]:
    for one in rows.namelist():
        if one.rpartition("/")[2] == name:
            return [line for line in rows.read(one).decode().splitlines() if line.strip()]
    raise LookupError(f"no {name}")


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
    for name in ("train", "test"):
        print(pack.summary(folder, name))
    print(f"train with --config.data.train={folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
