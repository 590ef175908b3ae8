"""The official annotation files of UCF101, HMDB51, Something-Something V2, Kinetics and OSCC.

Each reader takes annotation files by name and the number of the split (of UCF101 and HMDB51), and
gives the videos whose labels are published.
"""

import csv
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from input_pipeline.sources.lists import read_lines
from input_pipeline.sources.records import DataError


class Entry(NamedTuple):
    """One video as the annotations name it.

    Attributes:
        split: "train", "val" or "test".
        id: its name there.
        label: class number.
        names: its file may have, `name` or `folder/name` without extension, the likeliest first.
    """

    split: str
    id: str
    label: int
    names: tuple[str, ...]


Files = Mapping[str, Any]  # File name -> path, an `epath.Path` or a `zipfile.Path`.
Annotations = tuple[list[str], list[Entry]]  # Class names by label; videos in their order.


def ucf101(files: Files, split: int = 1) -> Annotations:
    """UCF101 (1212.0402): `classInd.txt`, `trainlist0N.txt`, `testlist0N.txt`.

    Layout as in the owner's archive: `1 ApplyEyeMakeup`, 1-based;
    `ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1` in training, without the number in test.
    """
    classes = [line.split()[1] for line in _lines(files, "classInd.txt")]
    entries = []
    for part in ("train", "test"):
        for line in _lines(files, f"{part}list{split:02}.txt"):
            path = line.split()[0]
            entries.append(Entry(part, path, classes.index(path.split("/")[0]), _names(path)))
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
                path = f"{folder}/{name}"
                entries.append(Entry(part, path, label, _names(path)))
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
            entries.append(Entry(part, row["id"], number[name], (row["id"],)))
    for line in _lines(files, "test-answers.csv") if "test-answers.csv" in files else ():
        key, name = line.split(";", 1)
        entries.append(Entry("test", key, number[name], (key,)))
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
    entries = []
    for (part, video, *seconds), name in rows.items():
        full = "_".join([video, *seconds])
        entries.append(Entry(part, full, number[name], (full, video)))
    return classes, entries


def oscc(files: Files, split: int) -> Annotations:
    """Object state change classification of Ego4D (2110.07058): `fho_oscc-pnr_{train,val}.json`.

    The owner's files hold `{"clips": [{"unique_id", "video_uid", "parent_start_sec",
    "parent_end_sec", "state_change", ...}]}`. A video here is those 8 seconds of its parent, cut
    out as `<unique_id>.mp4`.
    """
    entries = []
    for part in ("train", "val"):
        for row in _json(files, f"fho_oscc-pnr_{part}.json")["clips"]:
            key = row["unique_id"]
            entries.append(Entry(part, key, int(row["state_change"]), (key,)))
    return ["no state change", "state change"], entries


class Reader(NamedTuple):
    """How to read a data set's annotations, and where its owner publishes them."""

    read: Callable[[Files, int], Annotations]
    owner: str


READERS = {
    "ucf101": Reader(ucf101, "https://www.crcv.ucf.edu/data/UCF101.php"),
    "hmdb51": Reader(hmdb51, "https://serre.lab.brown.edu/hmdb51.html (test_train_splits.rar)"),
    "ssv2": Reader(
        ssv2, "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"
    ),
    "kinetics": Reader(kinetics, "https://github.com/cvdfoundation/kinetics-dataset"),
    "oscc": Reader(oscc, "https://ego4d-data.org (ego4d --datasets annotations --benchmarks FHO)"),
}


def _names(path: str) -> tuple[str, str]:
    """Of a file in the folder of its class, or in a flat one."""
    stem = path.rpartition(".")[0]
    return stem, stem.rpartition("/")[2]


def _lines(files: Files, name: str) -> list[str]:
    """The lines of a file that are not empty."""
    if name not in files:
        raise DataError(f"no annotation file {name}")
    return [line for line in read_lines(files[name]) if line]


def _json(files: Files, name: str) -> Any:
    return json.loads("".join(_lines(files, name)))
