"""Long videos with annotated segments, and the features made of them: files -> records.

Features are a folder of `<video>.npy` `[N, D]`, one row a window of frames; `features.json` of the
task `features` says how they were made and at how many frames per second.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from input_pipeline.sources.records import DataError, Record

_LOG = logging.getLogger(__name__)
_ROW = '{"label", "segment": [start, end]'
_ANNOTATIONS = (
    f'{{"database": {{video: {{"subset", "duration", "fps", "annotations": [{_ROW}}}]}}}}}}'
)
_RESULTS = f'{{"results": {{video: [{_ROW}, "score"}} or a number, ..]}}}}'


class FeatureSpec(NamedTuple):
    """What becomes of the features of one video, of `columns` columns: samples of `length` rows.

    It is resized to these, or else cropped in training; evaluation takes a multiple of them. A row
    is of 16 frames, `stride` after those of the one before, unless the folder's index says both.
    """

    length: int
    columns: int
    resize: bool = False
    stride: int = 4


class Video(NamedTuple):
    """What a record's `truth` is. Steps are rows of its features, resized if they are.

    Attributes:
        rate: steps per second.
        shift: steps from the beginning of a row's window to its middle.
        duration: seconds.
        segments: (start, end, class) of each, seconds.
        num_rows: of its features; 0 if there are none.
        scores: probability of each class in it, of a classifier of whole videos.
    """

    rate: float
    shift: float
    duration: float
    segments: tuple[tuple[float, float, int], ...]
    num_rows: int = 0
    scores: tuple[float, ...] = ()

    def steps(self) -> np.ndarray:
        """Segments in steps, (start, end, class) `[n, 3]`, without what is behind the end.

        Those at the beginning may start a little before 0.
        """
        rows = np.array([s for s in self.segments if s[0] < self.duration]).reshape(-1, 3)
        rows[:, :2] = np.minimum(rows[:, :2], self.duration) * self.rate - self.shift
        return rows.astype(np.float32)

    def seconds(self, steps: np.ndarray) -> np.ndarray:
        """Steps as seconds within the video."""
        return np.clip((steps + self.shift) / self.rate, 0.0, self.duration)


def _read(path: epath.PathLike, use: Callable[[Any], Any], form: str) -> Any:
    try:
        return use(json.loads(epath.Path(path).read_text()))
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise DataError(f"{path} cannot be read ({error!r:.99}); give JSON, {form}") from error


def _row(given: Mapping[str, Any]) -> dict[str, Any]:
    start, end = map(float, given["segment"])
    label, score = str(given["label"]), float(given.get("score", 1.0))
    return {**given, "label": label, "segment": (start, end), "score": score}


def read(path: epath.PathLike, subset: str = "") -> dict[str, Any]:
    """The videos of a file of ActivityNet's form by name, all or of a subset.

    Spans called "Ambiguous" are left out. DataError if it cannot be read, an annotation lacks
    something, or no video is of the subset.
    """

    def use(found: Any) -> dict[str, Any]:
        return {
            name: {
                **video,
                "annotations": [
                    row
                    for row in map(_row, video.get("annotations", ()))
                    if row["label"] != "Ambiguous"
                ],
            }
            for name, video in found.get("database", found).items()
        }

    videos = _read(path, use, _ANNOTATIONS)
    chosen = {k: v for k, v in videos.items() if not subset or v.get("subset") == subset}
    if not chosen:
        known = ", ".join(sorted({str(v.get("subset")) for v in videos.values()}))
        raise DataError(f"{path} has no video of subset {subset!r}, only {known}")
    return chosen


def read_results(path: epath.PathLike, of: Callable[[Any], Any] = _row) -> dict[str, list[Any]]:
    """Detections by video; with `of=float` its probabilities of the classes, in their order.

    DataError if the file cannot be read.
    """
    use = lambda found: {v: [of(row) for row in rows] for v, rows in found["results"].items()}  # noqa: E731
    return _read(path, use, _RESULTS)


def classes(videos: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes: by "label_id" where there is one, else by name."""
    known = {a["label"]: a.get("label_id", 0) for v in videos.values() for a in v["annotations"]}
    return tuple(sorted(known, key=lambda name: (known[name], name)))


def load(
    path: epath.PathLike,
    subset: str,
    root: epath.PathLike,
    spec: FeatureSpec,
    names: tuple[str, ...],
    scores: Mapping[str, Sequence[float]] | None = None,
) -> list[Record]:
    """Every video of a subset; the path of one without features is "".

    Features are in the folder `root`, `spec` says what becomes of them; `names` are the classes,
    and `scores` theirs by video, None if no classifier tells them. DataError as `read`, or for a
    class not in `names`, no frame rate, features of another width, or a video without scores.
    """
    folder, found, late = epath.Path(root), [], []
    told = folder / "features.json"
    index = _read(told, dict, "or make the features again") if told.exists() else {}
    window, stride = index.get("window", 16), index.get("stride", spec.stride)
    made = index.get("videos", {})
    known = {key.rpartition("/")[2]: key for key in made}  # They may be in folders.
    for name, video in read(path, subset).items():
        where = known.get(name, name)
        fps = float(made.get(where, {}).get("fps") or video.get("fps") or 0)
        duration, segments = float(video.get("duration") or 0), []
        if not (fps > 0 and duration > 0):
            raise DataError(f"{path}: {name} has fps={fps:g}, duration={duration:g}; give both")
        for row in video["annotations"]:
            (start, end), label = row["segment"], row["label"]
            if label not in names:
                raise DataError(f"{path}: {name} has class {label!r}; remove it, or train with it")
            if not 0 <= start <= end:
                raise DataError(f"{path}: {name} has the segment {[start, end]}; correct it")
            segments.append((start, end, names.index(label)))
            late += [f"{name} at {end:g} of {duration:g} s"] if end > duration else []
        features = folder / f"{where}.npy"
        count = _num_rows(features, spec.columns) if features.exists() else 0
        of_video = () if scores is None else scores.get(name, ())
        if scores is not None and count and len(of_video) != len(names):
            raise DataError(f"{len(of_video)} scores of {name} are given, {len(names)} wanted")
        rate, shift = fps / stride, 0.5 * window / stride
        if spec.resize and count:
            rate, shift = fps * spec.length / ((count - 1) * stride + window), 0.5
        truth = Video(rate, shift, duration, tuple(segments), count, tuple(of_video))
        found.append(Record(name, str(features) if count else "", -1, truth=truth))
    without = [record.id for record in found if not record.path]
    for what, those in (
        (f"videos of {subset} have no features in {folder}", without),
        (f"segments of {subset} end behind their video; training cuts them", late),
    ):
        if those:
            _LOG.warning("%s: %d %s, first %s", path, len(those), what, those[0])
    return found


def _num_rows(path: epath.Path, columns: int) -> int:
    """N of a file of features, from its header; DataError if it is none of this width."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            (rows, width), _, dtype = np.lib.format.read_array_header_1_0(file)
            missing = file.tell() + rows * width * dtype.itemsize - path.stat().length
        if missing > 0:
            raise ValueError(f"{missing} bytes are missing")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); write it again") from error
    if width != columns:
        raise DataError(f"{path} has {width} columns; give --config.options.columns={width}")
    return rows
