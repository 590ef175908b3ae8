"""List files and class folders become records; nothing is opened but a few names looked up."""

import codecs
import itertools
import logging
import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from etils import epath

from input_pipeline.sources.frames import Folder, Numbered, is_picture
from input_pipeline.sources.records import ANY, DataError, Record

_LOG = logging.getLogger(__name__)

# What FFmpeg reads as video and names by extension.
EXTENSIONS = frozenset(
    [
        *("264", "265", "3g2", "3gp", "amv", "apng", "asf", "avi", "divx", "dv", "f4v", "flv"),
        *("gif", "h264", "h265", "hevc", "ivf", "m1v", "m2t", "m2ts", "m2v", "m4v", "mj2"),
        *("mjpeg", "mjpg", "mk3d", "mkv", "mov", "mp4", "mp4v", "mpe", "mpeg", "mpg", "mpg4"),
        *("mpv", "mts", "mxf", "nut", "obu", "ogg", "ogm", "ogv", "qt", "rm", "rmvb", "swf"),
        *("ts", "vob", "webm", "wmv", "wtv", "xvid", "y4m"),
    ]
)
TEMPLATE = "img_{:05}.jpg"
_NUMBER = re.compile(r"[+-]?\d{1,30}")
_ROW = re.compile(rf"""(.+?)((?:[\s,]+("?)(?:{_NUMBER.pattern})\3)*)""")
_TAIL = 200  # characters of a row in which its numbers are looked for: it takes their square
_HELD_OUT = frozenset(["val", "valid", "validation", "test"])
_LOOKS = 16  # rows of a list that are looked up, if their text leaves a choice


def load(spec: str, root: str = "", num_classes: int = 0, template: str = "") -> list[Record]:
    """Reads a list file or a folder of class folders.

    Args:
        spec: local or remote (`gs://`). Either a folder whose subfolders are the classes, numbered
            in sorted order, with video files or folders of pictures at any depth below them; or a
            list file, UTF-8 (or UTF-16 with its mark), its fields separated by spaces, tabs or
            commas. Its rows:

            - `path label`; the path is a video file or a folder of pictures, and may hold spaces.
            - `path 0 -1`: a whole video file without a label, as VideoMAE V2 writes it.
            - `folder start_index total_frames` where no labels are wanted, else `folder
              total_frames label`: raw frames named by `template`.

            Quote a path that itself ends with a space and a number.
        root: what relative paths of a list start from; the list's own folder if empty.
        num_classes: labels must be in `[0, num_classes)`; 0 accepts lists without labels.
        template: file name of raw frame number n by `str.format`; `TEMPLATE` if empty.

    Returns:
        The records in the order of the list.

    Raises:
        DataError: nothing at `spec`, no videos in it, a row without a label, with several or with
            one out of range (file, line, label and range are shown), or raw frames that are not
            called so (the expected file is shown).

    Note:
        Two things are looked up, for the first rows, and hold for the whole list: whether paths
        without a video extension are files or folders, and whether raw frames with labels start
        with number 0 or 1.
    """
    source = epath.Path(spec) if spec else None
    if source is None or not source.exists():
        cure = "check the path of the data set"
        cure = "give several sources as data.mix" if " + " in spec else cure
        raise DataError(f"no list file or folder at {spec!r}; {cure}")
    if source.is_dir():
        records = _class_folders(spec.rstrip("/"))
    else:
        rows = _parse(source, root or str(source.parent), num_classes)
        records = _records(source, rows, num_classes, template or TEMPLATE)
    if not records:
        raise DataError(f"{spec}: no videos in it; write one 'path label' per line")
    names = unique(record.id for record in records)
    return [r if r.id == name else r._replace(id=name) for name, r in zip(names, records)]


def read_lines(file: epath.Path) -> list[str]:
    """Lines of a text file without white space around them.

    Raises:
        DataError: it is neither UTF-8 nor UTF-16 with a byte order mark.
    """
    data = file.read_bytes()
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DataError(f"{file}: is not UTF-8 text; save it as UTF-8")
    # Not by `splitlines`, which also cuts at characters that names may hold.
    return [line.strip() for line in re.split("\r\n?|\n", text.rstrip("\r\n"))]


class _Row(NamedTuple):
    """A line of a list; raw frames have two `numbers`, of which `label` is the last."""

    line: int
    written: str
    path: str
    label: int
    numbers: tuple[int, ...]


def _parse(file: epath.Path, base: str, num_classes: int) -> list[_Row]:
    rows: list[_Row] = []
    for number, line in enumerate(read_lines(file), 1):
        match = _ROW.fullmatch(line[-_TAIL:])
        if match is None:
            continue
        path, numbers = line[:-_TAIL] + match[1], [int(n) for n in _NUMBER.findall(match[2])]
        if len(path) > 1 and path[0] == path[-1] and path[0] in "\"'":
            path = path[1:-1]
        two = len(numbers) == 2 and numbers[1] >= 0
        reason = ""
        if not numbers and num_classes:
            reason = f"no integer label after the path in {line!r}"
            if not rows and "." not in line:
                reason += ", which looks like a header: delete that line"
        elif len(numbers) > 2 or (num_classes and two and is_video(path)):
            reason = (
                f"more than one label in {line!r}; write 'path label', for one label a video is "
                "trained on, and put the path in quotes if a number belongs to it"
            )
        elif beyond := [n for n in numbers if not -ANY <= n < ANY]:
            reason = (
                f"{beyond[0]} does not fit into 32 bits; correct it, or put the path in quotes if "
                "the number belongs to it"
            )
        elif num_classes and not 0 <= numbers[-1] < num_classes:
            reason = f"label {numbers[-1]} is outside 0..{num_classes - 1}"
            reason += (
                "" if num_classes == ANY else f"; correct it or data.num_classes={num_classes}"
            )
        if reason:
            raise DataError(f"{file}, line {number}: {reason}")
        raw = two and not is_video(path)
        label = numbers[-1] if raw or len(numbers) == 1 else -1
        absolute = path.startswith("/") or "://" in path
        full = path if absolute else f"{base.rstrip('/')}/{path}"
        rows.append(_Row(number, path, full, label, tuple(numbers) if raw else ()))
        if len(rows) == 2 and (numbers or is_video(path)) and _is_header(rows[0]):
            reason = f"{rows[0].written!r} looks like a header: delete that line"
            raise DataError(f"{file}, line {rows[0].line}: {reason}")
    return rows


