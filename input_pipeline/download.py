"""Fetches the archives of a data set by TFDS's download manager, or says at once why it cannot."""

import os
import pathlib
import re
import shutil
import threading
from collections.abc import Sequence
from typing import NamedTuple

from input_pipeline.records import DataError

_TIMEOUT = 5.0  # Seconds in which a server has to answer.


class Download(NamedTuple):
    """A file to fetch: where, its size in bytes, its checksum (hexadecimal)."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


def check(name: str, folder: pathlib.Path, wanted: Sequence[Download]) -> None:
    """Asks for room and servers before anything is written.

    Args:
        name: of the data set.
        folder: for the archives; may be absent.
        wanted: the archive of the videos, then others.

    Raises:
        DataError: too little room, or a server of what is not yet there does not answer.
    """
    from tensorflow_datasets.core.download import resource  # Slow to load.

    missing = []
    for one in wanted:
        file = resource.get_dl_fname(one.url, one.sha256)
        places = (folder / name / file, folder / file, folder / "manual" / one.name)
        if not any(place.exists() for place in places):
            missing.append(one)
    # The packed videos are as large as their archive.
    needed = sum(one.size for one in (*missing, wanted[0]))
    above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(above).free
    if needed > free:
        raise DataError(
            f"{folder}: {name.upper()} needs {needed / 1e9:.1f} GB here and {free / 1e9:.1f} are "
            "free; give another folder"
        )
    for one in missing:
        _check_server(name, one, folder)


def fetch(name: str, folder: pathlib.Path, wanted: Sequence[Download]) -> list[pathlib.Path]:
    """Downloads with progress, checks the sums, and uses what is there already.

    Args:
        name: of the data set; the files go to a folder called so.
        folder: for the archives; only this process writes there.
        wanted: the archives; one in `folder / "manual"` is used from there.

    Returns:
        Where the archives are.

    Raises:
        DataError: a download fails or is not the file that is expected. Nothing half is left.
    """
    import tensorflow_datasets as tfds  # Slow to load.
    from tensorflow_datasets.core.download import checksums

    manager = tfds.download.DownloadManager(
        download_dir=folder,
        manual_dir=folder / "manual",
        url_infos={
            one.url: checksums.UrlInfo(tfds.core.utils.Size(one.size), one.sha256, one.name)
            for one in wanted
        },
        dataset_name=name,
        force_checksums_validation=True,
    )
    _remove_unfinished(folder / name)
    try:
        paths = manager.download({one.name: one.url for one in wanted})
    except tfds.download.download_manager.NonMatchingChecksumError as error:
        got = re.search(r"Got: UrlInfo\(size=(.*?), checksum='(.*?)'", str(error))
        what = f" (it has {got[1]} and sha256 {got[2]})" if got else ""
        file = next((one.name for one in wanted if one.url in str(error)), "a file")
        raise DataError(
            f"{file}: not the file that is expected{what}; {_other_ways(folder)}"
        ) from error
    except Exception as error:  # TFDS, requests and urllib3 have classes of their own.
        text = " ".join(str(error).split())[:200]
        raise DataError(
            f"{name.upper()} cannot be downloaded ({type(error).__name__}: {text}); repeat, or "
            f"{_other_ways(folder)}"
        ) from error
    finally:
        _remove_unfinished(folder / name)
    return [pathlib.Path(os.fspath(paths[one.name])) for one in wanted]


def _remove_unfinished(folder: pathlib.Path) -> None:
    """What a download that was killed has left; this process alone is at work here."""
    for one in folder.glob("*.tmp.*"):
        shutil.rmtree(one, ignore_errors=True)


def _check_server(name: str, wanted: Download, folder: pathlib.Path) -> None:
    """Asks for a file and hangs up, so that a machine without a network is told at once.

    Raises:
        DataError: no answer in five seconds, or a refusal.
    """
    import requests  # Comes with TFDS; knows of proxies and certificates.

    outcome: list[str] = []

    def ask() -> None:
        try:
            with requests.get(wanted.url, stream=True, timeout=_TIMEOUT) as answer:
                outcome.append("" if answer.ok else f"answers {answer.status_code}")
        except requests.exceptions.SSLError:
            outcome.append("has no valid certificate")
        except requests.exceptions.RequestException as error:
            outcome.append(f"cannot be reached ({type(error).__name__})")

    # A thread, because looking up a name has no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * _TIMEOUT)
    problem = outcome[0] if outcome else f"does not answer in {2 * _TIMEOUT:g} s"
    if problem:
        host = wanted.url.split("/")[2]
        raise DataError(
            f"{name.upper()} cannot be downloaded: {host} {problem} for {wanted.name}; "
            f"{_other_ways(folder)}"
        )


def _other_ways(folder: pathlib.Path) -> str:
    return (
        f"put the file into {folder / 'manual'}, or give data as --config.data.train=LIST, a "
        "folder of class folders, tfds:ucf101/ucf101_1 or a packed folder"
    )
