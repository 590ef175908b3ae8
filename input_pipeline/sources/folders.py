"""Data that one path names: split into training, validation and test, and written as lists."""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from etils import epath

from input_pipeline.sources import lists, load
from input_pipeline.sources.frames import is_video
from input_pipeline.sources.records import ANY, DataError, Record

SHARE = 0.1
"""Of the videos of a class, drawn for validation and for test; one at least, if there are three."""

SPLITS = ("train", "val", "test")


class Found(NamedTuple):
    """What is at a path."""

    splits: dict[str, list[Record]]  # Labels are in the order of `classes`, -1 without.
    classes: tuple[str, ...]
    drawn: tuple[str, ...]  # Splits that no folder says.


def base(path: str) -> str:
    """What the paths of its lists are relative to."""
    return path.rstrip("/") if epath.Path(path).is_dir() else str(epath.Path(path).parent)


def find(path: str, labelled: bool, seed: int, columns: lists.Columns = ("", "")) -> Found:
    """Splits what is at `path` as docs/data.md ("One path") has it.

    `seed` draws class by class: a video more or less moves few others.
    """
    whole = load.Source(path.rstrip("/"), columns=columns)
    parts, flat = {"train": whole}, False
    if epath.Path(path).is_dir():
        _, names, loose = next(lists.walk(path))
        flat = not labelled and any(map(is_video, loose))
        known = {lists.SPLITS[n.lower()]: n for n in names if n.lower() in lists.SPLITS}
        if "train" in known and (len(known) > 1 or len(names) == 1):
            order = [split for split in SPLITS if split in known]
            parts = {s: whole._replace(path=f"{whole.path}/{known[s]}") for s in order}
        elif labelled and len(names) == 1:
            raise DataError(
                f"{path}: one class folder alone, {names[0]}; labelled videos lie in one folder "
                f"per class, such as {path}/run/a.mp4, or give data.root={whole.path}/{names[0]}"
            )
    classes = load.Classes() if flat else load.reference(load.named([parts["train"]]))
    wanted, given = ANY if labelled or classes.names else 0, classes if classes.names else None
    splits = {s: list(load.load_records([p], wanted, s, given)) for s, p in parts.items()}
    if raw := [record.path for record in splits["train"] if record.data is not None]:
        raise DataError(f"{path}: {raw[0]} is a row of raw frames; give such a list as data.train")
    drawn: tuple[str, ...] = ()
    if splits["train"][0].label >= 0 and "val" not in splits:
        drawn = ("val",) if "test" in splits else ("test", "val")
        splits |= _draw(splits["train"], drawn, seed)
    elif "val" in splits:
        splits.setdefault("test", splits["val"])
    return Found(splits, classes.names, drawn)


def _draw(records: list[Record], names: Iterable[str], seed: int) -> dict[str, list[Record]]:
    """Draws further splits off the training one, which keeps a video of every class."""
    parts: dict[str, list[Record]] = {name: [] for name in ("train", *names)}
    own = {record.path: record for record in records}.values()  # A row twice is one video.
    for label in sorted({record.label for record in own}):
        mine = [record for record in own if record.label == label]
        left = sorted(mine, key=lambda r: hashlib.sha256(f"{seed} {r.id}".encode()).digest())
        for name in names:
            count = min(max(round(SHARE * len(mine)), 1), len(left) - 1)
            parts[name] += left[:count]
            left = left[count:]
        parts["train"] += left
    return {name: sorted(part, key=lambda r: r.id) for name, part in parts.items()}


def texts(found: Found, root: str) -> dict[str, str]:
    """Lists of the splits, with paths relative to `root`, and the names of the "classes"."""
    texts = {"classes": "".join(f"{name}\n" for name in found.classes)}
    for split, records in found.splits.items():
        rows = [(r.path.removeprefix(f"{root}/"), f" {r.label}" * (r.label >= 0)) for r in records]
        texts[split] = "".join(f'"{name}"{label}\n' for name, label in rows)
    return texts


def left_out(found: Found, root: str, folder: epath.Path) -> int | None:
    """How many videos the lists in `folder` lack; None if most of what they name is not there."""
    there = {record.path for records in found.splits.values() for record in records}
    files = [file for split in SPLITS if (file := folder / f"{split}.txt").read_text()]
    named = {record.path for file in files for record in lists.load(str(file), root)}
    return len(there - named) if 2 * len(there & named) > len(named) else None
