"""List files and class folders become records."""

import re
from collections import Counter
from collections.abc import Iterable

from etils import epath

from input_pipeline.records import DataError, Record

EXTENSIONS = frozenset(
    ["avi", "mp4", "mkv", "webm", "mov", "mpg", "mpeg", "m4v", "wmv", "flv", "ts"]
)
_LINE = re.compile(r"(.+?)\s*[,\t ]\s*([+-]?\d+)")


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
