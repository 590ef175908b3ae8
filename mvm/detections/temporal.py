"""Segments of videos: soft non-maximum suppression, and the mean average precision of ActivityNet.

Equal scores keep their order everywhere: the first of the list comes first.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from mvm.runtime.metrics import replace_text
from mvm.types import UserError

_SHORT = 1e-3
"""Seconds: a truth that is shorter is left out, and so is one as near to another of its class."""


class Segments(NamedTuple):
    """Segments, one a row: truths or detections."""

    video: np.ndarray
    """Names `[n]`."""
    segment: np.ndarray
    """Start and end `[n, 2]`, seconds."""
    label: np.ndarray
    """Names of classes `[n]`."""
    score: np.ndarray
    """`[n]`, ones for truths."""

    def at(self, index: Any) -> "Segments":
        """Those rows."""
        return Segments(*(column[index] for column in self))

    def of_videos(self) -> dict[str, np.ndarray]:
        """The rows of each video, in their order."""
        order = np.argsort(self.video, kind="stable")
        names, first = np.unique(self.video[order], return_index=True)
        return dict(zip(names.tolist(), np.split(order, first[1:])))


def table(rows: Iterable[tuple[str, Sequence[float], str, float]]) -> Segments:
    """Segments of `(video, (start, end), label, score)` rows."""
    video, segment, label, score = zip(*rows) if (rows := list(rows)) else ((), (), (), ())
    return Segments(
        np.array(video, object),
        np.array(segment, np.float64).reshape(-1, 2),
        np.array(label, object),
        np.array(score, np.float64),
    )


def tiou(a: np.ndarray, b: np.ndarray, more: float = 0.0) -> np.ndarray:
    """Temporal intersection over union `[n, m]` of segments `[n, 2]` and `[m, 2]`.

    `more` is added to every length.
    """
    a = a[:, None]
    both = np.minimum(a[..., 1], b[:, 1]) - np.maximum(a[..., 0], b[:, 0])
    both = np.maximum(both, 0)
    lengths = [x[..., 1] - x[..., 0] + both.dtype.type(more) for x in (a, b)]
    union = lengths[0] + lengths[1] - both
    return both / np.where(union > 0, union, 1)


# --- Suppression


def soft_nms(
    segment: np.ndarray, score: np.ndarray, *, sigma: float, min_score: float, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian soft suppression (arXiv 1704.04503): each choice decays what overlaps it.

    Returns:
        At most `most` indices in the order chosen, which is that of their new scores, and these.
        Those that decay below `min_score` are left out; the first is not asked.
    """
    segment, left = segment.astype(np.float32), score.astype(np.float32)
    chosen, scores = [], []
    for _ in range(min(most, len(left))):
        best = int(np.argmax(left))
        if left[best] < 0:
            break
        chosen.append(best)
        scores.append(left[best])
        overlap = tiou(segment[best : best + 1], segment, 1e-6)[0]
        left = left * np.exp(-(overlap**2) / np.float32(sigma))
        left[left < min_score] = -1
        left[chosen] = -1
    return np.array(chosen, int), np.array(scores, np.float32)


