"""Key frames become records: who is on them, and what is annotated."""

import concurrent.futures
import dataclasses
import functools
import json
import logging
import re
from typing import Any, NamedTuple

import av
import numpy as np
from etils import epath

from input_pipeline import preflight
from input_pipeline.sources import boxes, lists
from input_pipeline.sources.boxes import Rows
from input_pipeline.sources.frames import open_file
from input_pipeline.sources.records import ANY, DataError, LazyRecords, Record
from input_pipeline.video import decode, packets
from input_pipeline.video.base import Readable, VideoError

_LOG = logging.getLogger(__name__)

LEAST = 0.8  # Score of a detected person.
_PART = re.compile(r"(.+)_(\d{6})_\d{6}")  # Kinetics' files: which seconds of a video they are.


class KeyFrame(NamedTuple):
    """What is known of a key frame, `Record.truth`; K is the same for all of a list."""

    seconds: float
    """When it is, on the clock of its file."""
    size: tuple[int, int]
    """Height and width of the file's frames; ones where nobody looked or none can be read."""
    boxes: np.ndarray
    """Of the people to look at, fractions of the frame; float32 `[K, 4]`, zeros behind."""
    score: np.ndarray
    """float32 `[K]`: that there is a person; 0 where there is no box."""
    label: np.ndarray
    """What they do where that is annotated, uint8 `[K, C]`; class c is action c + 1."""
    truth: tuple[np.ndarray, np.ndarray]
    """All annotated boxes, float64 `[G, 4]`, and the action of each, int64 `[G]`."""


def key_frame(record: Record) -> KeyFrame:
    """What is known of a record that is one."""
    assert isinstance(record.truth, KeyFrame)
    return record.truth


class _People(NamedTuple):
    """Boxes by key frame: position of the key frame, box, score, bits of the labels."""

    frame: np.ndarray
    box: np.ndarray
    score: np.ndarray
    packed: np.ndarray


class _File(NamedTuple):
    path: str
    size: tuple[int, int] = (1, 1)
    begins: float = 0.0
    """Second of the clock of the csv at which it begins."""
    seconds: float = 0.0
    """Its length."""


@dataclasses.dataclass(frozen=True, eq=False)
class KeyFrames(LazyRecords):
    """One record per key frame."""

    rows: Rows
    people: _People
    kept: np.ndarray
    """Positions of the key frames in `rows.frames`."""
    files: dict[str, _File]
    names: list[str]
    """Of the classes."""

    def __len__(self) -> int:
        return len(self.kept)

    @functools.cached_property
    def most(self) -> int:
        """K, people on a key frame."""
        counts = np.bincount(self.people.frame, minlength=len(self.rows.frames))
        return max(int(counts[self.kept].max(initial=0)), 1)

    def at(self, position: int) -> Record:
        number, rows, people = int(self.kept[position]), self.rows, self.people
        name = rows.frames[number]
        file, true = self.files[_video(name)], _of(number, rows.frame)
        _, *mine = (part[_of(number, people.frame)] for part in people)
        mine[2] = np.unpackbits(mine[2], axis=1, count=len(self.names))
        more = self.most - len(mine[0])
        box, score, label = (np.pad(part, ((0, more), (0, 0))[: part.ndim]) for part in mine)
        truth = rows.box[true], rows.action[true]
        seconds = float(rows.seconds[number]) - file.begins
        known = KeyFrame(seconds, file.size, box, score, label, truth)
        return Record(name, file.path, -1, truth=known)


def _of(number: int, column: np.ndarray) -> slice:
    """Where a number stands in an ascending column."""
    return slice(*np.searchsorted(column, (number, number + 1)).tolist())


def _video(name: str) -> str:
    return name.rpartition(",")[0]


