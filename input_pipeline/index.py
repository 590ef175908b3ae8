"""Lists of videos: list files and class folders become records, checked before training starts."""

import concurrent.futures
import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from input_pipeline import decode

EXTENSIONS = frozenset(
    ["avi", "mp4", "mkv", "webm", "mov", "mpg", "mpeg", "m4v", "wmv", "flv", "ts"]
)
_LOG = logging.getLogger(__name__)
_LINE = re.compile(r"(.+?)\s*[,\t ]\s*([+-]?\d+)")


class Record(NamedTuple):
    """One video: a name unique in its list, where it is, its label (-1 when the list has none)."""

    id: str
    path: str
    label: int


class DataError(ValueError):
    """Data that cannot be used as given; the message is one line with the cure."""


class Failures:
    """Records that could not be read, safe to share between threads; logs each id once.

    Attributes:
        count: failed reads, repeats included.
    """

    def __init__(self) -> None:
        self.count = 0
        self._reasons: dict[str, str] = {}
        self._lock = threading.Lock()

    def add(self, name: str, reason: str) -> None:
        """Notes one failed read of record `name`."""
        with self._lock:
            self.count += 1
            known = name in self._reasons
            self._reasons.setdefault(name, reason)
        if not known:
            _LOG.warning("cannot use video %s: %s", name, reason)

    @property
    def items(self) -> list[tuple[str, str]]:
        """`(record id, reason)` of each record once, in the order first met."""
        with self._lock:
            return list(self._reasons.items())


def load(spec: str, root: str = "", num_classes: int = 0) -> list[Record]:
    """Reads a list file or a folder of class folders.

    Args:
        spec: a list file, one `path label` a line (space, tab or comma; the path may hold spaces,
            the label is the last field; blank and `#` lines are ignored), or a folder whose
            subfolders are the classes, numbered in sorted order. Local or remote (`gs://`).
        root: what relative paths of a list start from; the list's own folder if empty.
        num_classes: labels must be in `[0, num_classes)`; 0 accepts lists without labels.

    Returns:
        The records in the order of the list.

    Raises:
        DataError: nothing at `spec`, no videos in it, a line without a label or with one out of
            range (file, line, label and range are shown), or a wrong number of class folders.
    """
    source = epath.Path(spec) if spec else None
    if source is None or not source.exists():
        raise DataError(f"no list file or folder at {spec!r}; check the path of the data set")
    if source.is_dir():
        rows = _walk(source, num_classes)
    else:
        rows = _parse(source, root or str(source.parent), num_classes)
    if not rows:
        raise DataError(f"{spec}: no videos in it; write one 'path label' per line")
    names = _unique(written for written, _, _ in rows)
    return [Record(name, path, label) for name, (_, path, label) in zip(names, rows)]


def class_names(spec: str, num_classes: int) -> list[str]:
    """Class folder names, else the lines of `classes.txt` beside the list, else "0", "1", ...

    Raises:
        DataError: `classes.txt` or the folder does not hold `num_classes` names (both are shown).
    """
    source = epath.Path(spec)
    if source.is_dir():
        names = [folder.name for folder in _class_folders(source)]
        source = source / "*"
    else:
        source = source.parent / "classes.txt"
        if not source.exists():
            return [str(label) for label in range(num_classes)]
        names = [line.strip() for line in _lines(source) if line.strip()]
    if len(names) != num_classes:
        raise DataError(
            f"{source}: {len(names)} class names, but data.num_classes={num_classes}; "
            "make them agree"
        )
    return names


def sampled(records: Sequence[Record], sample: int = 256) -> list[Record]:
    """Up to `sample` records, evenly spaced: those that `preflight` opens."""
    picked = np.linspace(0, len(records) - 1, num=min(sample, len(records)))
    return [records[int(position)] for position in picked]


def preflight(
    records: Sequence[Record], min_frames: int, sample: int = 256, threads: int = 4
) -> list[tuple[Record, str]]:
    """Finds unusable files before training: every file's size, some files' headers.

    Args:
        records: the videos to look at.
        min_frames: fewer frames than this are reported.
        sample: how many evenly spaced records are opened and demuxed; nothing is decoded.
        threads: files looked at in parallel.

    Returns:
        `(record, one-line reason)` of each bad one, in list order.
    """
    if not records:
        return []
    opened = {record.id for record in sampled(records, sample)}

    def check(position: int) -> str:
        path = records[position].path
        try:
            length = epath.Path(path).stat().length if "://" in path else os.stat(path).st_size
        except FileNotFoundError:
            return "no such file"
        except Exception as error:  # Remote backends have error classes of their own.
            return f"cannot be read ({type(error).__name__})"
        if length == 0:
            return "the file is empty (0 bytes)"
        if records[position].id in opened:
            try:
                decode.probe(path, min_frames)
            except decode.VideoError as error:
                return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        reasons = list(pool.map(check, range(len(records))))
    return [(record, reason) for record, reason in zip(records, reasons) if reason]


def _lines(file: epath.Path) -> list[str]:
    try:
        return file.read_text().removeprefix("\ufeff").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not a text file; give a list with 'path label' lines") from error


def _parse(file: epath.Path, base: str, num_classes: int) -> list[tuple[str, str, int]]:
    rows = []
    for number, line in enumerate(_lines(file), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        path, label = (match[1], int(match[2])) if match else (line, -1)
        if match is None and num_classes:
            raise DataError(f"{file}, line {number}: no integer label after the path in {line!r}")
        if num_classes and not 0 <= label < num_classes:
            raise DataError(
                f"{file}, line {number}: label {label} is outside 0..{num_classes - 1}; "
                f"correct it or data.num_classes={num_classes}"
            )
        path = path.strip("\"'")
        absolute = path.startswith("/") or "://" in path
        rows.append((path, path if absolute else f"{base.rstrip('/')}/{path}", label))
    return rows


def _walk(folder: epath.Path, num_classes: int) -> list[tuple[str, str, int]]:
    classes = _class_folders(folder)
    if not classes:
        raise DataError(f"{folder}: no class folders in it; put videos into one folder per class")
    if num_classes and len(classes) != num_classes:
        raise DataError(
            f"{folder}: {len(classes)} class folders, but data.num_classes={num_classes}; "
            "make them agree"
        )
    return [
        (f"{one.name}/{file.name}", str(file), label)
        for label, one in enumerate(classes)
        for file in sorted(one.iterdir(), key=lambda file: file.name)
        if file.suffix.lower().removeprefix(".") in EXTENSIONS and not file.name.startswith(".")
    ]


def _class_folders(folder: epath.Path) -> list[epath.Path]:
    inside = (one for one in folder.iterdir() if not one.name.startswith("."))
    return sorted((one for one in inside if one.is_dir()), key=lambda one: one.name)


def _unique(names: Iterable[str]) -> list[str]:
    """The second `a` becomes `a#2`, and so on."""
    seen: Counter[str] = Counter()
    taken: set[str] = set()
    unique = []
    for name in names:
        seen[name] += 1
        candidate = name if seen[name] == 1 else f"{name}#{seen[name]}"
        while candidate in taken:
            seen[name] += 1
            candidate = f"{name}#{seen[name]}"
        taken.add(candidate)
        unique.append(candidate)
    return unique
