"""The official annotation files of UCF101, HMDB51, Something-Something V2, Kinetics and OSCC.

Each reader turns them into entries: which video, in which split, with which label.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from etils import epath

from input_pipeline.records import DataError

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
        label: class number; -1 if it is not published or not usable.
        folder: the class folder its file belongs into; "" for a data set that has none.
        problem: why the entry cannot be used, whether there is a file or not.
        hint: what a person needs to get the file.
    """

    split: str
    id: str
    stems: tuple[str, ...]
    label: int
    folder: str = ""
    problem: str = ""
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

    Args:
        places: files, or folders to look in.
        split: 1, 2 or 3.

    Raises:
        DataError: a file is absent or has a line of another form (file and line are shown).
    """
    file = _find(places, ["classInd.txt"], _UCF101)
    numbered = [line.partition(" ") for line in _lines(file)]
    classes = [name.strip() for _, _, name in numbered]
    if [_int(number, file) for number, _, _ in numbered] != [*range(1, len(classes) + 1)]:
        raise DataError(f"{file}: classes are not numbered 1, 2, ...; get it anew from {_UCF101}")
    entries = []
    for part, name in (("train", f"trainlist{split:02}.txt"), ("test", f"testlist{split:02}.txt")):
        listed = _find(places, [name], _UCF101)
        for line in _lines(listed):
            path, _, number = line.partition(" ")
            folder, _, base = path.rpartition("/")
            stem = base.rpartition(".")[0]
            label = classes.index(folder) if folder in classes else -1
            problem = "" if label >= 0 else f"class not in {file.name}"
            if label >= 0 and number.strip() and _int(number, listed) != label + 1:
                label, problem = -1, f"number and folder disagree in {name}"
            # The lists and some copies of the videos do not agree on one capital letter.
            other = stem.replace("HandStandPushups", "HandstandPushups")
            entries.append(Entry(part, path, (stem, other), label, folder, problem))
    return Annotations(f"UCF101, split {split}", classes, entries)


def hmdb51(places: Places, split: int) -> Annotations:
    """HMDB51: `testTrainMulti_7030_splits/<class>_test_split<N>.txt`, a line `name.avi 0|1|2`.

    As the owner's readme says, 1 is training, 2 is test, 0 is neither; classes are numbered here in
    the order of their names.

    Args:
        places: files, or folders to look in.
        split: 1, 2 or 3.

    Raises:
        DataError: no such files, or a line of another form (file and line are shown).
    """
    suffix = f"_test_split{split}.txt"
    files = {file.name: file for file in _all(places) if file.name.endswith(suffix)}
    if not files:
        raise DataError(_absent(f"<class>{suffix}", places, _HMDB51))
    classes = sorted(name.removesuffix(suffix) for name in files)
    entries = []
    for label, folder in enumerate(classes):
        for line in _lines(files[folder + suffix]):
            name, _, number = line.rpartition(" ")
            if number not in ("0", "1", "2"):
                raise DataError(f"{files[folder + suffix]}: {line!r} is not 'name.avi 0|1|2'")
            if number != "0":
                part, stem = ("train", "test")[number == "2"], name.strip().rpartition(".")[0]
                entries.append(Entry(part, f"{folder}/{name.strip()}", (stem,), label, folder))
    entries.sort(key=lambda entry: entry.split, reverse=True)
    return Annotations(f"HMDB51, split {split}", classes, entries)


def ssv2(places: Places, split: int) -> Annotations:
    """Something-Something V2 (1706.04261): `something-something-v2-{labels,train,...}.json`.

    The files of the owner's labels archive, which are also known without the prefix. The template
    without its brackets is the class name, and `labels.json` gives its number. Test videos have
    labels if `test-answers.csv` (`id;class name`) is there.

    Args:
        places: files, or folders to look in.
        split: not used; there is one.

    Raises:
        DataError: the labels, training or validation file is absent or not such JSON.
    """

    def names(what: str) -> list[str]:
        return [f"something-something-v2-{what}", what]

    file = _find(places, names("labels.json"), _SSV2)
    number = {str(name): _int(label, file) for name, label in _json(file, dict).items()}
    classes = sorted(number, key=lambda name: number[name])
    if [number[name] for name in classes] != list(range(len(classes))):
        raise DataError(f"{file}: labels are not 0..{len(classes) - 1}; get it anew from {_SSV2}")
    answers: dict[str, str] = {}
    if answers_file := _look(places, names("test-answers.csv")):
        for line in _lines(answers_file):
            key = line.split(";" if ";" in line else ",", 1)
            answers[key[0].strip()] = key[-1].strip().strip('"')
    entries = []
    for part, what in (("train", "train"), ("val", "validation"), ("test", "test")):
        known = names(f"{what}.json")
        found = _look(places, known) if part == "test" else _find(places, known, _SSV2)
        for row in _json(found, list) if found else []:
            name = str(_field(row, "id", found))
            text = answers.get(name) if part == "test" else _field(row, "template", found)
            text = None if text is None else str(text).replace("[", "").replace("]", "")
            label = -1 if text is None else number.get(text, -1)
            problem = f"class not in {file.name}" if text is not None and label < 0 else ""
            entries.append(Entry(part, name, (name,), label, problem=problem))
    return Annotations("Something-Something V2", classes, entries)


def kinetics(places: Places, split: int) -> Annotations:
    """Kinetics 400, 600 or 700: CSV files `label,youtube_id,time_start,time_end,split`.

    As published by the owner and, with further columns or without some, by CVDF. Videos are
    `<youtube_id>_<start, 6 digits>_<end, 6 digits>.mp4` or `<youtube_id>.mp4`. Classes are the
    names that the files hold, sorted.

    Args:
        places: files, or folders whose CSV files with a column `youtube_id` are read.
        split: not used; the files name it.

    Raises:
        DataError: no such CSV file, or one that tells the split neither in a column nor by name.
    """
    rows: dict[tuple[str, ...], str] = {}
    for file in _all(places):
        if not file.name.endswith((".csv", ".txt")):
            continue
        reader = csv.reader(io.StringIO(_text(file)))
        header = [name.strip().lower().replace(" ", "_") for name in next(reader, [])]
        if "youtube_id" not in header:
            continue
        for values in filter(None, reader):
            row = dict(zip(header, (value.strip() for value in values)))
            if "youtube_id" not in row:
                raise DataError(f"{file}, line {reader.line_num}: fewer columns than the header")
            times = [row.get(key, "") for key in ("time_start", "time_end")]
            seconds = [str(_int(time.partition(".")[0], file)) for time in times if time]
            part = _split_of(row.get("split") or file.name)
            if not part:
                raise DataError(f"{file}: no column 'split' and no split in its name; rename it")
            key = (part, row["youtube_id"], *seconds)
            rows[key] = rows.get(key) or row.get("label", "")
    if not rows:
        raise DataError(_absent("train.csv, val.csv, ...", places, _KINETICS))
    classes = sorted({label for label in rows.values() if label})
    number = {name: label for label, name in enumerate(classes)}
    entries = []
    for (part, video, *seconds), name in rows.items():
        full = "_".join([video, *(f"{int(second):06}" for second in seconds)])
        stems = (full, video) if seconds else (video,)
        entries.append(Entry(part, full, stems, number.get(name, -1), name))
    return Annotations(f"Kinetics-{len(classes)}", classes, entries)


def oscc(places: Places, split: int) -> Annotations:
    """Object state change classification of Ego4D (2110.07058): `fho_oscc-pnr_{train,val}.json`.

    The owner's files hold `{"clips": [{"unique_id", "video_uid", "parent_start_sec",
    "parent_end_sec", "state_change", ...}]}`; `fho_oscc-pnr_test_unannotated.json` has no
    `state_change`. A video here is those 8 seconds of its parent, cut out as `<unique_id>.mp4`.

    Args:
        places: files, or folders to look in.
        split: not used; there is one.

    Raises:
        DataError: the training or validation file is absent or not such JSON.
    """
    entries = []
    for part in ("train", "val", "test"):
        name = f"fho_oscc-pnr_{part}"
        known = [f"{name}_unannotated.json", f"{name}.json"]
        found = _look(places, known) if part == "test" else _find(places, known[1:], _EGO4D)
        data = _json(found, (dict, list)) if found else []
        for row in _field(data, "clips", found) if isinstance(data, dict) else data:
            key = str(_field(row, "unique_id", found))
            change = row.get("state_change")
            label = -1 if change is None else int(bool(change))
            parent, start, end = (
                row.get(name, "?") for name in ("video_uid", "parent_start_sec", "parent_end_sec")
            )
            hint = f"cut {start}..{end} s of {parent}"
            entries.append(Entry(part, key, (key,), label, hint=hint))
    return Annotations("Ego4D OSCC", ["no state change", "state change"], entries)


READERS: dict[str, Callable[[Places, int], Annotations]] = {
    "ucf101": ucf101,
    "hmdb51": hmdb51,
    "ssv2": ssv2,
    "kinetics": kinetics,
    "oscc": oscc,
}


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
                yield from (folder / n for n in names if n.endswith((".txt", ".csv", ".json")))


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


def _split_of(text: str) -> str:
    text = text.lower()
    return next((part for part in ("train", "val", "test") if part in text), "")


def _int(text: Any, file: epath.Path) -> int:
    try:
        return int(text)
    except (TypeError, ValueError) as error:
        message = f"{file}: {text!r} stands where a number should; is it the official file?"
        raise DataError(message) from error


def _text(file: epath.Path) -> str:
    try:
        return file.read_text().removeprefix("\ufeff")
    except (OSError, UnicodeDecodeError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "not a text file"
        raise DataError(f"{file}: {reason}; check the path of the annotations") from error


def _lines(file: epath.Path) -> list[str]:
    return [line.strip() for line in _text(file).splitlines() if line.strip()]


def _json(file: epath.Path, kind: type | tuple[type, ...]) -> Any:
    try:
        data = json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: not JSON (line {error.lineno}); download it again") from error
    if not isinstance(data, kind):
        raise DataError(f"{file}: its JSON is of another form; is it the official file?")
    return data


def _field(row: Any, name: str, file: epath.Path | None) -> Any:
    if not isinstance(row, dict) or name not in row:
        raise DataError(f"{file}: an entry without {name!r}; is it the official file?")
    return row[name]
