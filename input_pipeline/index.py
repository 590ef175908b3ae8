"""Turns a data set's official annotation files into our lists, and reports what is missing.

python -m input_pipeline.index ucf101 ROOT --split 1
python -m input_pipeline.index kinetics ROOT --annotations annotations/ --out lists/
Writes train.txt, val.txt and test.txt (`path label` lines, paths relative to ROOT), classes.txt
and, if something is missing, missing.txt.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from etils import epath

from input_pipeline import annotations
from input_pipeline.annotations import Annotations, Entry
from input_pipeline.progress import Progress
from input_pipeline.sources import lists
from input_pipeline.sources.records import DataError
from input_pipeline.video import whole

SPLITS = ("train", "val", "test")


class Index(NamedTuple):
    """A data set as it is on disk.

    Attributes:
        name: of the data set.
        classes: names by label.
        lists: `(path relative to ROOT, label)` of each split that the annotations have; the label
            is -1 throughout where the owner publishes none.
        missing: `(entry, reason)` of each entry that is in no list.
    """

    name: str
    classes: list[str]
    lists: dict[str, list[tuple[str, int]]]
    missing: list[tuple[Entry, str]]


def build(dataset: str, root: str, places: Sequence[str] = (), split: int = 1) -> Index:
    """Reads the annotations and looks for every video they name.

    Args:
        dataset: a name in `annotations.READERS`.
        root: folder with the videos, flat or in folders at any depth; each folder is
            listed once and no file is opened. Local or remote (`gs://`).
        places: annotation files or folders with them; `root` and its usual folders if empty.
        split: 1, 2 or 3, for UCF101 and HMDB51.

    Raises:
        DataError: no folder at `root`, an annotation file is absent (its name and its owner's
            address are shown) or of another form, or no video at all is found.
    """
    if not epath.Path(root).is_dir():
        raise DataError(f"no folder at {root!r}; give the folder with the videos")
    known = annotations.READERS[dataset]([epath.Path(place) for place in places or [root]], split)
    files = inventory(root)
    index = match(known, files)
    if not any(index.lists.values()):
        first = known.entries[0] if known.entries else None
        example = f"{first.folder}/{first.stems[0]}".strip("/") if first else "any video"
        hint = f" ({first.hint})" if first and first.hint else ""
        raise DataError(
            f"{root}: none of the {len(known.entries)} videos of {known.name} is there; "
            f"expected for example {example}.mp4{hint}"
        )
    return index


def inventory(root: str) -> dict[str, list[str]]:
    """Paths of all videos below `root`, relative to it, by file name without extension."""
    progress, count = Progress("files"), 0
    found: dict[str, list[str]] = {}
    for inside, _, names in lists.walk(root.rstrip("/")):
        for name in filter(lists.is_video, names):
            found.setdefault(name.rpartition(".")[0], []).append(f"{inside}/{name}".lstrip("/"))
        count += len(names)
        progress(count, 0)
    progress.end()
    return found


def match(known: Annotations, files: Mapping[str, list[str]]) -> Index:
    """Gives every entry its file; the pure part of `build`.

    Args:
        known: what the annotations say.
        files: paths by file name without extension, as `inventory` gives them.
    """
    classes = {entry.folder for entry in known.entries} - {""}
    unlabelled = set(SPLITS) - {entry.split for entry in known.entries if entry.label >= 0}
    present = {entry.split for entry in known.entries}
    found: dict[str, list[tuple[str, int]]] = {name: [] for name in SPLITS if name in present}
    missing: list[tuple[Entry, str]] = []
    taken: set[str] = set()
    for entry in known.entries:
        paths = [
            path
            for stem in entry.stems
            for path in files.get(stem, ())
            if _folder(path) == entry.folder or _folder(path) not in classes
        ]
        # One in the folder of its class comes first, for names may be there twice.
        path = min(paths, key=lambda path: _folder(path) != entry.folder, default="")
        reason = "" if path else "no such file"
        if entry.label < 0 and entry.split not in unlabelled:
            reason = "no label in the annotations"
        elif path in taken:
            reason = "named twice in the annotations"
        if reason:
            missing.append((entry, reason))
            continue
        taken.add(path)
        found[entry.split].append((path, entry.label))
    return Index(known.name, known.classes, found, missing)


def _folder(path: str) -> str:
    return path.rpartition("/")[0].rpartition("/")[2]


def write(index: Index, out: str) -> None:
    """Writes the lists, `classes.txt` and `missing.txt` (`split, id, reason, hint`, tabs)."""
    folder = epath.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "missing.txt").unlink(missing_ok=True)  # Of an earlier run.
    texts = {split: [_line(*row) for row in rows] for split, rows in index.lists.items()}
    texts["classes"] = index.classes
    if index.missing:
        rows = [(entry.split, entry.id, reason, entry.hint) for entry, reason in index.missing]
        texts["missing"] = ["\t".join(row).rstrip() for row in rows]
    for name, lines in texts.items():
        whole.write(folder / f"{name}.txt", "".join(f"{line}\n" for line in lines))


def _line(path: str, label: int) -> str:
    return path if label < 0 else f"{path} {label}"


def summary(index: Index, out: str) -> str:
    """What was written and what is missing, a few lines."""
    total = sum(map(len, index.lists.values())) + len(index.missing)
    lines = [f"{index.name}: {len(index.classes)} classes, {total} videos in the annotations"]
    for split, rows in index.lists.items():
        labels = {label for _, label in rows} - {-1}
        empty = len(index.classes) - len(labels)
        note = f"; {empty} classes have no video here" if labels and empty else ""
        note = "; without labels, the owner publishes none" if rows and not labels else note
        lines.append(f"  {out}/{split}.txt: {len(rows)} videos{note}")
    for (split, reason), count in sorted(
        Counter((entry.split, reason) for entry, reason in index.missing).items()
    ):
        lines.append(f"  missing from {split}.txt: {count} ({reason})")
    verdict = f"missing {len(index.missing)} of {total} videos: see {out}/missing.txt"
    lines.append(verdict if index.missing else f"complete: all {total} videos are there")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0 if every video is there, 1 if some are missing."""
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.index", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("dataset", choices=list(annotations.READERS))
    parser.add_argument("root", help="folder with the videos")
    parser.add_argument("--annotations", nargs="+", default=[], help="files or folders; ROOT")
    parser.add_argument("--out", default="", help="folder for the lists; ROOT")
    parser.add_argument("--split", type=int, choices=[1, 2, 3], default=1, help="UCF101, HMDB51")
    given = parser.parse_args(argv)
    out = given.out or given.root
    try:
        index = build(given.dataset, given.root, given.annotations, given.split)
        write(index, out)
    except (DataError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return 130
    print(summary(index, out.rstrip("/")))
    if epath.Path(out) != epath.Path(given.root):
        print(f"train with --config.data.root={given.root}: the paths start there")
    return 1 if index.missing else 0


if __name__ == "__main__":
    sys.exit(main())
