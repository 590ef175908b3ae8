"""Segments of videos: soft non-maximum suppression, and the mean average precision of ActivityNet.

Suppression works on rows (start, end, score, class), evaluation on what the files hold:
`{video: [{"label", "segment": (start, end), "score"}, ..]}`, where a truth needs no score. Equal
scores keep their order everywhere.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mvm.types import UserError

Rows = Mapping[str, Sequence[Mapping[str, Any]]]

LEAST = 1e-3  # Score of a detection, before suppression and after.
_SHORT = 1e-3  # Seconds: what is shorter is no truth, nor what is as near to one of its class.


def tiou(a: np.ndarray, b: np.ndarray, more: float = 0.0) -> np.ndarray:
    """Temporal intersection over union `[n, m]` of rows `[n, 2+]` and `[m, 2+]`.

    `more` is added to every length.
    """
    a = a[:, None]
    both = np.minimum(a[..., 1], b[:, 1]) - np.maximum(a[..., 0], b[:, 0])
    both = np.maximum(both, 0)
    union = (a[..., 1] - a[..., 0] + more) + (b[:, 1] - b[:, 0] + more) - both
    return both / np.where(union > 0, union, 1)


# --- Suppression


def suppress(
    rows: np.ndarray,
    *,
    sigma: float,
    most: int,
    by_class: bool,
    voting: float = 0.0,
    least: float = LEAST,
) -> np.ndarray:
    """Gaussian soft suppression (arXiv 1704.04503): each choice decays what overlaps it.

    Args:
        rows: of a video, float32 `[n, 4]`; at most `most` are returned, their new scores descend.
        by_class: whether segments of other classes are left alone.
        voting: for all classes as one: each segment becomes the mean of the segments before
            suppression that it overlaps by at least this, weighted by score and overlap; 0 = off.
        least: score below which a row that decays is left out.
    """
    group, chosen = rows[:, 3] * by_class, rows[:0]
    for one in np.unique(group):
        mine = rows[group == one]
        left = mine[:, 2].copy()
        for _ in range(min(most, len(mine))):
            best = left.argmax()
            if left[best] < 0:
                break
            chosen = np.vstack([chosen, [*mine[best, :2], left[best], mine[best, 3]]])
            left *= np.exp(-(tiou(mine[[best]], mine, 1e-6)[0] ** 2) / np.float32(sigma))
            left[left < least] = -1
            left[best] = -1
    chosen = chosen[np.argsort(-chosen[:, 2], kind="stable")[:most]]
    if voting and not by_class:
        weight = tiou(chosen, rows)
        weight = np.where(weight >= voting, weight, 0) * rows[:, 2]
        chosen[:, :2] = weight @ rows[:, :2] / weight.sum(axis=1, keepdims=True)
    return chosen


def with_classes(rows: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Each of `[n, 4]` once for the video's two best classes, score sqrt(class * segment)."""
    best = np.argsort(-probability, kind="stable")[:2]
    rows, label = np.tile(rows, (len(best), 1)), np.repeat(best, len(rows))
    joint = np.sqrt(probability[label] * rows[:, 2])
    return np.column_stack([rows[:, :2], joint, label])


# --- Evaluation


def thresholds(text: str) -> list[float]:
    """Numbers of a list such as "0.5,0.75"; UserError for another."""
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise UserError(f"thresholds={text}; give numbers such as 0.5,0.75") from error


def precision(truth: Rows, found: Rows, thresholds: Sequence[float]) -> dict[str, Any]:
    """The detection scores of ActivityNet as JSON, fractions, by threshold of the overlap.

    Average precision is the area under the best precision at a recall or a higher one; recall is of
    the k * n best in a video with n truths, k = 1 and 5. All are means over the classes of the
    truth; detections of others are left out (the released evaluators count them for another class,
    or for one more).
    """
    truths, said = _distinct(truth), defaultdict(list)
    for video, rows in found.items():
        for row in rows:
            said[row["label"]].append((row["score"], video, row["segment"]))
    every = {label: _of_class(truths[label], said[label], thresholds) for label in sorted(truths)}
    mean = np.mean([*every.values()] or np.full((1, 3, len(thresholds)), np.nan), axis=0)
    return {
        "average_mAP": float(mean[0].mean()),
        "mAP": mean[0].tolist(),
        "thresholds": list(thresholds),
        "per_class_AP": {label: scores[0].tolist() for label, scores in every.items()},
        "recall_at_1x": mean[1].tolist(),
        "recall_at_5x": mean[2].tolist(),
    }


def _distinct(truth: Rows) -> dict[str, dict[str, np.ndarray]]:
    """Segments `[n, 2]` of each video of each class, without those that are too short or there."""
    kept: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for video, rows in truth.items():
        for row in rows:
            (start, end), others = row["segment"], kept.get(row["label"], {}).get(video, ())
            same = any(max(abs(start - a), abs(end - b)) <= _SHORT for a, b in others)
            if end - start >= _SHORT and not same:
                kept[row["label"]][video].append((start, end))
    return {n: {v: np.array(rows) for v, rows in videos.items()} for n, videos in kept.items()}


def _of_class(
    truth: Mapping[str, np.ndarray], found: Sequence[Any], thresholds: Sequence[float]
) -> np.ndarray:
    """Average precision and both recalls `[3, T]`; `found` are (score, video, segment).

    A detection takes the truth of its video that it overlaps most of those that are left, if by
    the threshold; else it is false.
    """
    wanted, rank = np.array(thresholds), Counter[str]()
    free = {video: np.ones((len(rows), len(wanted)), bool) for video, rows in truth.items()}
    reached = {video: np.zeros((2, len(rows), 1)) for video, rows in truth.items()}
    hits = np.zeros((len(found), len(wanted)), bool)
    for hit, (_, video, segment) in zip(hits, sorted(found, key=lambda row: -row[0])):
        if video not in truth:
            continue
        overlap = tiou(truth[video], np.array([segment]))
        within = rank[video] < np.array([1, 5]) * len(overlap)
        rank[video] += 1
        reached[video] = np.maximum(reached[video], overlap * within[:, None, None])
        order = np.argsort(-overlap[:, 0], kind="stable")
        able = free[video][order] & (overlap[order] >= wanted)
        hit[:] = able.any(axis=0)
        free[video][order[able.argmax(axis=0)][hit], hit.nonzero()] = False
    total = sum(map(len, truth.values()))
    recall = sum((best >= wanted).sum(axis=1) for best in reached.values()) / total
    envelope = np.cumsum(hits, axis=0) / np.arange(1, len(hits) + 1)[:, None]
    envelope = np.maximum.accumulate(envelope[::-1])[::-1]
    return np.stack([(envelope * hits).sum(axis=0) / total, *recall])
