"""Every way to name videos becomes records: lists, folders, packed ones, TFDS, mixtures."""

import bisect
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath

from input_pipeline.sources import lists, packed
from input_pipeline.sources.records import ANY, DataError, LazyRecords, Record


class Source(NamedTuple):
    """Where videos are: arguments of `lists.load` or `packed.load`, and of `Part`."""

    path: str
    root: str = ""
    template: str = ""
    weight: float = 1.0
    stride: int = 0
    columns: lists.Columns = ("", "")


class Part(NamedTuple):
    """One source of a mixture, with the position of its first record there."""

    offset: int
    weight: float  # How often one of its records is drawn, relative to one of weight 1.
    records: Sequence[Record]
    prefix: str = ""  # Of its records' ids in the mixture.
    stride: int = 0  # Frames between samples of its records; 0 leaves `data.frame_stride`.
    labels: tuple[int, ...] = ()  # In the mixture of each of its own; empty leaves them.


class Classes(NamedTuple):
    """Names of classes in the order of their labels, and who gives them."""

    names: tuple[str, ...] = ()
    source: str = ""


class Mixture(LazyRecords):
    """Several sources one after the other, each of at least one record."""

    def __init__(self, parts: tuple[Part, ...]):
        self.parts = parts
        self._ends = [part.offset + len(part.records) for part in parts]

    def __len__(self) -> int:
        return self._ends[-1]

    def at(self, position: int) -> Record:
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
    """The records of one or several sources; they may be read only when asked for.

    Args:
        num_classes: labels must be in `[0, num_classes)`; 0 accepts records without labels.
        split: of sources that hold more than one: "train", "val" or "test".
        classes: whose order labels get, by the names of the classes; those of the first part that
            names them if None. Parts that name none keep their labels.
    """
    names = lists.unique(map(_name, parts))
    classes = classes or (reference(named(parts)) if num_classes else Classes())
    if classes.names and num_classes not in (0, ANY, len(classes.names)):
        raise DataError(
            f"{classes.source}: has {len(classes.names)} classes, {num_classes} wanted; correct "
            "data.num_classes, or set it to 0 for as many as there are"
        )
    found: list[Part] = []
    for part, name in zip(parts, names):
        if part.weight <= 0 or part.stride < 0:
            said = f"weight={part.weight} must be above 0, stride={part.stride} not below"
            raise DataError(f"{part.path}: {said}")
        if packed.is_packed(part.path):
            records: Sequence[Record] = packed.load(part.path, part.root, num_classes, split)
        else:
            records = lists.load(part.path, part.root, num_classes, part.template, part.columns)
        own = named([part]) if num_classes else []
        labels = order(classes, own[0]) if own else ()
        offset = found[-1].offset + len(found[-1].records) if found else 0
        prefix = f"{name}:" if len(parts) > 1 else ""
        found.append(Part(offset, part.weight, records, prefix, part.stride, labels))
    plain = len(found) == 1 and not found[0].stride and not found[0].labels
    return found[0].records if plain else Mixture(tuple(found))


def parts_of(records: Sequence[Record]) -> tuple[Part, ...]:
    """The parts of a mixture; of any other sequence one, of weight 1."""
    return records.parts if isinstance(records, Mixture) else (Part(0, 1.0, records),)


def given(d: Any, split: str) -> list[Source]:
    """The sources of a split that `d`, the group `config.data`, names: one, or parts of a mix."""
    columns = d.path_column, d.label_column
    if split == "train" and (parts := [part for part in d.mix.values() if part["source"]]):
        own = [(p["root"] or d.root, p["template"] or d.template) for p in parts]
        more: list[Any] = [(p["weight"], p["stride"], columns) for p in parts]
        return [Source(p["source"], *o, *m) for p, o, m in zip(parts, own, more)]
    return [Source(d[split], d.root, d.template, columns=columns)] if d[split] else []


def classes(names: Sequence[str], source: str) -> Classes:
    """Names in the order of their labels; DataError if one is there twice."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{source}: two classes are called {twice[0]!r}; give each its own name")
    return Classes(tuple(names), source)


def named(parts: Sequence[Source]) -> list[Classes]:
    """The classes of those sources that name them."""
    found = []
    for part in parts:
        names: list[str] = []
        path = epath.Path(part.path)
        if packed.is_packed(part.path):
            names = packed.class_names(part.path, part.root)
        elif path.is_dir():
            names = lists.class_names(part.path)
        elif any(part.columns) and path.exists() and (there := lists.table(path, part.columns)[1]):
            names = there
        elif (file := path.parent / "classes.txt").exists():
            names = list(filter(None, lists.read_lines(file)))
        found += [classes(names, part.path)] if names else []
    return found


def reference(found: Sequence[Classes]) -> Classes:
    """The first whose names are not just numbers, else the first; without names if there is none.

    Numbers are held against numbers alone: folders `0` to `10` are sorted as text.
    """
    return min(found, key=_are_numbers, default=Classes())


def _are_numbers(classes: Classes) -> bool:
    return all(name.isdecimal() for name in classes.names)


def order(wanted: Classes, given: Classes) -> tuple[int, ...]:
    """The label in `wanted` of each class of `given`; empty if they are in the same order.

    A DataError names the first class that only one has, and both sources.
    """
    known, numbers = {*given.names} <= {*wanted.names}, _are_numbers(wanted) != _are_numbers(given)
    if wanted.names == given.names or (numbers and not known):
        return ()
    only = []
    for one, other in (wanted, given), (given, wanted):
        lacking = [name for name in one.names if name not in other.names]
        only += [f"class {name!r} only in {one.source}" for name in lacking[:1]]
    if not {*given.names} <= {*wanted.names}:
        raise DataError(
            f"{given.source} has other classes than {wanted.source}: {' and '.join(only)}; name "
            "them alike"
        )
    return tuple(map(wanted.names.index, given.names))


def num_classes_of(records: Sequence[Record]) -> int:
    """As many classes as the labels of the records, or else their source, tell; 0 if neither."""
    return max(
        part.records.num_classes
        if isinstance(part.records, LazyRecords)
        else 1 + max(record.label for record in part.records)
        for part in parts_of(records)
    )


def _name(source: Source) -> str:
    """Short name of a source: `a/ssv2.csv` is `ssv2`."""
    last = source.path.rstrip("/").rpartition("/")[2]
    return last.removeprefix(packed.PREFIX).partition(".")[0] or source.path