def load(
    path: str,
    root: str = "",
    *,
    split: str = "train",
    num_classes: int = 0,
    label_map: str = "",
    person_boxes: str = "",
    images: str = "",
    excluded: str = "",
    start: float = 0.0,
) -> KeyFrames:
    """The key frames of a csv, whose videos are below `root`, found by name whatever their ending.

    Args:
        path: a csv, see `boxes.read`; or a list of labelled videos, each of which is one key frame,
            its first, and one box, all of it (moving shapes, to try a recipe).
        root: the csv's own folder if empty.
        split: "train" leaves out key frames without boxes.
        num_classes: C; 0 = the largest number of the label map.
        label_map: see `boxes.read_label_map`.
        person_boxes: detected people, looked at in place of the annotated ones but in training:
            JSON `[{"image_id": "video,second", "bbox": [x, y, w, h], "score": s}]`, pixels.
        images: JSON whose "images" tell what a number as image_id is (id, movie, timestamp, width,
            height), as AlphAction's files have it.
        excluded: key frames to leave out, see `boxes.read_excluded`.
        start: second at which the files begin; those called as in Kinetics
            (`ID_000012_000022.mp4`) say it themselves.

    Raises:
        DataError: a file that is missing or wrong, an action that is no class, or key frames that
            all lie outside their videos.
    """
    rows = boxes.read(path) if path.endswith(".csv") else _whole(path)
    named = boxes.read_label_map(label_map) if label_map else {}
    if not (count := num_classes or max(named, default=0)):
        raise DataError("nobody tells the classes; give options.label_map or data.num_classes")
    for bad in np.flatnonzero((rows.action < 1) | (rows.action > count))[:1]:
        raise DataError(
            f"{path}, line {rows.line[bad]}: action {rows.action[bad]} is none of 1..{count}; "
            f"correct it, options.label_map={label_map} or data.num_classes"
        )
    if named and (extra := sorted({*rows.action.tolist()} - named.keys())):
        lacking = ", ".join(map(str, extra))
        _LOG.warning("%s: actions not in the label map, not scored: %s", path, lacking)
    files = _found(root or str(epath.Path(path).parent), rows, start)
    if split == "train" or not person_boxes:
        people = _annotated(rows, count)
    else:
        rows, people = _detected(rows, person_boxes, images, files, count)
    out = boxes.read_excluded(excluded) if excluded else ()
    has = np.isin(np.arange(len(rows.frames)), people.frame)
    used = np.array([name not in out for name in rows.frames], bool)
    if (without := np.flatnonzero(used & ~has)).size:
        what = "left out" if split == "train" else "nothing is predicted there"
        shown = path, len(without), used.sum(), rows.frames[without[0]], what
        _LOG.warning("%s: %d of %d key frames have no box, first %s: %s", *shown)
    kept = np.flatnonzero(used & has if split == "train" else used)
    if not len(kept):
        raise DataError(f"{path}: no key frames in it; write a row for each box and action")
    _look(files, rows, kept, path, every=split != "train")
    names = [named.get(number, str(number)) for number in range(1, count + 1)]
    return KeyFrames(rows, people, kept, files, names)


def _whole(path: str) -> Rows:
    found = lists.load(path, num_classes=ANY)
    names = [boxes.name_of(record.id.rpartition("/")[2].rpartition(".")[0], 0) for record in found]
    number, action = np.arange(len(found)), np.array([record.label + 1 for record in found])
    box, ones = np.tile([0.0, 0.0, 1.0, 1.0], (len(found), 1)), np.ones(len(found))
    return Rows(names, 0 * ones, number, box, action, ones, number + 1)


def _annotated(rows: Rows, num_classes: int) -> _People:
    """Rows of one box are one person, who does several things."""
    keys = np.column_stack([rows.frame, rows.box])
    keys, inverse = np.unique(keys, axis=0, return_inverse=True)
    label = np.zeros((len(keys), num_classes), np.uint8)
    label[inverse.ravel(), rows.action - 1] = 1
    box, ones = keys[:, 1:].astype(np.float32), np.ones(len(keys), np.float32)
    return _People(keys[:, 0].astype(int), box, ones, np.packbits(label, axis=1))


