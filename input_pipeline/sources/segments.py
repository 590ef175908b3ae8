"""Long videos with annotated segments, and the features made of them: files -> records.

Annotations are JSON of ActivityNet's form, `{"database": {video: {"subset", "duration", "fps",
"annotations": [{"label", "segment": [start, end]}]}}}`. Features are a folder of `<video>.npy`
`[N, D]`, one row a window of frames; `features.json` of the task `features` says how they were made
and at how many frames per second.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from input_pipeline.sources.records import DataError, Record

_LOG = logging.getLogger(__name__)

INDEX = "features.json"


class FeatureSpec(NamedTuple):
    """What becomes of the features of one video.

    Attributes:
        length: T, rows of a sample; a multiple of it in evaluation, which cuts no video.
        columns: D.
        resize: whether a video is resized to T rows; else training crops it.
        window: frames that a row is made of, unless the folder's index says.
        stride: frames from one row to the next, in the same case.
    """

    length: int
    columns: int
    resize: bool = False
    window: int = 16
    stride: int = 4


class Video(NamedTuple):
    """What a record's `truth` is. Steps are rows of its features, resized if they are.

    Attributes:
        rate: steps per second.
        shift: steps from the beginning of a row's window to its middle.
        duration: seconds.
        segments: (start, end, class) of each, seconds.
    """

    rate: float
    shift: float
    duration: float
    segments: tuple[tuple[float, float, int], ...]

    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Segments in steps `[n, 2]` and their classes `[n]`, without what is behind the end.

        Those at the beginning may start a little before 0.
        """
        inside = [s for s in self.segments if s[0] < self.duration]
        rows = np.array(inside, np.float64).reshape(-1, 3)
        times = np.minimum(rows[:, :2], self.duration) * self.rate - self.shift
        return times.astype(np.float32), rows[:, 2].astype(np.int32)

    def seconds(self, steps: np.ndarray) -> np.ndarray:
        """Steps as seconds within the video."""
        return np.clip((steps + self.shift) / self.rate, 0.0, self.duration)


def read(path: epath.PathLike, subset: str = "") -> dict[str, Any]:
    """The videos of a file by name, all or of a subset; spans called "Ambiguous" are left out.

    Raises:
        DataError: it cannot be read, an annotation lacks something, or no video is of the subset.
    """
    try:
        found = json.loads(epath.Path(path).read_text())
        videos = {k: v for k, v in found.get("database", found).items()}
        for name, video in videos.items():
            rows = [a for a in video.get("annotations", ()) if a["label"] != "Ambiguous"]
            if odd := [a["segment"] for a in rows if not 0 <= a["segment"][0] <= a["segment"][1]]:
                raise DataError(f"{path}: {name} has the segment {odd[0]}; correct it")
            videos[name] = {**video, "annotations": rows}
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error
    except (TypeError, LookupError, AttributeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is no JSON of ActivityNet's form ({error!r:.99})") from error
    chosen = {k: v for k, v in videos.items() if v.get("subset", "") == subset or not subset}
    if not chosen:
        known = ", ".join(sorted({str(v.get("subset")) for v in videos.values()})) or "nothing"
        raise DataError(f"{path} has no video of subset {subset!r}, only {known}")
    return chosen


def classes(videos: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes: by "label_id" where each has its own, else sorted."""
    known = {str(a["label"]): a.get("label_id") for v in videos.values() for a in v["annotations"]}
    if None in (numbers := set(known.values())) or len(numbers) < len(known):
        return tuple(sorted(known))
    return tuple(sorted(known, key=lambda name: known[name]))


def load(
    path: epath.PathLike,
    subset: str,
    root: epath.PathLike,
    spec: FeatureSpec,
    names: tuple[str, ...],
) -> list[Record]:
    """Every video of a subset; the path of one without features is "".

    Args:
        path, subset: of the annotations, see `read`.
        root: the folder of features.
        spec: how they were made, unless the folder's index says.
        names: of the classes.

    Raises:
        DataError: as `read`, or for a class not in `names`, no frame rate, or features of another
            width.
    """
    folder, number = epath.Path(root), {name: i for i, name in enumerate(names)}
    index = _json(folder / INDEX) if (folder / INDEX).exists() else {}
    window, stride = index.get("window", spec.window), index.get("stride", spec.stride)
    made = index.get("videos", {})
    known = {key.rpartition("/")[2]: key for key in made}  # They may be in folders.
    found: list[Record] = []
    late: list[str] = []
    for name, video in read(path, subset).items():
        where = known.get(name, name)
        fps = made.get(where, {}).get("fps") or video.get("fps")
        duration, fps = (float(said or 0) for said in (video.get("duration"), fps))
        if not (fps > 0 and duration > 0):
            raise DataError(
                f"{path}: {name} has fps={fps:g}, duration={duration:g}; give both there, or fps "
                f"in {folder / INDEX}"
            )
        if new := [str(a["label"]) for a in video["annotations"] if str(a["label"]) not in number]:
            raise DataError(
                f"{path}: {name} has class {new[0]!r}, which is none of the {len(names)} that are "
                f"trained; remove it, or train with it"
            )
        segments = tuple(
            (float(a["segment"][0]), float(a["segment"][1]), number[str(a["label"])])
            for a in video["annotations"]
        )
        late += [f"{name} at {end:g} of {duration:g} s" for _, end, _ in segments if end > duration]
        features = folder / f"{where}.npy"
        count = num_rows(features, spec.columns) if features.exists() else 0
        each = ((count - 1) * stride + window) / spec.length if spec.resize and count else stride
        shift = 0.5 if spec.resize else 0.5 * window / stride
        truth = Video(fps / each, shift, duration, segments)
        found.append(Record(name, str(features) if count else "", -1, truth=truth))
    without = [record.id for record in found if not record.path]
    if without:
        _LOG.warning(
            "%s: %d of %d videos of %s have no features in %s, first %s",
            path,
            len(without),
            len(found),
            subset,
            folder,
            without[0],
        )
    if late:
        _LOG.warning(
            "%s: %d segments of %s end behind their video, first %s; training cuts them",
            path,
            len(late),
            subset,
            late[0],
        )
    return found


def _json(path: epath.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); write it again") from error


def num_rows(path: epath.PathLike, columns: int) -> int:
    """N of a file of features, from its header; DataError if it is none of this width."""
    try:
        with epath.Path(path).open("rb") as file:
            np.lib.format.read_magic(file)
            shape = np.lib.format.read_array_header_1_0(file)[0]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); write it again") from error
    if len(shape) != 2 or shape[1] != columns or not shape[0]:
        raise DataError(
            f"{path} has the shape {shape}, but rows of options.columns={columns} are wanted; give "
            f"the width of the features as --config.options.columns"
        )
    return shape[0]