def _is_header(row: _Row) -> bool:
    """Whether it is words alone, and no folder of pictures is called so."""
    words = row.label < 0 and not row.numbers and not re.search(r"[\d./]", row.written)
    return words and not epath.Path(row.path).exists()


def _records(file: epath.Path, rows: list[_Row], num_classes: int, template: str) -> list[Record]:
    """Rows become records, after a look at the first of those that could be two things."""
    raw = [row for row in rows if row.numbers][:_LOOKS]
    start = 0 if any(_exists(row, template, 0) for row in raw) else 1
    if raw and not any(_exists(r, template, start if num_classes else r.numbers[0]) for r in raw):
        expected = template.format(start if num_classes else raw[0].numbers[0])
        order = "`folder total label`" if num_classes else "`folder start total`"
        raise DataError(
            f"{file}, line {raw[0].line}: no picture {raw[0].path}/{expected}; rows of raw frames "
            f"are {order} here; say how the files are called: data.template={template}"
        )
    plain = (row.path for row in rows if not row.numbers and not is_video(row.path))
    folders = any(epath.Path(path).is_dir() for path in itertools.islice(plain, _LOOKS))
    records = []
    for _, written, path, label, numbers in rows:
        if numbers:
            first, total = (start, numbers[0]) if num_classes else numbers
            frames = Numbered(path, template, first, max(total, 0))
            label = label if num_classes else -1
            records.append(Record(written, path, label, frames, frames.total))
        else:
            folder = Folder(path) if folders and not is_video(path) else None
            records.append(Record(written, path, label, folder))
    return records


def _exists(row: _Row, template: str, number: int) -> bool:
    try:
        name = template.format(number)
    except (IndexError, KeyError, ValueError):
        name = template
    if name == template:
        raise DataError(f"template={template!r} has no place for a number; write {TEMPLATE!r}")
    return (epath.Path(row.path) / name).exists()


def walk(root: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` of a local or remote folder: relative paths, sorted, no hidden ones or loops."""
    found = epath.Path(root).walk() if "://" in root else os.walk(root, followlinks=True)
    for folder, folders, names in found:
        shown = (name for name in folders if not name.startswith("."))
        folders[:] = sorted(name for name in shown if not _leads_back(f"{folder}/{name}"))
        inside = str(folder)[len(root) :].strip("/")
        yield inside, folders, sorted(name for name in names if not name.startswith("."))


def _leads_back(folder: str) -> bool:
    path = pathlib.Path(folder).absolute()
    return path.is_symlink() and any(map(path.samefile, path.parents))


def class_names(folder: str) -> list[str]:
    """Names of the class folders in the order of their labels."""
    return next((folders for _, folders, _ in walk(folder.rstrip("/"))), [])


def _class_folders(root: str) -> list[Record]:
    classes = class_names(root)
    if not classes:
        raise DataError(f"{root}: no class folders in it; put videos into one folder per class")
    if "train" in classes and (held_out := _HELD_OUT.intersection(classes)):
        raise DataError(
            f"{root}: holds train and {', '.join(sorted(held_out))}, no classes; name one of "
            f"them, such as {root}/train"
        )
    records: list[Record] = []
    passed: list[str] = []
    for inside, _, names in walk(root):
        label = classes.index(inside.partition("/")[0]) if inside else -1
        videos = [f"{inside}/{name}" for name in names if inside and is_video(name)]
        records += [Record(name, f"{root}/{name}", label) for name in videos]
        others = [name for name in names if not (inside and is_video(name))]
        if "/" in inside and not videos and any(map(is_picture, names)):
            path = f"{root}/{inside}"
            records.append(Record(inside, path, label, Folder(path)))
            others = [name for name in names if not is_picture(name)]
        passed += [f"{inside}/{name}" for name in others]
    if passed:
        shown = ", ".join(name.strip("/") for name in passed[:3])
        _LOG.warning("%s: %d files passed over, no videos by name: %s", root, len(passed), shown)
    filled = {record.label for record in records}
    if records and (empty := [n for label, n in enumerate(classes) if label not in filled]):
        _LOG.warning("%s: no video in class %s", root, ", ".join(empty))
    return records


def is_video(path: str) -> bool:
    """Whether a file is called like a video."""
    _, dot, extension = path.rpartition(".")
    return bool(dot) and extension.lower() in EXTENSIONS


def unique(names: Iterable[str]) -> list[str]:
    """The second `a` becomes `a#2`, and so on."""
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return numbered
