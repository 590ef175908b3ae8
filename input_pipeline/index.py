"""Turns a data set's official annotation files into lists, and names the videos that are missing.

python -m input_pipeline.index ucf101 ROOT --split 1
python -m input_pipeline.index kinetics ROOT --annotations annotations/ --out lists/
Writes train.txt, val.txt and test.txt (`path label` lines, paths relative to ROOT), classes.txt
and, if something is missing, missing.txt.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from etils import epath

from input_pipeline import command
from input_pipeline.annotations import READERS, Entry
from input_pipeline.sources import lists
from input_pipeline.sources.records import DataError
from input_pipeline.video import whole


class Index(NamedTuple):
    """Class names, `(path relative to ROOT, label)` of each split, and entries without a file."""

    classes: list[str]
    lists: dict[str, list[tuple[str, int]]]
    missing: list[Entry]


def build(dataset: str, root: str, places: Sequence[str] = (), split: int = 1) -> Index:
    """Reads the annotations and looks for every video they name, by its file name.

    Args:
        dataset: a name in `annotations.READERS`.
        root: folder with the videos, flat or in folders at any depth. Local or remote (`gs://`).
        places: annotation files, or folders that hold them at any depth; `root` if empty.
        split: 1, 2 or 3, for UCF101 and HMDB51.

    Raises:
        DataError: an annotation file is absent (its name and its owner's address are shown) or of
            another form, or no video at all is found.
    """
    reader, files = READERS[dataset], dict[str, epath.Path]()
    for place in map(epath.Path, places or [root]):
        inside = list(_below(str(place))) if place.is_dir() else [""]
        for name in inside:
            if not name or name.endswith((".txt", ".csv", ".json")):
                files.setdefault((place / name).name, place / name)
    try:
        classes, entries = reader.read(files, split)
    except (AttributeError, LookupError, StopIteration, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, DataError) else f"not the official file: {error!r}"
        looked = ", ".join(places or [root])
        raise DataError(f"{reason}; looked in {looked}; get it from {reader.owner}") from error
    videos: dict[str, str] = {}
    for path in filter(lists.is_video, _below(root)):
        # In small letters: UCF101's lists say HandStandPushups, its files HandstandPushups.
        parts = path.rpartition(".")[0].lower().split("/")
        videos.setdefault(parts[-1], path)
        videos.setdefault("/".join(parts[-2:]), path)
    index = Index(classes, {entry.split: [] for entry in entries}, [])
    for entry in entries:
        found = [videos[name.lower()] for name in entry.names if name.lower() in videos]
        if found:
            index.lists[entry.split].append((found[0], entry.label))
        else:
            index.missing.append(entry)
    if len(index.missing) == len(entries):
        example = f"expected for example {entries[0].names[0]}.mp4" if entries else ""
        raise DataError(f"{root}: none of the {len(entries)} videos is there; {example}")
    return index


def _below(root: str) -> Iterator[str]:
    """Paths of all files below `root`, relative to it."""
    for inside, _, names in lists.walk(root):
        yield from (f"{inside}/{name}".lstrip("/") for name in names)


def write(index: Index, out: str) -> None:
    """Writes the lists, `classes.txt` and `missing.txt` (split, tab, id)."""
    folder = epath.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"classes": index.classes}
    for split, rows in index.lists.items():
        texts[split] = [f"{path} {label}" for path, label in rows]
    texts["missing"] = [f"{entry.split}\t{entry.id}" for entry in index.missing]
    for name, lines in texts.items():
        whole.write(folder / f"{name}.txt", "".join(f"{line}\n" for line in lines))
    if not index.missing:
        (folder / "missing.txt").unlink()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0 if every video is there, 1 if some are missing."""
    parser = command.parser("index", __doc__)
    parser.add_argument("dataset", choices=list(READERS))
    parser.add_argument("root", help="folder with the videos")
    parser.add_argument("--annotations", nargs="+", default=[], help="files or folders; ROOT")
    parser.add_argument("--out", default="", help="folder for the lists; ROOT")
    parser.add_argument("--split", type=int, choices=[1, 2, 3], default=1, help="UCF101, HMDB51")
    given = parser.parse_args(argv)
    out = given.out or given.root
    index = build(given.dataset, given.root, given.annotations, given.split)
    write(index, out)
    print(f"{given.dataset}: {len(index.classes)} classes")
    for split, rows in index.lists.items():
        lost = sum(entry.split == split for entry in index.missing)
        print(f"  {out}/{split}.txt: {len(rows)} videos, {lost} missing")
    if out != given.root:
        print(f"train with --config.data.root={given.root}: the paths start there")
    return 1 if index.missing else 0


if __name__ == "__main__":
    command.run(main)
