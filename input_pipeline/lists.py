"""List files and class folders become records; nothing is opened but a few names looked up."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from etils import epath

from input_pipeline.records import DataError, Record
from input_pipeline.stills import Folder, Numbered, is_picture

EXTENSIONS = frozenset(
    ["avi", "mp4", "mkv", "webm", "mov", "mpg", "mpeg", "m4v", "wmv", "flv", "ts"]
)
TEMPLATE = "img_{:05}.jpg"
_INTEGER = re.compile(r"[+-]?\d+")
_LIMIT = 2**31  # labels are int32 in a batch, also where none are wanted
_LOOKS = 16  # rows of a list that are looked up, if their text leaves a choice


def load(spec: str, root: str = "", num_classes: int = 0, template: str = TEMPLATE) -> list[Record]:
    """Reads a list file or a folder of class folders.

    Args:
        spec: local or remote (`gs://`). Either a folder whose subfolders are the classes, numbered
            in sorted order, with video files or folders of pictures in them; or a list file, its
            fields separated by spaces, tabs or commas, blank and `#` lines ignored. Its rows:

            - `path label`; the path is a video file or a folder of pictures, and may hold spaces.
            - `path 0 -1`: a whole video file without a label, as VideoMAE V2 writes it.
            - `folder start_index total_frames` (no labels wanted) and `folder total_frames label`:
              raw frames named by `template`.

            A row that ends with two integers is of one of the latter kinds; quote a path without a
            video extension that itself ends with a space and a number.
        root: what relative paths of a list start from; the list's own folder if empty.
        num_classes: labels must be in `[0, num_classes)`; 0 accepts lists without labels.
        template: file name of raw frame number n by `str.format`.

    Returns:
        The records in the order of the list.

    Raises:
        DataError: nothing at `spec`, no videos in it, a line without a label or with one out of
            range (file, line, label and range are shown) or beyond int32, a wrong number of class
            folders, a template without a place for a number, or raw frames that are not called so
            (the expected file is shown).

    Note:
        Text decides where it can. Whether paths without a video extension are files or folders,
        and where raw frames start (labelled rows do not say), is looked up for the first rows that
        leave it open and holds for the whole list. With `num_classes=0`, rows of raw frames whose
        first number is exactly the number of pictures in the folder are `folder total label`.
    """
    source = epath.Path(spec) if spec else None
    if source is None or not source.exists():
        raise DataError(f"no list file or folder at {spec!r}; check the path of the data set")
    if source.is_dir():
        records = _walk(source, num_classes)
    else:
        rows = _parse(source, root or str(source.parent), num_classes)
        records = _records(source, rows, num_classes, template)
    if not records:
        raise DataError(f"{spec}: no videos in it; write one 'path label' per line")
    names = unique(record.id for record in records)
    return [r if r.id == name else r._replace(id=name) for name, r in zip(names, records)]


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


def _lines(file: epath.Path) -> list[str]:
    try:
        return file.read_text().removeprefix("\ufeff").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not a text file; give a list with 'path label' lines") from error


class _Row(NamedTuple):
    """A line of a list; raw frames have two `numbers`, of which `label` is the last."""

    line: int
    written: str
    path: str
    label: int
    numbers: tuple[int, ...]


def _parse(file: epath.Path, base: str, num_classes: int) -> list[_Row]:
    rows = []
    for number, line in enumerate(_lines(file), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        path, last = _take_integer(line)
        path, first = (path, None) if last is None else _take_integer(path)
        path = path.strip("\"'")
        if last is None and num_classes:
            raise DataError(f"{file}, line {number}: no integer label after the path in {line!r}")
        label = -1 if last is None else last
        numbers: tuple[int, ...] = ()
        if first is not None and (label < 0 or (_is_video(path) and not num_classes)):
            label = -1
        elif first is not None and _is_video(path):
            raise DataError(
                f"{file}, line {number}: two numbers after a video file in {line!r}; write "
                "'path label', with the path in quotes if it ends with a number"
            )
        elif first is not None:
            numbers = (first, label)
        if num_classes and not 0 <= label < num_classes:
            raise DataError(
                f"{file}, line {number}: label {label} is outside 0..{num_classes - 1}; "
                f"correct it or data.num_classes={num_classes}"
            )
        if beyond := [n for n in (label, *numbers) if not -_LIMIT <= n < _LIMIT]:
            raise DataError(
                f"{file}, line {number}: {beyond[0]} does not fit into 32 bits; correct it, or put "
                "the path in quotes if the number belongs to it"
            )
        absolute = path.startswith("/") or "://" in path
        full = path if absolute else f"{base.rstrip('/')}/{path}"
        rows.append(_Row(number, path, full, label, numbers))
    return rows


def _take_integer(text: str) -> tuple[str, int | None]:
    """Cuts the last field off if it is an integer; one that ends with a quote is none."""
    cut = max(text.rfind(" "), text.rfind("\t"), text.rfind(","))
    if cut < 1 or not _INTEGER.fullmatch(text, cut + 1):
        return text, None
    rest = text[:cut].rstrip()
    rest = rest if text[cut] == "," else rest.removesuffix(",").rstrip()
    return (rest, int(text[cut + 1 :])) if rest else (text, None)


def _records(file: epath.Path, rows: list[_Row], num_classes: int, template: str) -> list[Record]:
    """Rows become records, after a look at the first of those that could be two things."""
    raw = list(itertools.islice((row for row in rows if row.numbers), _LOOKS))
    labelled, start = _numbering(file, raw, num_classes, template) if raw else (False, 0)
    plain = (row.path for row in rows if not row.numbers and not _is_video(row.path))
    folders = any(epath.Path(path).is_dir() for path in itertools.islice(plain, _LOOKS))
    records = []
    for _, written, path, label, numbers in rows:
        if numbers:
            first, total = (start, numbers[0]) if labelled else numbers
            frames = Numbered(path, template, first, max(total, 0))
            records.append(Record(written, path, label if labelled else -1, frames, frames.total))
        else:
            folder = Folder(path) if folders and not _is_video(path) else None
            records.append(Record(written, path, label, folder))
    return records


def _numbering(
    file: epath.Path, rows: list[_Row], num_classes: int, template: str
) -> tuple[bool, int]:
    """Whether rows of raw frames are `folder total label`, and the number of the first frame."""
    try:
        usable = template.format(1) != template.format(2)
    except (IndexError, KeyError, ValueError):
        usable = False
    if not usable:
        raise DataError(f"template={template!r} has no place for a number; write {TEMPLATE!r}")
    for row in rows:
        first = row.numbers[0]
        start = 0 if _exists(row, template, 0) else 1
        if num_classes and _exists(row, template, start):
            return True, start
        if num_classes:
            continue
        # Exactly `first` pictures: those of a `start total` row go on behind number `first`.
        last = start + first - 1
        if first and _exists(row, template, last) and not _exists(row, template, last + 1):
            return True, start
        if _exists(row, template, first):
            return False, 0
    expected = template.format(1 if num_classes else rows[0].numbers[0])
    raise DataError(
        f"{file}, line {rows[0].line}: no picture {rows[0].path}/{expected}; say how raw frames "
        f"are called: {file.name}?template={TEMPLATE}"
    )


def _exists(row: _Row, template: str, number: int) -> bool:
    return (epath.Path(row.path) / template.format(number)).exists()


def _walk(folder: epath.Path, num_classes: int) -> list[Record]:
    classes = _class_folders(folder)
    if not classes:
        raise DataError(f"{folder}: no class folders in it; put videos into one folder per class")
    if num_classes and len(classes) != num_classes:
        raise DataError(
            f"{folder}: {len(classes)} class folders, but data.num_classes={num_classes}; "
            "make them agree"
        )
    records = []
    for label, one in enumerate(classes):
        inside = (path for path in one.iterdir() if not path.name.startswith("."))
        holds_pictures: bool | None = None  # of its subfolders; the first one tells
        for path in sorted(inside, key=lambda path: path.name):
            name = f"{one.name}/{path.name}"
            if _is_video(path.name):
                records.append(Record(name, str(path), label))
            elif holds_pictures is not False and path.is_dir():
                if holds_pictures is None:
                    holds_pictures = any(is_picture(file.name) for file in path.iterdir())
                if holds_pictures:
                    records.append(Record(name, str(path), label, Folder(str(path))))
    return records


def _is_video(path: str) -> bool:
    _, dot, extension = path.rpartition(".")
    return bool(dot) and extension.lower() in EXTENSIONS


def _class_folders(folder: epath.Path) -> list[epath.Path]:
    inside = (one for one in folder.iterdir() if not one.name.startswith("."))
    return sorted((one for one in inside if one.is_dir()), key=lambda one: one.name)


def unique(names: Iterable[str]) -> list[str]:
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
