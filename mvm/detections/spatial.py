"""Frame mAP of AVA (arXiv 1705.08421) as the official evaluator counts it, PASCAL VOC 2010."""

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import numpy as np


class Boxes(NamedTuple):
    """Boxes on key frames, true or detected; N rows in the order of their file."""

    frames: list[str]
    """Names of the key frames; `frame` int `[N]` are positions among them."""
    frame: np.ndarray
    box: np.ndarray
    """x1, y1, x2, y2 in any unit, float64 `[N, 4]`."""
    action: np.ndarray
    score: np.ndarray


def overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes `[N, 4]` and `[M, 4]`, `[N, M]`."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    both = np.prod(np.maximum(high - low, 0.0), axis=-1)
    area = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1) for boxes in (one, other)]
    return both / (area[0][:, None] + area[1][None] - both)


def ordered(box: np.ndarray) -> np.ndarray:
    """Which boxes `[N, 4]` have x1 < x2 and y1 < y2, bool `[N]`."""
    return np.all(box[:, :2] < box[:, 2:], axis=1)


def _hits(truth: Boxes, found: Boxes, threshold: float) -> np.ndarray:
    """Which detections of one class are true, by descending score (ties: first in the file).

    Each looks only at the true box of its frame that it overlaps most; the first one there has it.
    Both are sorted by frame; `found` by score within it.
    """
    hit = np.zeros(len(found.frame), bool)
    known, begins = np.unique(truth.frame, return_index=True)
    ends = np.append(begins[1:], len(truth.frame))
    first, last = (np.searchsorted(found.frame, known, side) for side in ("left", "right"))
    for i in np.flatnonzero(first < last):
        iou = overlaps(found.box[first[i] : last[i]], truth.box[begins[i] : ends[i]])
        best = iou.argmax(axis=1)
        good = np.flatnonzero(iou[np.arange(len(best)), best] >= threshold)
        hit[first[i] + good[np.unique(best[good], return_index=True)[1]]] = True
    return hit[np.argsort(-found.score, kind="stable")]


def _precision(hit: np.ndarray, positives: int) -> float:
    """Area under the precision envelope of detections by descending score, over all recalls."""
    true = np.cumsum(hit)
    envelope = np.maximum.accumulate((true / np.arange(1, len(hit) + 1))[::-1])[::-1]
    return float(np.sum(envelope[hit]) / positives)


def average_precision(
    truth: Boxes,
    found: Boxes,
    actions: Iterable[int],
    excluded: Collection[str] = (),
    threshold: float = 0.5,
) -> dict[int, float]:
    """Average precision of each action, a fraction; NaN for one without a true box.

    Left out are key frames that are excluded and detections whose corners are out of order. One on
    a key frame without true boxes is false. As in VideoMAE's copy, a key frame may have any number
    of detections; ActivityNet's reads its 50 best.
    """
    numbers = {name: i for i, name in enumerate(dict.fromkeys([*truth.frames, *found.frames]))}
    parts: list[Any] = []
    for boxes in (truth, found):
        frame = np.array([numbers[name] for name in boxes.frames], int)[boxes.frame]
        out = np.isin(frame, [numbers[name] for name in excluded if name in numbers])
        kept = np.flatnonzero(~out & ordered(boxes.box))
        parts.append((frame[kept], boxes.box[kept], boxes.action[kept], boxes.score[kept]))

    def of(action: int, part: tuple[np.ndarray, ...], by_score: bool) -> Boxes:
        mine = np.flatnonzero(part[2] == action)
        if by_score:
            mine = mine[np.argsort(-part[3][mine], kind="stable")]
        mine = mine[np.argsort(part[0][mine], kind="stable")]
        return Boxes([], *(column[mine] for column in part))

    values: dict[int, float] = {}
    for action in actions:
        true = of(action, parts[0], by_score=False)
        hit = _hits(true, of(action, parts[1], by_score=True), threshold)
        count = len(true.frame)
        values[action] = _precision(hit, count) if count else float("nan")
    return values


def mean(values: dict[int, float]) -> float:
    """mAP over the classes with true boxes; NaN if there are none."""
    found = [value for value in values.values() if not np.isnan(value)]
    return float(np.mean(found)) if found else float("nan")
