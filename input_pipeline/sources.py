"""Every way to name videos becomes a sequence of records: lists, folders, TFDS, ArrayRecord, sums.

`train.csv`, `folder`, `packed_folder`, `tfds:ucf101/ucf101_1`, `a.csv + b.csv?weight=2&stride=2`.
"""

import bisect
import re
from collections.abc import Sequence
from typing import NamedTuple

from input_pipeline import lists, packed, tfds_records
from input_pipeline.records import DataError, LazyRecords, Record

_OPTIONS = re.compile(r"(?P<spec>.+?)\?(?P<options>\w+=[^&]*(?:&\w+=[^&]*)*)")
_KNOWN = ("weight", "stride", "template", "root")


class Part(NamedTuple):
    """One source of a mixture.

    Attributes:
        offset: position of its first record in the mixture.
        weight: how often one of its records is drawn, relative to a record of a part of weight 1:
            with equal weights a mixture is the union of its parts, to within 1 %, for grain counts
            shares in hundredths of the smallest.
        records: its own records.
        prefix: what its records' ids start with in the mixture.
        stride: frames between samples of its records; 0 leaves theirs.
    """

    offset: int
    weight: float
    records: Sequence[Record]
    prefix: str = ""
    stride: int = 0


class Mixture(LazyRecords):
    """Several sources one after the other.

    Attributes:
        parts: of at least one record each.
    """

    def __init__(self, parts: tuple[Part, ...]):
        self.parts = parts
        self._ends = [part.offset + len(part.records) for part in parts]

    def __len__(self) -> int:
        return self._ends[-1]

    def at(self, position: int) -> Record:
        """The record at a position from 0 on."""
        part = self.parts[bisect.bisect_right(self._ends, position)]
        record = part.records[position - part.offset]
        return record._replace(id=part.prefix + record.id, stride=part.stride or record.stride)


def load(
    spec: str,
    root: str = "",
    num_classes: int = 0,
    split: str = "train",
    template: str = lists.TEMPLATE,
) -> Sequence[Record]:
    """The records of a source.

    Args:
        spec: a list file or folder (`lists.load`), a packed folder or file (`packed.load`),
            `tfds:NAME/CONFIG` (`tfds_records.load`), or several of these joined by ` + `. Each may
            end with options, `?name=value&name=value`: `weight` (`Part`), `stride` (frames between
            samples, in place of `data.frame_stride`), `template` and `root` (in place of the
            arguments).
        root: what relative paths of lists start from; TFDS's data folder.
        num_classes: labels must be in `[0, num_classes)`; 0 accepts records without labels.
        split: of sources that hold more than one: "train", "val" or "test".
        template: file name of raw frames in lists.

    Returns:
        The source's own sequence, or a `Mixture` if there are several or one with options that
        change its records. Both can be pickled; records may be read only when asked for.

    Raises:
        DataError: an unknown option, a value that cannot be, or as the source's own `load`.
    """
    texts = _split(spec)
    names = lists.unique(_name(_parse(text)[0]) for text in texts)
    parts: list[Part] = []
    for text, name in zip(texts, names):
        where, options = _parse(text)
        own_root, own_template = options.get("root", root), options.get("template", template)
        if where.startswith(tfds_records.PREFIX):
            records: Sequence[Record]
            records = tfds_records.load(where, own_root, num_classes, split)
        elif packed.is_packed(where):
            records = packed.load(where, split, num_classes)
        else:
            records = lists.load(where, own_root, num_classes, own_template)
        if not records:
            raise DataError(f"{where}: no videos in it")
        offset = parts[-1].offset + len(parts[-1].records) if parts else 0
        prefix = f"{name}:" if len(texts) > 1 else ""
        weight = _number(text, options, "weight", 1.0)
        stride = int(_number(text, options, "stride", 0.0))
        parts.append(Part(offset, weight, records, prefix, stride))
    only = parts[0]
    return only.records if len(parts) == 1 and not only.stride else Mixture(tuple(parts))


def parts_of(records: Sequence[Record]) -> tuple[Part, ...]:
    """The parts of a mixture; of any other sequence one, of weight 1."""
    return records.parts if isinstance(records, Mixture) else (Part(0, 1.0, records),)


def class_names(spec: str, num_classes: int, root: str = "") -> list[str]:
    """Names of the classes as the source gives them, else "0", "1", ...

    Raises:
        DataError: not `num_classes` names, or parts of a mixture that differ (both are named).
    """
    numbers = [str(label) for label in range(num_classes)]
    given, giver = numbers, ""
    for text in _split(spec):
        where, options = _parse(text)
        if where.startswith(tfds_records.PREFIX):
            names = tfds_records.class_names(where, num_classes, options.get("root", root))
        elif packed.is_packed(where):
            names = packed.class_names(where) or numbers
        else:
            names = lists.class_names(where, num_classes)
        if len(names) != num_classes:
            raise DataError(
                f"{where}: {len(names)} class names, but data.num_classes={num_classes}; "
                "make them agree"
            )
        if names == numbers:
            continue
        if giver and names != given:
            first = next(label for label, (a, b) in enumerate(zip(given, names)) if a != b)
            raise DataError(
                f"{giver} and {where}: class {first} is {given[first]!r} and {names[first]!r}; "
                "mix only sources of the same classes"
            )
        given, giver = names, where
    return given


def _split(spec: str) -> list[str]:
    return [text.strip() for text in re.split(r"\s\+\s", spec)]


def _parse(text: str) -> tuple[str, dict[str, str]]:
    """Where the source is, and its options.

    Raises:
        DataError: an option that is not known; the line names those that are.
    """
    match = _OPTIONS.fullmatch(text)
    if match is None:
        return text, {}
    options = dict(one.split("=", 1) for one in match["options"].split("&"))
    for name in options:
        if name not in _KNOWN:
            raise DataError(f"{text}: option {name!r} is none of {', '.join(_KNOWN)}")
    return match["spec"], options


def _number(text: str, options: dict[str, str], name: str, default: float) -> float:
    """The value of an option that must be a number above 0, and whole for `stride`."""
    if name not in options:
        return default
    try:
        value = float(options[name])
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf") or (name == "stride" and value != int(value)):
        kind = "a whole number" if name == "stride" else "a number"
        raise DataError(f"{text}: {name}={options[name]}; it must be {kind} above 0")
    return value


def _name(where: str) -> str:
    """Short name of a source: `a/ssv2.csv` is `ssv2`."""
    last = where.rstrip("/").rpartition("/")[2]
    return last.removeprefix(tfds_records.PREFIX).partition(".")[0] or where
