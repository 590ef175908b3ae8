"""Every way to name videos becomes records: lists, folders, TFDS, ArrayRecord, mixtures."""

import bisect
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from input_pipeline.sources import arrayrecord as packed
from input_pipeline.sources import lists, tfds
from input_pipeline.sources.records import ANY, DataError, LazyRecords, Record


class Source(NamedTuple):
    """Where videos are.

    Attributes:
        path: a list file or folder (`lists.load`), a packed folder or file (`arrayrecord.load`), or
            `tfds:NAME/CONFIG` (`tfds.load`).
        root: what relative paths of a list start from; TFDS's data folder.
        template: file name of raw frames in lists, `img_{:05}.jpg` if empty.
        weight: how often one of its records is drawn, relative to a record of weight 1: with equal
            weights a mixture is the union of its parts, to within 1 %, for grain counts shares in
            hundredths of the smallest.
        stride: frames between samples of its records; 0 leaves `data.frame_stride`.
    """

    path: str
    root: str = ""
    template: str = ""
    weight: float = 1.0
    stride: int = 0


class Part(NamedTuple):
    """One source of a mixture.

    Attributes:
        offset: position of its first record in the mixture.
        weight, stride: as of `Source`.
        records: its own records.
        prefix: what its records' ids start with in the mixture.
        labels: in the mixture of each of its own labels; empty leaves them.
    """

    offset: int
    weight: float
    records: Sequence[Record]
    prefix: str = ""
    stride: int = 0
    labels: tuple[int, ...] = ()


class Classes(NamedTuple):
    """Names of classes in the order of their labels, and who gives them."""

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


def load_records(
    parts: Sequence[Source],
    num_classes: int = 0,
    split: str = "train",
    classes: Classes | None = None,
) -> Sequence[Record]:
    """The records of one or several sources.

    Args:
        parts: the sources.
        num_classes: labels must be in `[0, num_classes)`; 0 accepts records without labels.
        split: of sources that hold more than one: "train", "val" or "test".
        classes: whose order labels get, by the names of the classes; those of the first part that
            names them if None. Parts that name none keep their labels.

    Returns:
        The source's own sequence, or a `Mixture` if there are several or one that changes its
        records. Both can be pickled; records may be read only when asked for.

    Raises:
        DataError: a value that cannot be, other classes than `classes`, or as the source's own
            `load`.
    """
    names = lists.unique(_name(part.path) for part in parts)
    classes = classes or (reference(named(parts)) if num_classes else Classes())
    found: list[Part] = []
    for part, name in zip(parts, names):
        if not 0 < part.weight < math.inf:
            raise DataError(f"{part.path}: weight={part.weight}; it must be a number above 0")
        if part.stride < 0 or part.stride != int(part.stride):
            raise DataError(f"{part.path}: stride={part.stride}; it must be a whole number above 0")
        records = _open(part, num_classes, split)
        labels: tuple[int, ...] = ()
        for own in named([part]) if num_classes else ():
            if num_classes not in (ANY, len(own.names)):
                raise DataError(
                    f"{part.path}: has {len(own.names)} classes, {num_classes} wanted; correct "
                    "data.num_classes, or set it to 0 for as many as there are"
                )
            labels = order(classes, own)
        offset = found[-1].offset + len(found[-1].records) if found else 0
        prefix = f"{name}:" if len(parts) > 1 else ""
        found.append(Part(offset, part.weight, records, prefix, int(part.stride), labels))
    plain = len(found) == 1 and not found[0].stride and not found[0].labels
    return found[0].records if plain else Mixture(tuple(found))


def load(
    path: str,
    root: str = "",
    num_classes: int = 0,
    split: str = "train",
    template: str = "",
    classes: Classes | None = None,
) -> Sequence[Record]:
    """The records of one source; arguments as of `Source` and `load_records`."""
    return load_records([Source(path, root, template)], num_classes, split, classes)


def _open(source: Source, num_classes: int, split: str) -> Sequence[Record]:
    path = source.path
    if path.startswith(tfds.PREFIX):
        return tfds.load(path, source.root, num_classes, split)
    if packed.is_packed(path):
        return packed.load(path, split, num_classes)
    return lists.load(path, source.root, num_classes, source.template)


def parts_of(records: Sequence[Record]) -> tuple[Part, ...]:
    """The parts of a mixture; of any other sequence one, of weight 1."""
    return records.parts if isinstance(records, Mixture) else (Part(0, 1.0, records),)


def classes(names: Sequence[str], source: str) -> Classes:
    """Names in the order of their labels.

    Raises:
        DataError: a name is there twice.
    """
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{source}: two classes are called {twice[0]!r}; give each its own name")
    return Classes(tuple(names), source)


def named(given: str | Sequence[Source], root: str = "") -> list[Classes]:
    """The classes of those sources that name them; of one, its path and root may be given.

    Raises:
        DataError: names that cannot be read, or one that is there twice.
    """
    parts = [Source(given, root)] if isinstance(given, str) else given
    return [found for part in parts if (found := classes(_names(part), part.path)).names]


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


def _names(source: Source) -> list[str]:
    """What a source calls its classes; empty if it does not say."""
    path = source.path
    if path.startswith(tfds.PREFIX):
        file = tfds.find(path, source.root) / "label.labels.txt"
    elif packed.is_packed(path):
        return packed.class_names(path)
    elif epath.Path(path).is_dir():
        return lists.class_names(path)
    else:
        file = epath.Path(path).parent / "classes.txt"
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


def _name(path: str) -> str:
    """Short name of a source: `a/ssv2.csv` is `ssv2`."""
    last = path.rstrip("/").rpartition("/")[2]
    return last.removeprefix(tfds.PREFIX).partition(".")[0] or path
