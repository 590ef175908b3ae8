"""AVA's files (arXiv 1705.08421) become records: key frames, who is on them and what they do."""

import csv
import io
import json
import logging
import math
import re
from array import array
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from etils import epath

from input_pipeline.sources import lists
from input_pipeline.sources.frames import is_video
from input_pipeline.sources.load import Source, named
from input_pipeline.sources.records import DataError, Record
from input_pipeline.video import decode
from input_pipeline.video.base import VideoError

_LOG = logging.getLogger(__name__)

LEAST = 0.8  # Score of a detected person.
_PART = re.compile(r"(.+)_(\d{6})_\d{6}")  # Kinetics' files: which seconds of a video they are.

# Key frames by name, such as "1j20qq1JyX4,0902": numbers from 0 on, and seconds.
Frames = dict[str, tuple[int, float]]


class KeyFrame(NamedTuple):
    """`Record.truth` of a key frame. Boxes are x1, y1, x2, y2, fractions of the frame."""

    seconds: float  # When it is, on the clock of its file.
    size: tuple[int, int]  # Height and width; ones in training and where no frame can be read.
    truth: np.ndarray  # Annotated boxes, float64 `[G, 5]`, each with an action from 1 on.
    people: np.ndarray  # Boxes to look at, float64 `[P, 5]`, each with its score as a person.
    most: int  # K, the largest P of the list.

    def __repr__(self) -> str:  # Records are compared by it; arrays would be cut.
        return f"{self.seconds} {self.truth.tolist()} {self.people.tolist()}"


