"""List files and class folders become records; no video is opened."""

import csv
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from etils import epath

from input_pipeline.sources.frames import Numbered, is_picture, is_video
from input_pipeline.sources.records import ANY, DataError, Record

_LOG = logging.getLogger(__name__)
Columns = tuple[str, str]

TEMPLATE = "img_{:05}.jpg"
_LAST_NUMBER = re.compile(r"""(?<=\S)[\s,]+("?)([+-]?\d{1,30})\1$""")
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""The split of a folder called so."""
_LOOKS = 16  # Folders of raw frames that are looked into, until one has the first picture.


def load(
    spec: str, root: str = "", num_classes: int = 0, template: str = "", columns: Columns = ("", "")
) -> list[Record]:
    """Reads a list, a table or a folder, local or remote, as docs/data.md ("Sources") has them.

    Relative paths of a list start from `root`, its own folder if that is empty. Labels must be in
    `[0, num_classes)`; 0 accepts videos without labels. `template` is TEMPLATE if empty; `columns`
    make a list a table.
    """
    source = epath.Path(spec)
    if not spec or not source.exists():
        raise DataError(
            f"no list file or folder at {spec!r}; check the path (data.root, .train, .val, .test)"
        )
    if source.is_dir():
        records = _in_folder(spec.rstrip("/"), num_classes > 0)
    else:
        base = (root or str(source.parent)).rstrip("/")
        if num_classes and columns[0] and not columns[1]:
            raise DataError(f"{spec}: set data.label_column to one of {read_lines(source)[0]}")
        lines = table(source, columns)[0] if any(columns) else read_lines(source)
        records = _rows(source, lines, base, num_classes, template or TEMPLATE)
    if not records:
        raise DataError(f"{spec}: no videos in it; write one 'path label' per line")
    labels: dict[str, int] = {}
    if other := [r.id for r in records if labels.setdefault(r.id, r.label) != r.label]:
        _LOG.warning("%s: %d rows name a video with another label: %s", spec, len(other), other[0])
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


def table(file: epath.Path, columns: Columns) -> tuple[list[str], list[str]]:
    """Lines of the list that a CSV file with a header is, and the names of its classes, sorted.

    Labels that all are numbers have no names; without a column of labels there are none.
    """
    lines = read_lines(file)
    rows = csv.DictReader(lines, delimiter=max(",;\t", key=lines[0].count), strict=True)
    there = rows.fieldnames or ()
    for key, name in zip(("path_column", "label_column"), columns):
        if name not in there and (name or key == "path_column"):
            raise DataError(f"{file}: data.{key}={name!r} is none of {', '.join(there)}")
    path, label = columns
    try:
        found = [((row[path] or "").strip(), (row.get(label) or "").strip()) for row in rows]
    except csv.Error as error:
        raise DataError(f"{file}: {error}; mend its quotes") from error
    names = sorted({name for _, name in found})
    numbers = {name: str(n) for n, name in enumerate(names)}
    if not label or all(re.fullmatch(r"-?\d+", name) for name in names):
        names, numbers = [], {name: name for name in names}
    for n, row in enumerate(found, 2):
        if not all(row[: 1 + bool(label)]):
            raise DataError(f"{file}, row {n}: a path or a label is missing")
    return ["", *(f'"{name}" {numbers[label]}'.strip() for name, label in found)], names


def _rows(
    file: epath.Path, lines: list[str], base: str, num_classes: int, template: str
) -> list[Record]:
    """Of `path label`; and as VideoMAE V2 writes them `path 0 -1`, a video without a label, and raw
    frames from 0 or 1 on: `folder start total` where no labels are wanted, else `folder total
    label`.
    """
    records: list[Record] = []
    raw: list[Numbered] = []
    low, high = (0 if num_classes else -1), (num_classes or ANY) - 1
    for line, text in enumerate(lines, 1):
        name, numbers = text, list[int]()
        while len(numbers) < 3 and (match := _LAST_NUMBER.search(name)):
            name, numbers = name[: match.start()], [int(match[2]), *numbers]
        if not name:
            continue
        if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'":
            name = name[1:-1]
        path = (name if name.startswith("/") or "://" in name else f"{base}/{name}").rstrip("/")
        frames = len(numbers) == 2 and not is_video(name)
        if numbers[1:] == [-1] or (len(numbers) == 2 and not frames and not num_classes):
            frames, numbers = False, []
        words = not numbers and not re.search(r"[./]" if "," in text else r"[\d./]", name)
        reason = ""
        if words and not records and not epath.Path(path).exists():
            reason = "looks like a header: name its columns: data.path_column, data.label_column"
        elif num_classes and not numbers:
            reason = "no integer label after the path"
        elif len(numbers) > 1 + frames:
            reason = "more than one label; write one, or quote a path that ends with a number"
        elif numbers and not (low <= numbers[-1] <= high and numbers[0] < ANY):
            reason = f"label {numbers[-1]} is outside {low}..{high}; correct it or data.num_classes"
        if reason:
            raise DataError(f"{file}, line {line}, {text!r}: {reason}")
        label = numbers[-1] if numbers and (num_classes or not frames) else -1
        if frames:
            first, total = (1, numbers[0]) if num_classes else numbers
            raw.append(Numbered(path, template, first, total))
        records.append(Record(name, path, label, raw[-1] if frames else None))
    if num_classes and _any_there([one._replace(first=0) for one in raw]):
        for number, record in enumerate(records):
            if isinstance(record.data, Numbered):
                records[number] = record._replace(data=record.data._replace(first=0))
    elif raw and not _any_there(raw):
        order = "`folder total label`" if num_classes else "`folder start total`"
        raise DataError(
            f"{file}: no picture {raw[0].path(0)}; rows of raw frames are {order} here; say how "
            f"the files are called: data.template={template}"
        )
    return records


def _any_there(raw: list[Numbered]) -> bool:
    return any(epath.Path(one.path(0)).exists() for one in raw[:_LOOKS])


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


def _in_folder(root: str, labelled: bool) -> list[Record]:
    _, classes, loose = next(walk(root), ("", [], []))
    if flat := not labelled and any(map(is_video, loose)):
        classes = []
    elif not classes:
        raise DataError(
            f"{root}: no class folders in it; give one folder per class, such as {root}/run/a.mp4, "
            "or a list or table of labelled videos"
        )
    if len({SPLITS.get(name.lower(), "") for name in classes} - {""}) > 1:
        raise DataError(
            f"{root}: holds splits, no classes; give it as data.root alone, with train/ in it, or "
            f"name one, such as {root}/train"
        )
    records: list[Record] = []
    passed: list[str] = []
    for inside, _, names in walk(root):
        label = classes.index(inside.partition("/")[0]) if inside and classes else -1
        good = [name for name in names if (inside or flat) and is_video(name)]
        videos = [f"{inside}/{name}".lstrip("/") for name in good]
        if "/" in inside and not good and (good := list(filter(is_picture, names))):
            videos = [inside]
        records += [Record(name, f"{root}/{name}", label) for name in videos]
        passed += [f"{inside}/{name}".lstrip("/") for name in sorted({*names}.difference(good))]
    if passed:
        shown = ", ".join(passed[:3])
        _LOG.warning("%s: %d files passed over, no videos by name: %s", root, len(passed), shown)
    filled = {record.label for record in records}
    if records and (empty := [name for n, name in enumerate(classes) if n not in filled]):
        _LOG.warning("%s: no video in class %s", root, ", ".join(empty))
    return records


def unique(names: Iterable[str]) -> Iterator[str]:
    """The second `a` becomes `a#2`, and so on."""
    seen: Counter[str] = Counter()
    for name in names:
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name}#{seen[name]}"
