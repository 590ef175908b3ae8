"""Every way to name videos becomes a sequence of records: lists, folders, TFDS, ArrayRecord, sums.

`train.csv`, `folder`, `packed_folder`, `tfds:ucf101/ucf101_1`, `a.csv + b.csv?weight=2&stride=2`.
"""

import bisect
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from input_pipeline.sources import arrayrecord as packed
from input_pipeline.sources import lists
from input_pipeline.sources import tfds as tfds_records
from input_pipeline.sources.records import ANY, DataError, LazyRecords, Record
from input_pipeline.table import Table

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
        labels: in the mixture of each of its own labels; empty leaves them.
    """

    offset: int
    weight: float
    records: Sequence[Record]
    prefix: str = ""
    stride: int = 0
    labels: tuple[int, ...] = ()


class Classes(NamedTuple):
    """Names of classes.

    Attributes:
        names: in the order of their labels.
        source: who gives them.
    """

    names: tuple[str, ...] = ()
    source: str = ""


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
        label = part.labels[record.label] if part.labels and record.label >= 0 else record.label
        stride = part.stride or record.stride
        return record._replace(id=part.prefix + record.id, stride=stride, label=label)


def load(
    spec: str,
    root: str = "",
    num_classes: int = 0,
    split: str = "train",
    template: str = lists.TEMPLATE,
    classes: Classes | None = None,
) -> Sequence[Record]:
    """The records of a source.

    Args:
        spec: a list file or folder (`lists.load`), a packed folder or file (`packed.load`),
            `tfds:NAME/CONFIG` (`tfds_records.load`), or several of these joined by ` + `. Each may
            end with options, `?name=value&name=value`: `weight` (`Part`), `stride` (frames between
            samples, in place of `data.frame_stride`), and in place of the arguments `template` (of
            lists) and `root` (of lists and TFDS).
        root: what relative paths of lists start from; TFDS's data folder.
        num_classes: labels must be in `[0, num_classes)`; 0 accepts records without labels.
        split: of sources that hold more than one: "train", "val" or "test".
        template: file name of raw frames in lists.
        classes: whose order labels get, by the names of the classes; those of the first part that
            names them if None. Parts that name none keep their labels.

    Returns:
        The source's own sequence, or a `Mixture` if there are several or one with options that
        change its records. Both can be pickled; records may be read only when asked for.

    Raises:
        DataError: an unknown option, a value that cannot be, other classes than `classes`, or as
            the source's own `load`.
    """
    texts = _split(spec)
    names = lists.unique(_name(_parse(text)[0]) for text in texts)
    classes = classes or (reference(named(spec, root)) if num_classes else Classes())
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
        labels: tuple[int, ...] = ()
        for own in named(text, root) if num_classes else ():
            if num_classes not in (ANY, len(own.names)):
                raise DataError(
                    f"{where}: has {len(own.names)} classes, {num_classes} wanted; correct "
                    "data.num_classes, or set it to 0 for as many as there are"
                )
            labels = order(classes, own)
        parts.append(Part(offset, weight, records, prefix, stride, labels))
    only = parts[0]
    plain = len(parts) == 1 and not only.stride and not only.labels
    return only.records if plain else Mixture(tuple(parts))


def parts_of(records: Sequence[Record]) -> tuple[Part, ...]:
    """The parts of a mixture; of any other sequence one, of weight 1."""
    return records.parts if isinstance(records, Mixture) else (Part(0, 1.0, records),)


def shared(records: Sequence[Record]) -> Sequence[Record]:
    """The same records in a form that workers share; lazy sources are small as they are."""
    if isinstance(records, Mixture):
        parts = [part._replace(records=shared(part.records)) for part in records.parts]
        return Mixture(tuple(parts))
    return Table(records) if isinstance(records, list | tuple) else records


def classes(names: Sequence[str], source: str) -> Classes:
    """Names in the order of their labels.

    Raises:
        DataError: a name is there twice.
    """
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{source}: two classes are called {twice[0]!r}; give each its own name")
    return Classes(tuple(names), source)


def named(spec: str, root: str = "") -> list[Classes]:
    """The classes of those parts of a source that name them.

    Raises:
        DataError: a part whose names cannot be read, or a name that is there twice.
    """
    found = []
    for text in _split(spec):
        where, options = _parse(text)
        found.append(classes(_names(where, options.get("root", root)), where))
    return [one for one in found if one.names]


def reference(found: Sequence[Classes]) -> Classes:
    """The first whose names are not just numbers, else the first; without names if there is none.

    Numbers are held against numbers alone: folders `0` to `10` are sorted as text.
    """
    return min(found, key=_are_numbers, default=Classes())


def _are_numbers(classes: Classes) -> bool:
    return all(name.isdecimal() for name in classes.names)


def order(wanted: Classes, given: Classes) -> tuple[int, ...]:
    """The label in `wanted` of each class of `given`; empty if they are in the same order.

    Raises:
        DataError: other names, or another number of them; names the first and both sources.
    """
    if wanted.names == given.names or _are_numbers(wanted) != _are_numbers(given):
        return ()
    label = {name: number for number, name in enumerate(wanted.names)}
    lacking = [name for name in wanted.names if name not in given.names]
    added = [name for name in given.names if name not in label]
    if lacking or added:
        reasons = [f"class {name!r} only in {wanted.source}" for name in lacking[:1]]
        reasons += [f"class {name!r} only in {given.source}" for name in added[:1]]
        cure = "name them alike" if lacking and added else "add it to the other, empty if need be"
        raise DataError(
            f"{given.source} has other classes than {wanted.source}: {' and '.join(reasons)}; "
            f"{cure}"
        )
    return tuple(label[name] for name in given.names)


def given_names(spec: str, root: str = "") -> list[str]:
    """Names of the classes in the order of their labels; empty where no part names its classes.

    Raises:
        DataError: parts of a mixture that differ, also in order alone.
    """
    found = named(spec, root)
    first = reference(found)
    for other in found:
        if order(first, other):
            raise DataError(f"{first.source} and {other.source}: classes in another order")
    return list(first.names)


def _names(where: str, root: str) -> list[str]:
    """What one source calls its classes; empty if it does not say."""
    if where.startswith(tfds_records.PREFIX):
        file = tfds_records.find(where, root) / "label.labels.txt"
    elif packed.is_packed(where):
        return packed.class_names(where)
    elif epath.Path(where).is_dir():
        return lists.class_names(where)
    else:
        file = epath.Path(where).parent / "classes.txt"
    return list(filter(None, lists.read_lines(file))) if file.exists() else []


def num_classes_of(records: Sequence[Record]) -> int:
    """As many classes as the labels of the records, or else their source, tell; 0 if neither."""
    found = 0
    for part in parts_of(records):
        if isinstance(part.records, LazyRecords):
            found = max(found, part.records.num_classes)
        else:
            found = max(found, 1 + max(record.label for record in part.records))
    return found


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