def _detected(
    rows: Rows, path: str, images: str, files: dict[str, _File], num_classes: int
) -> tuple[Rows, _People]:
    """Detected people, and the rows with the key frames that only have those."""
    entry, known = {}, {}
    numbers, seconds = {name: i for i, name in enumerate(rows.frames)}, rows.seconds.tolist()
    found: list[tuple[float, ...]] = []
    try:
        known = {image["id"]: image for image in _json(images)["images"]} if images else {}
        for entry in _json(path):
            x, y, w, h = map(float, entry["bbox"])
            if image := known.get(entry["image_id"]):
                video, time = image["movie"], float(image["timestamp"])
            else:
                video, time = _video(entry["image_id"]), float(entry["image_id"].split(",")[-1])
            # Of a video without annotation nothing can be scored.
            if entry["score"] < LEAST or min(w, h) <= 0 or video not in files:
                continue
            if image:
                size = image["height"], image["width"]
            else:
                files[video] = _opened(files[video])
                size = files[video].size
            number = numbers.setdefault(boxes.name_of(video, time), len(numbers))
            seconds += [time] * (number == len(seconds))
            corners = np.array([x, y, x + w, y + h]) / (*size[::-1], *size[::-1])
            found.append((number, *corners.clip(0, 1), entry["score"]))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: {str(entry)[:99]} is no image_id, bbox and score; an image_id that is a "
            f"number needs options.images, whose images have id, movie, timestamp, width, height"
        ) from error
    table = np.array(sorted(found, key=lambda row: row[0])).reshape(-1, 6)
    box, score = table[:, 1:5].astype(np.float32), table[:, 5].astype(np.float32)
    bits = np.zeros((len(table), -(-num_classes // 8)), np.uint8)
    rows = rows._replace(frames=[*numbers], seconds=np.array(seconds))
    return rows, _People(table[:, 0].astype(int), box, score, bits)


def _json(path: str) -> Any:
    try:
        return json.loads(boxes.there(path).read_text())
    except ValueError as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error


def _found(root: str, rows: Rows, start: float) -> dict[str, _File]:
    """The file of each video; one that is not there is named as if it were."""
    if not epath.Path(root).is_dir():
        raise DataError(f"data.root={root} is no folder; give the one that the videos are in")
    there: dict[str, _File] = {}
    for inside, _, names in lists.walk(root):
        for name in filter(lists.is_video, names):
            path = "/".join(filter(None, (root.rstrip("/"), inside, name)))
            stem = name.rpartition(".")[0]
            there[stem] = _File(path, begins=start)
            if part := _PART.fullmatch(stem):
                there.setdefault(part[1], _File(path, begins=float(part[2])))
    return {v: there.get(v, _File(f"{root}/{v}.mp4")) for v in map(_video, rows.frames)}


def _opened(file: _File) -> _File:
    """With what its header and first frame tell; as it is if they cannot be read."""
    if file.size != (1, 1):
        return file
    try:
        with open_file(file.path) as opened, packets.opened(opened) as (container, stream):
            image = next(container.decode(stream))
            turned = round(image.rotation / 90) % 2
            size = (image.width, image.height) if turned else (image.height, image.width)
            return file._replace(size=size, seconds=(container.duration or 0) / 1e6)
    except (VideoError, OSError, StopIteration, av.error.FFmpegError):
        return file  # Who reads a clip of it learns why.


def _look(files: dict[str, _File], rows: Rows, kept: np.ndarray, path: str, every: bool) -> None:
    """Opens `every` video, or some; compares their lengths with the times of the key frames."""
    used = list(dict.fromkeys(_video(rows.frames[i]) for i in kept))
    some = used if every else [used[i] for i in preflight.positions(len(used))]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        files.update(zip(some, pool.map(lambda video: _opened(files[video]), some)))
    looked, outside = 0, []
    for name, second in zip(np.array(rows.frames)[kept], rows.seconds[kept]):
        file = files[_video(name)]
        time, looked = second - file.begins, looked + (file.seconds > 0)
        if file.seconds and not 0 <= time < file.seconds:
            outside.append(f"{name} at {time:g} s of the {file.seconds:g} s of {file.path}")
    if outside:
        said = (
            f"{path}: {len(outside)} of {looked} key frames are outside their video, first "
            f"{outside[0]}; correct them, or options.start, the second at which the files begin"
        )
        if len(outside) == looked:
            raise DataError(said)
        _LOG.warning("%s", said)


def shown_at(video: Readable, seconds: float, fps: float = 0.0) -> int:
    """Number of the frame that is shown at a time, of those at `fps` if not 0.

    Raises:
        VideoError: the video is shorter or begins later, or tells no times.
    """
    if not seconds:
        return 0
    # Of one frame in so many seconds the second is shown then.
    shown = video.at_rate(1 / abs(seconds))
    if seconds < 0 or len(shown) < 2:
        raise VideoError(f"its key frame at {seconds:g} s is outside it")
    return round(seconds * fps) if fps else int(shown[1])


def picture(record: Record) -> np.ndarray:
    """The key frame itself, uint8 `[H, W, 3]`."""
    with decode.open_video(record.path) as video:
        return np.copy(video.read([shown_at(video, key_frame(record).seconds)])[0])
