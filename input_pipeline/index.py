"""Turns a data set's official annotation files into lists, and names the videos that are missing.

python -m input_pipeline.index ucf101 ROOT --split 1
python -m input_pipeline.index kinetics ROOT --annotations annotations/ --out lists/
Writes train.txt, val.txt and test.txt (`path label` lines, paths relative to ROOT), classes.txt
and, if something is missing, missing.txt.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from input_pipeline import command
from input_pipeline.sources import lists
from input_pipeline.sources.frames import is_video
from input_pipeline.sources.records import DataError
from input_pipeline.video import whole


class Entry(NamedTuple):
    """One video as the annotations name it, of split "train", "val" or "test"."""

    split: str
    id: str  # Its file, `name` or `folder/name`, with or without an extension.
    label: int


Files = Mapping[str, Any]  # File name -> path, an `epath.Path` or a `zipfile.Path`.
Annotations = tuple[list[str], list[Entry]]  # Class names by label; videos in their order.


def ucf101(files: Files, split: int) -> Annotations:
    """UCF101 (1212.0402): `classInd.txt`, `trainlist0N.txt`, `testlist0N.txt`.

    Layout as in the owner's archive: `1 ApplyEyeMakeup`, 1-based;
    `ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1` in training, without the number in test.
    """
    classes = [line.split()[1] for line in _lines(files, "classInd.txt")]
    entries = []
    for part in ("train", "test"):
        for line in _lines(files, f"{part}list{split:02}.txt"):
            path = line.split()[0]
            entries.append(Entry(part, path, classes.index(path.split("/")[0])))
    return classes, entries


def hmdb51(files: Files, split: int) -> Annotations:
    """HMDB51: `<class>_test_split<N>.txt` with lines `name.avi 0|1|2`.

    As the owner's readme says, 1 is training, 2 is test, 0 is neither. Classes are numbered here
    in the order of their names.
    """
    suffix = f"_test_split{split}.txt"
    classes = sorted(name.removesuffix(suffix) for name in files if name.endswith(suffix))
    entries = []
    for label, folder in enumerate(classes or ["<class>"]):
        for line in _lines(files, folder + suffix):
            name, number = line.rsplit(maxsplit=1)
            if part := ("", "train", "test")[int(number)]:
                entries.append(Entry(part, f"{folder}/{name}", label))
    return classes, entries


def ssv2(files: Files, split: int) -> Annotations:
    """Something-Something V2 (1706.04261): `something-something-v2-{labels,train,...}.json`.

    Also without the prefix, as in the owner's archive of labels. The template without its brackets
    is the class name, and `labels.json` gives its number. Test videos are those of
    `test-answers.csv` (`id;class name`), if it is there.
    """
    files = {name.removeprefix("something-something-v2-"): path for name, path in files.items()}
    number = {name: int(label) for name, label in _json(files, "labels.json").items()}
    entries = []
    for part, what in (("train", "train"), ("val", "validation")):
        for row in _json(files, f"{what}.json"):
            name = row["template"].replace("[", "").replace("]", "")
            entries.append(Entry(part, row["id"], number[name]))
    for line in _lines(files, "test-answers.csv") if "test-answers.csv" in files else ():
        key, name = line.split(";", 1)
        entries.append(Entry("test", key, number[name]))
    return sorted(number, key=lambda name: number[name]), entries


def kinetics(files: Files, split: int) -> Annotations:
    """Kinetics 400, 600 or 700: CSV files `label,youtube_id,time_start,time_end,split`.

    As published by the owner and, with further columns or without some, by CVDF. Videos are
    `<youtube_id>_<start, 6 digits>_<end, 6 digits>.mp4` or `<youtube_id>.mp4`. Classes are the
    names that the files hold, sorted.
    """
    rows: dict[tuple[str, ...], str] = {}
    for file in [name for name in sorted(files) if name.endswith(".csv")] or ["train.csv"]:
        for row in csv.DictReader(_lines(files, file)):
            if row.get("youtube_id") and row.get("label"):
                said = row.get("split") or file
                part = next(name for name in ("train", "val", "test") if name in said)
                seconds = [row[key] for key in ("time_start", "time_end") if row.get(key)]
                digits = [f"{int(float(second)):06}" for second in seconds]
                rows[part, row["youtube_id"], *digits] = row["label"]
    classes = sorted(set(rows.values()))
    number = {name: label for label, name in enumerate(classes)}
    return classes, [Entry(p, "_".join(video), number[row]) for (p, *video), row in rows.items()]


def oscc(files: Files, split: int) -> Annotations:
    """Object state change classification of Ego4D (2110.07058): `fho_oscc-pnr_{train,val}.json`.

    A video is the 8 seconds of its parent that they name, cut out as `<unique_id>.mp4`.
    """
    entries = [
        Entry(part, row["unique_id"], int(row["state_change"]))
        for part in ("train", "val")
        for row in _json(files, f"fho_oscc-pnr_{part}.json")["clips"]
    ]
    return ["no state change", "state change"], entries


# How to read a data set's annotations, and where its owner publishes them.
READERS = {
    "ucf101": (ucf101, "https://www.crcv.ucf.edu/data/UCF101.php"),
    "hmdb51": (hmdb51, "https://serre.lab.brown.edu/hmdb51.html (test_train_splits.rar)"),
    "ssv2": (ssv2, "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"),
    "kinetics": (kinetics, "https://github.com/cvdfoundation/kinetics-dataset"),
    "oscc": (oscc, "https://ego4d-data.org (ego4d --datasets annotations --benchmarks FHO)"),
}


def _lines(files: Files, name: str) -> list[str]:
    if name not in files:
        raise DataError(f"no annotation file {name}")
    return [line for line in lists.read_lines(files[name]) if line]


def _json(files: Files, name: str) -> Any:
    return json.loads("".join(_lines(files, name)))


class Index(NamedTuple):
    """Class names, `(path relative to ROOT, label)` of each split, and entries without a file."""

    classes: list[str]
    lists: dict[str, list[tuple[str, int]]]
    missing: list[Entry]


def build(dataset: str, root: str, places: Sequence[str] = (), split: int = 1) -> Index:
    """Reads the annotations and looks for every video they name, at any depth below `root`.

    `places` are annotation files, or folders that hold them at any depth; `root` if empty.
    """
    (reader, owner), files = READERS[dataset], dict[str, epath.Path]()
    for place in map(epath.Path, places or [root]):
        for path in [place / name for name in _below(str(place))] if place.is_dir() else [place]:
            if path == place or path.suffix in (".txt", ".csv", ".json"):
                files.setdefault(path.name, path)
    try:
        classes, entries = reader(files, split)
    except (AttributeError, LookupError, StopIteration, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, DataError) else f"not the official file: {error!r}"
        looked = ", ".join(places or [root])
        raise DataError(f"{reason}; looked in {looked}; get it from {owner}") from error
    videos: dict[str, str] = {}
    for path in filter(is_video, _below(root)):
        stem, name, _ = _names("/".join(path.split("/")[-2:]))
        videos.setdefault(name, path)
        videos.setdefault(stem, path)
    index = Index(classes, {entry.split: [] for entry in entries}, [])
    for entry in entries:
        if found := [videos[name] for name in _names(entry.id) if name in videos]:
            index.lists[entry.split].append((found[0], entry.label))
        else:
            index.missing.append(entry)
    if len(index.missing) == len(entries):
        example = f"expected for example {entries[0].id}" if entries else ""
        raise DataError(f"{root}: none of the {len(entries)} videos is there; {example}")
    return index


def _names(path: str) -> tuple[str, str, str]:
    """Of a video: in the folder of its class, in a flat one, without its seconds (Kinetics)."""
    # In small letters: UCF101's lists say HandStandPushups, its files HandstandPushups.
    stem = (path.rpartition(".")[0] if is_video(path) else path).lower()
    name = stem.rpartition("/")[2]
    return stem, name, re.sub(r"(_\d{6}){2}$", "", name)


def _below(root: str) -> Iterator[str]:
    """Paths of all files below `root`, relative to it."""
    for inside, _, names in lists.walk(root):
        yield from (f"{inside}/{name}".lstrip("/") for name in names)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if every video is there, 1 if some are missing."""
    parser = command.parser("index", __doc__, reads=False)
    parser.add_argument("dataset", choices=list(READERS))
    parser.add_argument("root", help="folder with the videos")
    parser.add_argument("--annotations", nargs="+", default=[], help="files or folders; ROOT")
    parser.add_argument("--out", default="", help="folder for the lists; ROOT")
    parser.add_argument("--split", type=int, choices=[1, 2, 3], default=1, help="UCF101, HMDB51")
    given = parser.parse_args(argv)
    out = given.out or given.root
    index = build(given.dataset, given.root, given.annotations, given.split)
    texts = {"classes": index.classes}
    texts["missing"] = [f"{entry.split}\t{entry.id}" for entry in index.missing]
    print(f"{given.dataset}: {len(index.classes)} classes")
    for split, rows in index.lists.items():
        texts[split] = [f"{path} {label}" for path, label in rows]
        lost = sum(entry.split == split for entry in index.missing)
        print(f"  {out}/{split}.txt: {len(rows)} videos, {lost} missing")
    epath.Path(out).mkdir(parents=True, exist_ok=True)
    for name, lines in texts.items():
        whole.write(epath.Path(out) / f"{name}.txt", "".join(f"{line}\n" for line in lines))
    if not index.missing:
        (epath.Path(out) / "missing.txt").unlink()
    if out != given.root:
        print(f"train with --config.data.root={given.root}: the paths start there")
    return 1 if index.missing else 0


if __name__ == "__main__":
    command.run(main)