def read(
    path: str, frames: Frames, names: Collection[int] = (), detected: bool = False
) -> np.ndarray:
    """Reads `video,second,x1,y1,x2,y2,action[,person or score]`; evaluation counts whole seconds.

    New key frames are added to `frames`; a row may lack box and action. Actions that are none of
    `names`, if there are names, are said. Boxes that are `detected` may reach outside; those out
    of order are left out.

    Returns:
        float64 `[N, 7]`: number of the key frame, x1, y1, x2, y2, action, and the 8th column or 1.
    """
    table, row = array("d"), [""]
    with io.TextIOWrapper(_there(path).open("rb"), "utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        try:
            for row in filter(None, reader):
                time = float(row[1])
                name = f"{row[0]},{int(time):04d}"
                number, _ = frames.setdefault(name, (len(frames), time))
                if any(row[2:]):
                    score = float(row[7]) if len(row) > 7 else 1.0
                    table.extend((number, *map(float, row[2:6]), int(row[6]), score))
                    x1, y1, x2, y2 = table[-6:-2]
                    inside = 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1
                    if not math.isfinite(sum(table[-7:])) or not (inside or detected):
                        raise ValueError(row)
        except (IndexError, ValueError) as error:
            form = "video,second,x1,y1,x2,y2,action[,score], x1 < x2 and y1 < y2 between 0 and 1"
            where = f"{path}, line {reader.line_num}, {','.join(row)!r}"
            raise DataError(f"{where}: is not {form}; correct it") from error
    rows = np.array(table).reshape(-1, 7)
    if names and len(extra := np.setdiff1d(rows[:, 5], [*names])):
        said = ", ".join(f"{action:g}" for action in extra)
        _LOG.warning("%s: actions not in the label map, not scored: %s", path, said)
    ordered = np.all(rows[:, 1:3] < rows[:, 3:5], axis=1)
    if not ordered.all():
        _LOG.warning("%s: %d boxes out of order are left out", path, (~ordered).sum())
    return rows[ordered]


def read_label_map(path: str) -> dict[int, str]:
    """Names of the actions by number, of a pbtxt with `name: "..."` and `id:` or `label_id:`."""
    found = re.findall(r'\bname:\s*"(.*)"\s*(?:label_)?id:\s*(\d+)', _there(path).read_text())
    if not found:
        raise DataError(f"{path}: no class in it; give AVA's pbtxt, with name and id of each")
    return {int(number): name for name, number in found}


def load(
    path: str,
    root: str = "",
    *,
    train: bool = True,
    num_classes: int = 0,
    label_map: str = "",
    person_boxes: str = "",
    images: str = "",
    excluded: str = "",
    start: float = 0.0,
) -> tuple[list[Record], list[str]]:
    """The key frames of a csv, see `read`, and the names of all actions.

    To `train` leaves out key frames without boxes, and looks at annotated people in any case.
    docs/detection_boxes.md has the rest.
    """
    frames: Frames = {}
    out: Frames = {}
    names = read_label_map(label_map) if label_map else {}
    rows = read(path, frames, names)
    if not names and (beside := named([Source(path)])):
        names = dict(enumerate(beside[0].names, 1))
    count = num_classes or max(names, default=0) or int(rows[:, 5].max(initial=1))
    for wrong in np.setdiff1d(rows[:, 5], range(1, count + 1))[:1]:
        raise DataError(
            f"{path}: action {wrong:g} is none of 1..{count}; correct it, or data.num_classes"
        )
    if excluded:
        read(excluded, out)
    if person_boxes and not train:
        people = _detected(person_boxes, images, frames)
    else:  # Rows of one box are one person.
        people = np.unique(rows[:, :5], axis=0)
        people = np.column_stack([people, np.ones(len(people))])
    mine, true = (_by_frame(table, len(frames)) for table in (people, rows[:, :6]))
    most = max(map(len, mine), default=0) or 1
    root = root or str(epath.Path(path).parent)
    files, records = _files(root, start), []
    for name, (number, second) in frames.items():
        video = name.rpartition(",")[0]
        file, begins = files.get(video, (f"{root}/{video}", start))
        if name not in out and (len(mine[number]) or not train):
            known = KeyFrame(second - begins, (1, 1), true[number], mine[number], most)
            records.append(Record(name, file, -1, truth=known))
    if not records:
        raise DataError(f"{path}: no key frames in it; write a row for each box and action")
    if not train:
        paths = list({record.path for record in records})
        with ThreadPoolExecutor(16) as pool:
            sizes = dict(zip(paths, pool.map(_size, paths)))
        records = [r._replace(truth=r.truth._replace(size=sizes[r.path])) for r in records]
    return records, [names.get(number, str(number)) for number in range(1, count + 1)]


def _by_frame(table: np.ndarray, count: int) -> list[np.ndarray]:
    """The rows of each frame, whose number is the first column, without it."""
    table = table[np.argsort(table[:, 0], kind="stable")]
    return np.split(table[:, 1:], np.searchsorted(table[:, 0], range(1, count)))


def _detected(path: str, images: str, frames: Frames) -> np.ndarray:
    """Frame, box and score of people `[P, 6]`; key frames that only have those are added."""
    videos, found = {name.rpartition(",")[0] for name in frames}, []
    try:
        known = {image["id"]: image for image in json.loads(_there(images).read_text())["images"]}
        for entry in json.loads(_there(path).read_text()):
            image, (x, y, w, h) = known[entry["image_id"]], entry["bbox"]
            # Of a video without annotation nothing can be scored.
            if entry["score"] >= LEAST and min(w, h) > 0 and image["movie"] in videos:
                time = float(image["timestamp"])
                name = f"{image['movie']},{int(time):04d}"
                number, _ = frames.setdefault(name, (len(frames), time))
                corners = np.array([x, y, x + w, y + h]) / ([image["width"], image["height"]] * 2)
                found.append((number, *corners.clip(0, 1), entry["score"]))
    except (LookupError, TypeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path}: is no JSON of image_id, bbox and score with options.images={images}, whose "
            f"images have id, movie, timestamp, width, height ({error!r:.99})"
        ) from error
    return np.array(found).reshape(-1, 6)


def _files(root: str, start: float) -> dict[str, tuple[str, float]]:
    """The file of each video below a folder, and the second at which it begins."""
    found = {}
    for inside, _, names in lists.walk(root):
        for name in filter(is_video, names):
            stem, path = name.rpartition(".")[0], "/".join(filter(None, (root, inside, name)))
            part = _PART.fullmatch(stem)
            found[part[1] if part else stem] = path, float(part[2]) if part else start
    return found


def _size(path: str) -> tuple[int, int]:
    """Height and width of a video's frames, turned as its header says."""
    try:
        with decode.open_video(path) as opened:
            return opened.read([0])[0].shape[:2]
    except VideoError:
        return 1, 1  # Who reads a clip of it learns why.


def _there(path: str) -> epath.Path:
    if not (file := epath.Path(path)).is_file():
        raise DataError(f"{path!r} is no file; check data.train, .val, .test and options")
    return file
