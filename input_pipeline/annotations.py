"""The official annotation files of UCF101, HMDB51, Something-Something V2, Kinetics and OSCC.

Each reader is given files, or folders to look in, and the number of the split (of UCF101 and
HMDB51), and turns what is there into entries: which video, in which split, with which label. It
raises DataError for a file that is absent or of another form.
"""

import contextlib
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from etils import epath

from input_pipeline.sources.lists import read_lines
from input_pipeline.sources.records import DataError

# Where in a given folder the archives of the data sets put their annotations.
_INSIDE = ("", "annotations", "labels", "ucfTrainTestlist", "testTrainMulti_7030_splits")
_UCF101 = "https://www.crcv.ucf.edu/data/UCF101.php (UCF101TrainTestSplits-RecognitionTask.zip)"
_HMDB51 = "https://serre.lab.brown.edu/hmdb51.html (test_train_splits.rar)"
_SSV2 = "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"
_KINETICS = "https://github.com/cvdfoundation/kinetics-dataset (train.csv, val.csv, test.csv)"
_EGO4D = "https://ego4d-data.org (ego4d --datasets annotations --benchmarks FHO)"


class Entry(NamedTuple):
    """One video as the annotations name it.

    Attributes:
        split: "train", "val" or "test".
        id: its name there.
        stems: names its file may have, without folder and extension, the likeliest first.
        label: class number; -1 if it is not published.
        folder: the class folder its file belongs into; "" for a data set that has none.
        hint: what a person needs to get the file.
    """

    split: str
    id: str
    stems: tuple[str, ...]
    label: int
    folder: str = ""
    hint: str = ""


class Annotations(NamedTuple):
    """What a data set's files say: a name, class names by label, and the entries in their order."""

    name: str
    classes: list[str]
    entries: list[Entry]


Places = Sequence[epath.Path]


def ucf101(places: Places, split: int) -> Annotations:
    """UCF101 (1212.0402): `classInd.txt`, `trainlist0N.txt`, `testlist0N.txt`.

    Layout as in the archive of the owner: `1 ApplyEyeMakeup`, 1-based;
    `ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1` in training, without the number in test.
    """
    file = _find(places, ["classInd.txt"], _UCF101)
    with _official(file):
        classes = [line.split()[1] for line in _lines(file)]
    entries = []
    for part in ("train", "test"):
        file = _find(places, [f"{part}list{split:02}.txt"], _UCF101)
        with _official(file):
            for path in (line.split()[0] for line in _lines(file)):
                folder, name = path.split("/")
                stem = name.rpartition(".")[0]
                # The lists and some copies of the videos do not agree on one capital letter.
                stems = (stem, stem.replace("HandStandPushups", "HandstandPushups"))
                entries.append(Entry(part, path, stems, classes.index(folder), folder))
    return Annotations(f"UCF101, split {split}", classes, entries)


def hmdb51(places: Places, split: int) -> Annotations:
    """HMDB51: `testTrainMulti_7030_splits/<class>_test_split<N>.txt`, a line `name.avi 0|1|2`.

    As the owner's readme says, 1 is training, 2 is test, 0 is neither; classes are numbered here in
    the order of their names.
    """
    suffix = f"_test_split{split}.txt"
    files = {file.name: file for file in _all(places) if file.name.endswith(suffix)}
    if not files:
        raise DataError(_absent(f"<class>{suffix}", places, _HMDB51))
    classes = sorted(name.removesuffix(suffix) for name in files)
    entries = []
    for label, folder in enumerate(classes):
        with _official(files[folder + suffix]):
            for line in _lines(files[folder + suffix]):
                name, number = line.rsplit(maxsplit=1)
                part = {"0": "", "1": "train", "2": "test"}[number]
                stem = name.rpartition(".")[0]
                entries.append(Entry(part, f"{folder}/{name}", (stem,), label, folder))
    entries = [entry for entry in entries if entry.split]
    entries.sort(key=lambda entry: entry.split, reverse=True)
    return Annotations(f"HMDB51, split {split}", classes, entries)


def ssv2(places: Places, split: int) -> Annotations:
    """Something-Something V2 (1706.04261): `something-something-v2-{labels,train,...}.json`.

    The files of the owner's labels archive, which are also known without the prefix. The template
    without its brackets is the class name, and `labels.json` gives its number. Test videos have
    labels if `test-answers.csv` (`id;class name`) is there.
    """

    def names(what: str) -> list[str]:
        return [f"something-something-v2-{what}", what]

    file = _find(places, names("labels.json"), _SSV2)
    with _official(file):
        number = {name: int(label) for name, label in json.loads(file.read_text()).items()}
        classes = sorted(number, key=lambda name: number[name])
        if [number[name] for name in classes] != list(range(len(classes))):
            raise ValueError("labels are not 0, 1, 2 ...")
    answers: dict[str, str] = {}
    if file := _look(places, names("test-answers.csv")):
        with _official(file):
            answers = dict(line.split(";", 1) for line in _lines(file))
    entries = []
    for part, what in (("train", "train"), ("val", "validation"), ("test", "test")):
        known = names(f"{what}.json")
        file = _look(places, known) if part == "test" else _find(places, known, _SSV2)
        with _official(file):
            for row in json.loads(file.read_text()) if file else []:
                name = row["id"]
                template = answers.get(name) if part == "test" else row["template"]
                plain = (template or "").replace("[", "").replace("]", "")
                label = number[plain] if plain else -1
                entries.append(Entry(part, name, (name,), label))
    return Annotations("Something-Something V2", classes, entries)


