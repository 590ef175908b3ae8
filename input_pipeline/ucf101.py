"""Downloads UCF101 (1212.0402) and packs an official split of it, without TensorFlow or ffmpeg.

python -m input_pipeline.ucf101 DATA_DIR --split 1  # 7 GB to download, 14 GB on disk
Train from it with --config.data.train=DATA_DIR/ucf101_1 and --config.data.test=DATA_DIR/ucf101_1.
"""

import hashlib
import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

import requests
import tqdm

from input_pipeline import command, index, pack
from input_pipeline.encode import Options
from input_pipeline.sources import packed
from input_pipeline.sources.records import DataError, LazyRecords, Record

_TIMEOUT = 8.0  # seconds without a connection, or without a byte
_BLOCK = 1 << 20


class Download(NamedTuple):
    url: str
    size: int  # bytes
    sha256: str


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


def fetch(
    data_dir: str, split_number: int = 1, videos: Download = VIDEOS, splits: Download = SPLITS
) -> str:
    """Makes `DATA_DIR/ucf101_N`, a packed folder of the original files, "train" and "test".

    A finished folder and finished downloads are used at once, an interrupted call resumes, and of
    several processes one works while the others wait. Archives are kept in `DATA_DIR/downloads`;
    without a `data_dir` it is TFDS's own, `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
    """
    where = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    if "://" in where:
        raise DataError(f"{where}: UCF101 is prepared in a local folder; give a copy as data.train")
    downloads = pathlib.Path(where).expanduser() / "downloads"
    folder = downloads.parent / f"ucf101_{split_number}"
    done = packed.manifest(str(folder))["splits"] if packed.is_packed(str(folder)) else {}
    if "test" in done and not done["test"]["begun"]:
        return str(folder)
    with pack.only_writer(downloads, wait=True):
        paths = [_download(one, downloads) for one in (splits, videos)]
        if not all(map(zipfile.is_zipfile, paths)):
            raise DataError(f"{downloads}: holds other files than the archives of UCF101")
        lists, archive = map(zipfile.ZipFile, paths)
        files = {pathlib.Path(one).name: zipfile.Path(lists, one) for one in lists.namelist()}
        names, entries = index.ucf101(files, split_number)
        for split in ("train", "test"):
            records = _Zipped(archive, [one for one in entries if one.split == split])
            source = f"ucf101 {split_number}"
            pack.write(records, folder, split, names, source, Options("copy"))
    return str(folder)


def _download(one: Download, folder: pathlib.Path) -> pathlib.Path:
    """The file in `folder`, put there by hand or by an earlier call; else resumes its download."""
    path = folder / one.url.rpartition("/")[2]
    part, cure = path.with_name(f"{path.name}.part"), f"put the file into {folder}"
    if path.exists():
        return path
    try:
        with part.open("ab") as file:
            if file.tell() < one.size:
                _resume(one, file)
    except requests.RequestException as error:
        reason = f"{type(error).__name__}: {packed.short(error)}"
        raise DataError(
            f"{one.url} cannot be downloaded ({reason}); repeat to resume, or {cure}"
        ) from error
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != one.sha256:
        part.unlink()
        raise DataError(f"{one.url}: not the file that is expected (sha256 {digest}); {cure}")
    return part.replace(path)


def _resume(one: Download, file: BinaryIO) -> None:
    headers = {"Range": f"bytes={file.tell()}-", "Accept-Encoding": "identity"}
    with requests.get(one.url, stream=True, timeout=_TIMEOUT, headers=headers) as answer:
        answer.raise_for_status()
        if answer.status_code != 206:  # It sends all of it again.
            file.truncate(0)
        with tqdm.tqdm(total=one.size, initial=file.tell(), unit="B", unit_scale=True) as show:
            for block in answer.iter_content(_BLOCK):
                show.update(file.write(block))


class _Zipped(LazyRecords):
    """Videos in an archive, by their names in small letters: see `index.build`."""

    def __init__(self, archive: zipfile.ZipFile, entries: Sequence[index.Entry]) -> None:
        self._archive, self._entries = archive, entries
        self._files = {pathlib.Path(name).stem.lower(): name for name in archive.namelist()}

    def __len__(self) -> int:
        return len(self._entries)

    def at(self, position: int) -> Record:
        one = self._entries[position]
        data = self._archive.read(self._files[pathlib.Path(one.id).stem.lower()])
        return Record(one.id, f"{self._archive.filename}/{one.id}", one.label, data)


def main(argv: Sequence[str] | None = None) -> int:
    parser = command.parser("ucf101", __doc__, reads=False)
    parser.add_argument("data_dir", nargs="?", default="", help="TFDS's own if not given")
    parser.add_argument("--split", type=int, choices=[1, 2, 3], default=1, help="official (1)")
    given = parser.parse_args(argv)
    folder = fetch(given.data_dir, given.split)
    for name in ("train", "test"):
        print(pack.summary(folder, name))
    print(f"train with --config.data.train={folder}")
    return 0


if __name__ == "__main__":
    command.run(main)