def suppress(
    segment: np.ndarray,
    score: np.ndarray,
    label: np.ndarray,
    *,
    sigma: float,
    min_score: float,
    most: int,
    by_class: bool,
    voting: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Soft suppression of the segments of a video: at most `most`, by descending score.

    Args:
        segment, score, label: `[n, 2]`, `[n]`, `[n]`.
        by_class: whether segments of other classes are left alone.
        voting: for all classes as one: each segment becomes the mean of the segments before
            suppression that it overlaps by at least this, weighted by score and overlap; 0 = off.
    """
    groups = [np.arange(len(score))]
    if by_class:
        groups = [np.flatnonzero(label == one) for one in np.unique(label)]
    kept, scores = [np.zeros(0, int)], [np.zeros(0, np.float32)]
    for group in groups:
        index, new = soft_nms(
            segment[group], score[group], sigma=sigma, min_score=min_score, most=most
        )
        kept.append(group[index])
        scores.append(new)
    index, new = np.concatenate(kept), np.concatenate(scores)
    best = np.argsort(-new, kind="stable")[:most]
    index, new = index[best], new[best]
    moved = segment[index]
    if voting > 0 and not by_class:
        weight = tiou(moved, segment)
        weight = np.where(weight >= voting, weight, 0) * score
        moved = weight @ segment / np.maximum(weight.sum(1, keepdims=True), 1e-12)
    return moved, new, label[index]


def with_classes(
    segment: np.ndarray, score: np.ndarray, probability: np.ndarray, classes: int = 2
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each segment once for each of the video's best classes, score sqrt(class * segment).

    Args:
        segment, score: of what is of no class, `[n, 2]`, `[n]`.
        probability: of the video's classes, `[C]`.
    """
    best = np.argsort(-probability, kind="stable")[:classes]
    joint = np.sqrt(probability[best, None] * score).ravel()
    return np.tile(segment, (len(best), 1)), joint, np.repeat(best, len(score))


# --- Evaluation


class Precision(NamedTuple):
    """Scores of detections, fractions."""

    thresholds: tuple[float, ...]
    """Of the temporal intersection over union, T."""
    classes: list[str]
    """Those of the truth, in order."""
    average: np.ndarray
    """Average precision `[T, C]`."""
    recall: dict[int, np.ndarray]
    """`[T, C]` by k, of the k * n best detections of a class in a video with n truths."""

    def as_json(self) -> dict[str, Any]:
        """Means over the classes and thresholds, and by class."""
        mean = self.average.mean(axis=1) if self.classes else np.full(len(self.thresholds), np.nan)
        by_class = dict(zip(self.classes, self.average.T.tolist()))
        recall = {f"recall_at_{k}x": r.mean(axis=1).tolist() for k, r in self.recall.items()}
        return {
            "average_mAP": float(mean.mean()),
            "mAP": mean.tolist(),
            "thresholds": list(self.thresholds),
            "per_class_AP": by_class,
            **recall,
        }


def precision(truth: Segments, found: Segments, thresholds: Sequence[float]) -> Precision:
    """The detection scores of ActivityNet.

    Detections of a class that no truth has are left out (the released evaluators count them for
    another one, or for one more). Average precision is the area under the precision that is
    reached at each recall or a higher one.
    """
    truth, wanted = _distinct(truth), np.array(thresholds)
    classes = sorted(set(truth.label.tolist()))
    average: list[np.ndarray] = []
    recall: dict[int, list[np.ndarray]] = {1: [], 5: []}
    for name in classes:
        truths, mine = (rows.at(np.flatnonzero(rows.label == name)) for rows in (truth, found))
        mine = mine.at(np.argsort(-mine.score, kind="stable"))
        average.append(_average_precision(truths, mine, wanted))
        for k, values in recall.items():
            values.append(_recall(truths, mine, wanted, k))
    stacked = {k: np.array(v).reshape(-1, len(wanted)).T for k, v in recall.items()}
    matrix = np.array(average).reshape(-1, len(wanted)).T
    return Precision(tuple(thresholds), classes, matrix, stacked)


def _distinct(truth: Segments) -> Segments:
    """Without those that are too short, or as good as the same as another before them."""
    keep: list[int] = []
    for rows in truth.of_videos().values():
        mine: list[int] = []
        for row in rows:
            start, end = truth.segment[row]
            near = np.abs(truth.segment[mine] - truth.segment[row]).max(axis=1, initial=0) <= _SHORT
            same = near & (truth.label[mine] == truth.label[row])
            if end - start >= _SHORT and not same.any():
                mine.append(int(row))
        keep += mine
    return truth.at(sorted(keep))


def _average_precision(truth: Segments, found: Segments, thresholds: np.ndarray) -> np.ndarray:
    """Of one class `[T]`; `found` by descending score.

    A detection takes the truth of its video that it overlaps most of those that are left, if by
    the threshold; else it is false.
    """
    truths = truth.of_videos()
    taken = {name: np.zeros((len(thresholds), len(rows)), bool) for name, rows in truths.items()}
    hits = np.zeros((len(thresholds), len(found.score)))
    for number, (name, segment) in enumerate(zip(found.video, found.segment)):
        if name not in truths:
            continue
        overlap = tiou(segment[None], truth.segment[truths[name]])[0]
        order = np.argsort(-overlap, kind="stable")
        free = (overlap[order] >= thresholds[:, None]) & ~taken[name][:, order]
        hit = free.any(axis=1)
        hits[:, number] = hit
        taken[name][hit, order[free.argmax(axis=1)][hit]] = True
    reached = np.cumsum(hits, axis=1)
    best = reached / np.arange(1, hits.shape[1] + 1)
    best = np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1]
    return (best * hits).sum(axis=1) / len(truth.score)


def _recall(truth: Segments, found: Segments, thresholds: np.ndarray, k: int) -> np.ndarray:
    """The share of truths `[T]` that one of the k * n best detections of their video overlaps."""
    mine, reached = found.of_videos(), np.zeros(len(thresholds))
    for name, rows in truth.of_videos().items():
        best = mine.get(name, np.zeros(0, int))[: k * len(rows)]
        overlap = tiou(truth.segment[rows], found.segment[best]).max(axis=1, initial=0)
        reached += (overlap >= thresholds[:, None]).sum(axis=1)
    return reached / len(truth.score)


# --- Files


def from_results(results: Mapping[str, Iterable[Mapping[str, Any]]]) -> Segments:
    """Segments of `{video: [{"label", "segment", "score"}, ..]}`; truths have no score."""
    return table(
        (video, row["segment"], str(row["label"]), row.get("score", 1.0))
        for video, rows in results.items()
        for row in rows
    )


def _read(path: epath.PathLike, use: Callable[[Any], Any], form: str) -> Any:
    try:
        return use(json.loads(epath.Path(path).read_text()))
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error!r:.99}); it is JSON, {form}") from error


def read_results(path: epath.PathLike) -> Segments:
    """Detections of `{"results": ...}`, see `from_results`; UserError for another file."""
    form = '{"results": {video: [{"label", "segment": [start, end], "score"}, ..]}}'
    return _read(path, lambda found: from_results(found["results"]), form)


def read_probabilities(path: str) -> dict[str, np.ndarray]:
    """Probabilities `[C]` of each video from `{"results": {video: [p, ..]}}`; none of no file.

    The classes are in the order of the annotations' "label_id". UserError for another file.
    """
    form, use = '{"results": {video: [p, ..]}}', lambda found: found["results"].items()
    rows = _read(path, use, form) if path else ()
    return {video: np.ravel(row) for video, row in rows}


def write_results(path: epath.Path, found: Segments) -> None:
    """The inverse of `read_results`, in milliseconds and with 6 digits of the score."""
    results = {
        video: [
            {
                "label": found.label[row],
                "segment": found.segment[row].round(3).tolist(),
                "score": float(f"{found.score[row]:.6g}"),
            }
            for row in rows
        ]
        for video, rows in found.of_videos().items()
    }
    replace_text(path, json.dumps({"results": results}) + "\n")