def kinetics(places: Places, split: int) -> Annotations:
    """Kinetics 400, 600 or 700: CSV files `label,youtube_id,time_start,time_end,split`.

    As published by the owner and, with further columns or without some, by CVDF. Videos are
    `<youtube_id>_<start, 6 digits>_<end, 6 digits>.mp4` or `<youtube_id>.mp4`. Classes are the
    names that the files hold, sorted.
    """
    rows: dict[tuple[str, ...], str] = {}
    for file in _all(places):
        reader = csv.DictReader(_lines(file) if file.name.endswith(".csv") else [])
        if "youtube_id" not in (reader.fieldnames or ()):
            continue
        with _official(file):
            for row in reader:
                said = row.get("split") or file.name
                part = next(name for name in ("train", "val", "test") if name in said)
                seconds = [row[key] for key in ("time_start", "time_end") if row.get(key)]
                digits = [f"{int(float(second)):06}" for second in seconds]
                key = part, row["youtube_id"], *digits
                rows[key] = row.get("label") or rows.get(key, "")
    if not rows:
        raise DataError(_absent("train.csv, val.csv, ...", places, _KINETICS))
    classes = sorted(set(rows.values()) - {""})
    number = {name: label for label, name in enumerate(classes)}
    entries = []
    for (part, video, *seconds), name in rows.items():
        full = "_".join([video, *seconds])
        entries.append(Entry(part, full, (full, video), number.get(name, -1), name))
    return Annotations(f"Kinetics-{len(classes)}", classes, entries)


def oscc(places: Places, split: int) -> Annotations:
    """Object state change classification of Ego4D (2110.07058): `fho_oscc-pnr_{train,val}.json`.

    The owner's files hold `{"clips": [{"unique_id", "video_uid", "parent_start_sec",
    "parent_end_sec", "state_change", ...}]}`; `fho_oscc-pnr_test_unannotated.json` has no
    `state_change`. A video here is those 8 seconds of its parent, cut out as `<unique_id>.mp4`.
    """
    entries = []
    for part in ("train", "val", "test"):
        known = [f"fho_oscc-pnr_{part}.json", f"fho_oscc-pnr_{part}_unannotated.json"]
        file = _look(places, known) if part == "test" else _find(places, known, _EGO4D)
        with _official(file):
            for row in json.loads(file.read_text())["clips"] if file else []:
                label = int(row.get("state_change", -1))
                start, end = row["parent_start_sec"], row["parent_end_sec"]
                hint = f"cut {start}..{end} s of {row['video_uid']}"
                key = row["unique_id"]
                entries.append(Entry(part, key, (key,), label, hint=hint))
    return Annotations("Ego4D OSCC", ["no state change", "state change"], entries)


READERS: dict[str, Callable[[Places, int], Annotations]] = {
    "ucf101": ucf101,
    "hmdb51": hmdb51,
    "ssv2": ssv2,
    "kinetics": kinetics,
    "oscc": oscc,
}


@contextlib.contextmanager
def _official(file: epath.Path | None) -> Iterator[None]:
    """Names the file in whatever a form of its own makes of the reading."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
        if isinstance(error, DataError):
            raise
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise DataError(f"{file}: {reason}; is it the official file?") from error


def _all(places: Places) -> Iterable[epath.Path]:
    """Given files, and the files of given folders and of the usual folders in them."""
    for place in places:
        if not place.is_dir():
            yield place
            continue
        for folder in (place / inside for inside in _INSIDE):
            if folder.is_dir():
                # Videos may lie here too, and asking each what it is would take long.
                names = sorted(file.name for file in folder.iterdir())
                yield from (folder / n for n in names if n.endswith((".txt", ".csv")))


def _look(places: Places, names: Sequence[str]) -> epath.Path | None:
    for place in places:
        if place.name in names and place.exists():
            return place
        for inside in _INSIDE:
            for name in names:
                if (place / inside / name).exists():
                    return place / inside / name
    return None


def _find(places: Places, names: Sequence[str], owner: str) -> epath.Path:
    found = _look(places, names)
    if found is None:
        raise DataError(_absent(names[0], places, owner))
    return found


def _absent(name: str, places: Places, owner: str) -> str:
    looked = ", ".join(str(place) for place in places)
    return f"no {name} in {looked}; get it from {owner} and name its folder with --annotations"


def _lines(file: epath.Path) -> list[str]:
    return [line for line in read_lines(file) if line]
