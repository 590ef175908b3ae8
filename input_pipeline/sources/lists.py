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
_NAMES = (
    "264 265 3g2 3gp amv apng asf avi divx dv f4v flv gif h264 h265 hevc ivf m1v m2t m2ts m2v m4v "
    "mj2 mjpeg mjpg mk3d mkv mov mp4 mp4v mpe mpeg mpg mpg4 mpv mts mxf nut obu ogg ogm ogv qt rm "
    "rmvb swf ts vob webm wmv wtv xvid y4m"
)
_VIDEO = frozenset(_NAMES.split())
TEMPLATE = "img_{:05}.jpg"
_LAST_NUMBER = re.compile(r"""(?<=\S)[\s,]+("?)([+-]?\d{1,30})\1$""")
_HELD_OUT = frozenset(["val", "valid", "validation", "test"])
_LOOKS = 16  # rows of a list that are looked up, if their text leaves a choice


def load(spec: str, root: str = "", num_classes: int = 0, template: str = "") -> list[Record]:
    """Reads a list file or a folder of class folders, in its order.

    Args:
        spec: local or remote (`gs://`). Either a folder whose subfolders are the classes, numbered
            in sorted order, with video files or folders of pictures at any depth below them; or a
            list file, UTF-8 (or UTF-16 with its mark), its fields separated by spaces, tabs or
            commas. Its rows:

            - `path label`; the path is a video file or a folder of pictures, and may hold spaces.
            - `path 0 -1`: a whole video file without a label, as VideoMAE V2 writes it.
            - `folder start_index total_frames` where no labels are wanted, else `folder
              total_frames label`: raw frames named by `template`, from 0 or 1 on.

            Quote a path that itself ends with a space and a number.
        root: what relative paths of a list start from; the list's own folder if empty.
        num_classes: labels must be in `[0, num_classes)`; 0 accepts lists without labels.
        template: file name of raw frame number n by `str.format`; `TEMPLATE` if empty.

    Raises:
        DataError: nothing at `spec`, no videos in it, a row without a label, with several or with
            one out of range (file, line and label are shown), or raw frames that are not called so
            (the expected file is shown).
    """
    source = epath.Path(spec)
    if not spec or not source.exists():
        raise DataError(
            f"no list file or folder at {spec!r}; check the path, or give several as data.mix"
        )
    if source.is_dir():
        records = _class_folders(spec.rstrip("/"))
    else:
        rows = _parse(source, (root or str(source.parent)).rstrip("/"), num_classes)
        records = _records(source, rows, num_classes, template or TEMPLATE)
    if not records:
        raise DataError(f"{spec}: no videos in it; write one 'path label' per line")
    labels: dict[str, int] = {}
    if other := [r.id for r in records if labels.setdefault(r.id, r.label) != r.label]:
        _LOG.warning("%s: %d rows name a video with another label: %s", spec, len(other), other[0])
    names = unique(record.id for record in records)
    return [record._replace(id=name) for name, record in zip(names, records)]


def read_lines(file: epath.Path) -> list[str]:
    """Lines of a text file, UTF-8 or UTF-16 with its mark, without white space around them."""
    data = file.read_bytes()
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DataError(f"{file}: is not UTF-8 text; save it as UTF-8")
    # Not by `splitlines`, which also cuts at characters that names may hold.
    return [line.strip() for line in re.split("\r\n?|\n", text.rstrip())]


class _Row(NamedTuple):
    """A line of a list: the name as written, and its numbers, the label or two of raw frames."""

    line: int
    name: str
    path: str
    numbers: tuple[int, ...]


def _parse(file: epath.Path, base: str, num_classes: int) -> list[_Row]:
    rows: list[_Row] = []
    low, high = (0 if num_classes else -1), (num_classes or ANY) - 1
    for line, text in enumerate(read_lines(file), 1):
        name, numbers = text, list[int]()
        while len(numbers) < 3 and (match := _LAST_NUMBER.search(name)):
            name, numbers = name[: match.start()], [int(match[2]), *numbers]
        if not name:
            continue
        if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'":
            name = name[1:-1]
        path = (name if name.startswith("/") or "://" in name else f"{base}/{name}").rstrip("/")
        raw = len(numbers) == 2 and not is_video(name)
        if numbers[1:] == [-1] or (len(numbers) == 2 and not raw and not num_classes):
            raw, numbers = False, []
        reason = ""
        if not rows and not numbers and _is_header(name, path):
            reason = "looks like a header: delete that line"
        elif num_classes and not numbers:
            reason = "no integer label after the path"
        elif len(numbers) > 1 + raw:
            reason = "more than one label; write one, or quote a path that ends with a number"
        elif numbers and not (low <= numbers[-1] <= high and numbers[0] < ANY):
            reason = f"label {numbers[-1]} is outside {low}..{high}; correct it or data.num_classes"
        if reason:
            raise DataError(f"{file}, line {line}, {text!r}: {reason}")
        rows.append(_Row(line, name, path, tuple(numbers)))
    return rows


