"""Fetches one known file: its size and checksum are right, or nothing is left of it."""

import hashlib
import pathlib
import shutil
import time
from typing import NamedTuple

from input_pipeline.progress import Progress
from input_pipeline.sources.records import DataError

_TIMEOUT = 8.0  # seconds without a connection, or without a byte
_PATIENCE = 60.0  # seconds for the next block, at the slowest
_BLOCK = 1 << 20


class Download(NamedTuple):
    """A file to fetch: where, its size in bytes, its checksum (hexadecimal)."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


def fetch(one: Download, folder: pathlib.Path, other_ways: str) -> pathlib.Path:
    """The file in `folder`, or in `folder / "manual"` if it was put there; else downloads it.

    Args:
        one: the file.
        folder: that is there; one process at a time.
        other_ways: what to do without this server, for messages.

    Raises:
        DataError: the server does not answer, sends less than 1 MB a minute or something else, or
            the disk has no room for twice the file (for what is made of it).
        OSError: the folder cannot be written.
    """
    import requests  # knows of proxies and certificates
    import urllib3

    manual, path = folder / "manual" / one.name, folder / one.name
    other_ways = f"put the file into {manual.parent}, or {other_ways}"
    if path.exists():  # Only a whole file is ever called so.
        return path
    if manual.exists():
        with manual.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != one.sha256:
            raise DataError(f"{manual}: not the file that is expected (sha256 {found}); delete it")
        return manual
    if (free := shutil.disk_usage(folder).free) < 2 * one.size:
        room = f"{2 * one.size / 1e9:.1f} GB are needed for {one.name} and what is made of it"
        raise DataError(f"{folder}: {free / 1e9:.1f} GB are free, {room}; make room")
    part, digest, size = path.with_name(f"{path.name}.part"), hashlib.sha256(), 0
    show = Progress(f"MB of {one.name}")
    try:
        with (
            requests.get(one.url, stream=True, timeout=_TIMEOUT) as answer,
            part.open("wb") as file,
        ):
            answer.raise_for_status()
            due, goal = time.monotonic() + _PATIENCE, _BLOCK
            while size <= one.size and (block := answer.raw.read1(_BLOCK)):
                digest.update(block)
                size += file.write(block)
                show(size // _BLOCK, one.size // _BLOCK)
                if size >= goal:
                    due, goal = time.monotonic() + _PATIENCE, size + _BLOCK
                elif time.monotonic() > due:
                    raise requests.Timeout(f"less than {_BLOCK} bytes in {_PATIENCE:g} s")
        if (size, digest.hexdigest()) != (one.size, one.sha256):
            raise DataError(
                f"{one.url}: not the file that is expected (got {size} of {one.size} bytes, sha256 "
                f"{digest.hexdigest()}); repeat, or {other_ways}"
            )
        part.replace(path)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        reason = " ".join(str(error).split())[:100]
        raise DataError(
            f"{one.url} cannot be downloaded ({type(error).__name__}: {reason}); {other_ways}"
        ) from error
    finally:
        show.end()
        part.unlink(missing_ok=True)
    return path
