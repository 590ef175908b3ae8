"""List files and class folders become records; of the videos nothing is opened."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from etils import epath

from input_pipeline.sources.frames import Folder, Numbered, is_picture
from input_pipeline.sources.records import ANY, DataError, Record

_LOG = logging.getLogger(__name__)

_NAMES = (
    "264 265 3g2 3gp apng asf avi divx dv f4v flv gif h264 h265 hevc ivf m1v m2t m2ts m2v m4v mj2 "
    "mjpeg mjpg mkv mov mp4 mp4v mpe mpeg mpg mpg4 mts mxf nut obu ogg ogm ogv qt rm rmvb ts vob "
    "webm wmv xvid y4m"
)
_VIDEO = frozenset(_NAMES.split())
TEMPLATE = "img_{:05}.jpg"
_ROW = re.compile(r"""(.+?)((?:[\s,]+(?:-?\d+|"-?\d+"))*)""")


def load(spec: str, root: str = "", num_classes: int = 0, template: str = "") -> list[Record]:
    """Reads a list file or a folder of class folders, in its order.

    Args:
        spec: local or remote (`gs://`). Either a folder whose subfolders are the classes, numbered
            in sorted order, with video files or folders of pictures at any depth below them; or a
            list file, its fields separated by spaces, tabs or commas. Its rows:

            - `path label`; a path without the extension of a video is a folder of pictures.
            - `path 0 -1`: a whole video file without a label, as VideoMAE V2 writes it.
            - `folder start_index total_frames` where no labels are wanted, else `folder
              total_frames label`: raw frames named by `template`, from 0 or 1 on as in the first.

            Quote a path that itself ends with a space and a number.
        root: what relative paths of a list start from; the list's own folder if empty.
        num_classes: labels must be in `[0, num_classes)`; 0 accepts lists without labels.
        template: file name of raw frame number n by `str.format`; `TEMPLATE` if empty.

    Raises:
        DataError: nothing at `spec`, no videos in it, or a row without a label, with several or
            with one out of range (file, line and label are shown).
    """
    source = epath.Path(spec)
    if not spec or not source.exists():
        raise DataError(f"no list file or folder at {spec!r}; check the path of the data set")
    if source.is_dir():
        records = _class_folders(spec.rstrip("/"))
    else:
        base = (root or str(source.parent)).rstrip("/")
        records = list(_rows(source, base, num_classes, template or TEMPLATE))
    if not records:
        raise DataError(f"{spec}: no videos in it; write one 'path label' per line")
    names = unique(record.id for record in records)
    return [record._replace(id=name) for name, record in zip(names, records)]


def read_lines(file: epath.Path) -> list[str]:
    """Lines of a UTF-8 text file without white space around them."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 text; save it as UTF-8") from error
    # Not by `splitlines`, which also cuts at characters that names may hold.
    return [line.strip() for line in text.rstrip().split("\n")]


def _rows(file: epath.Path, base: str, num_classes: int, template: str) -> Iterator[Record]:
    start: int | None = None
    low, high = (0 if num_classes else -1), (num_classes or ANY) - 1
    for number, line in enumerate(read_lines(file), 1):
        match = _ROW.fullmatch(line)
        if match is None:
            continue
        name, numbers = match[1], [int(n) for n in re.findall(r"-?\d+", match[2])]
        if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'":
            name = name[1:-1]
        path = name if name.startswith("/") or "://" in name else f"{base}/{name}"
        if numbers[1:] == [-1]:
            numbers = []
        raw = len(numbers) == 2 and not is_video(name)
        label = numbers[-1] if numbers and (num_classes or not raw) else -1
        reason = ""
        if num_classes and not numbers:
            reason = "no integer label after the path"
        elif len(numbers) > 1 + raw:
            reason = "more than one label; put a path that ends with a number in quotes"
        elif not low <= label <= high:
            reason = f"label {label} is outside {low}..{high}; correct it or data.num_classes"
        if reason:
            raise DataError(f"{file}, line {number}, {line!r}: {reason}")
        if raw:
            if start is None:
                start = 0 if (epath.Path(path) / template.format(0)).exists() else 1
            first, total = (start, numbers[0]) if num_classes else numbers
            yield Record(name, path, label, Numbered(path, template, first, total))
        else:
            yield Record(name, path, label, None if is_video(name) else Folder(path))


def walk(root: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` of a local or remote folder: relative paths, sorted, no hidden ones."""
    root = root.rstrip("/")
    found = epath.Path(root).walk() if "://" in root else os.walk(root, followlinks=True)
    for folder, folders, names in found:
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = str(folder)[len(root) :].strip("/")
        yield inside, folders, sorted(name for name in names if not name.startswith("."))


def class_names(folder: str) -> list[str]:
    """Names of the class folders in the order of their labels."""
    return next((folders for _, folders, _ in walk(folder)), [])


def _class_folders(root: str) -> list[Record]:
    classes = class_names(root)
    if not classes:
        raise DataError(f"{root}: no class folders in it; put videos into one folder per class")
    if "train" in classes and {"val", "test"}.intersection(classes):
        raise DataError(f"{root}: holds splits, no classes; name one, such as {root}/train")
    records: list[Record] = []
    passed: list[str] = []
    for inside, _, names in walk(root):
        label = classes.index(inside.partition("/")[0]) if inside else -1
        videos = [name for name in names if inside and is_video(name)]
        others = [name for name in names if name not in videos]
        for name in (f"{inside}/{name}" for name in videos):
            records.append(Record(name, f"{root}/{name}", label))
        if "/" in inside and not videos and any(map(is_picture, names)):
            records.append(Record(inside, f"{root}/{inside}", label, Folder(f"{root}/{inside}")))
        else:
            passed += others
    if passed:
        _LOG.warning("%s: %d files are no videos by name: %s ...", root, len(passed), passed[0])
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