def _is_header(name: str, path: str) -> bool:
    """Whether it is words alone, and nothing is called so."""
    return not re.search(r"[\d./]", name) and not epath.Path(path).exists()


def _records(file: epath.Path, rows: list[_Row], num_classes: int, template: str) -> list[Record]:
    """Rows become records, after a look at the first of those that could be two things."""

    def exists(row: _Row, number: int) -> bool:
        return (epath.Path(row.path) / template.format(number)).exists()

    raw = [row for row in rows if len(row.numbers) == 2][:_LOOKS]
    if raw and not _has_number(template):
        raise DataError(f"data.template={template!r} holds no number; write {TEMPLATE!r}")
    start = 0 if any(exists(row, 0) for row in raw) else 1
    if raw and not any(exists(row, start if num_classes else row.numbers[0]) for row in raw):
        picture = template.format(start if num_classes else raw[0].numbers[0])
        order = "`folder total label`" if num_classes else "`folder start total`"
        raise DataError(
            f"{file}, line {raw[0].line}: no picture {raw[0].path}/{picture}; rows of raw frames "
            f"are {order} here; say how the files are called: data.template={template}"
        )
    plain = (row for row in rows if len(row.numbers) < 2 and not is_video(row.name))
    folders = any(epath.Path(row.path).is_dir() for row in itertools.islice(plain, _LOOKS))
    records = []
    for _, name, path, numbers in rows:
        if len(numbers) == 2:
            first, total = (start, numbers[0]) if num_classes else numbers
            label = numbers[-1] if num_classes else -1
            records.append(Record(name, path, label, Numbered(path, template, first, total)))
        else:
            folder = Folder(path) if folders and not is_video(name) else None
            records.append(Record(name, path, numbers[0] if numbers else -1, folder))
    return records


def _has_number(template: str) -> bool:
    try:
        return template.format(0) != template
    except (LookupError, ValueError):
        return False


_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # How Python writes such bytes.


def walk(root: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` of a local or remote folder: relative paths, sorted, no hidden ones or loops."""
    root = root.rstrip("/")
    found = epath.Path(root).walk() if "://" in root else os.walk(root, followlinks=True)
    for folder, folders, names in found:
        for name in filter(_NOT_UTF8.search, (*folders, *names)):
            raise DataError(f"{root}: the name {name!a} is not UTF-8; rename it")
        shown = (name for name in folders if not name.startswith("."))
        folders[:] = sorted(name for name in shown if not _leads_back(f"{folder}/{name}"))
        inside = str(folder)[len(root) :].strip("/")
        yield inside, folders, sorted(name for name in names if not name.startswith("."))


def _leads_back(folder: str) -> bool:
    path = pathlib.Path(folder).absolute()
    return path.is_symlink() and any(map(path.samefile, path.parents))


def class_names(folder: str) -> list[str]:
    """Names of the class folders in the order of their labels."""
    return next((folders for _, folders, _ in walk(folder)), [])


def _class_folders(root: str) -> list[Record]:
    classes = class_names(root)
    if not classes:
        raise DataError(
            f"{root}: no class folders in it; put videos into one folder per class, or "
            f"name a list of them: a path in every line"
        )
    if "train" in classes and _HELD_OUT.intersection(classes):
        raise DataError(f"{root}: holds splits, no classes; name one, such as {root}/train")
    records: list[Record] = []
    passed: list[str] = []
    for inside, _, names in walk(root):
        label = classes.index(inside.partition("/")[0]) if inside else -1
        videos = [name for name in names if inside and is_video(name)]
        others = [name for name in names if not (inside and is_video(name))]
        for name in (f"{inside}/{name}" for name in videos):
            records.append(Record(name, f"{root}/{name}", label))
        if "/" in inside and not videos and any(map(is_picture, names)):
            records.append(Record(inside, f"{root}/{inside}", label, Folder(f"{root}/{inside}")))
            others = [name for name in others if not is_picture(name)]
        passed += [f"{inside}/{name}".lstrip("/") for name in others]
    if passed:
        shown = ", ".join(passed[:3])
        _LOG.warning("%s: %d files passed over, no videos by name: %s", root, len(passed), shown)
    filled = {record.label for record in records}
    if records and (empty := [name for n, name in enumerate(classes) if n not in filled]):
        _LOG.warning("%s: no video in class %s", root, ", ".join(empty))
    return records


def is_video(path: str) -> bool:
    """Whether a file is called like a video."""
    _, dot, extension = path.rpartition(".")
    return bool(dot) and extension.lower() in _VIDEO


def unique(names: Iterable[str]) -> list[str]:
    """The second `a` becomes `a#2`, and so on."""
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return numbered
