"""Frame AP of AVA (arXiv 1705.08421) as the official evaluator counts it, PASCAL VOC 2010."""

import collections

import numpy as np


def average_precision(
    true_frame: np.ndarray,
    true_box: np.ndarray,
    frame: np.ndarray,
    box: np.ndarray,
    score: np.ndarray,
) -> float | None:
    """Average precision of one action at an overlap of half, a fraction; None without a true box.

    Detections take their turn by score, those of equal score in their order. Each looks only at the
    true box of its frame that it overlaps most, which the first one there has. As in VideoMAE's
    copy, a key frame may have any number of detections; ActivityNet's reads its 50 best.
    A frame is the number of a key frame, `[G]` and `[N]`; a box is x1, y1, x2, y2.
    """
    if not len(true_frame):
        return None
    of_frame = collections.defaultdict(list)
    for row, number in enumerate(true_frame.tolist()):
        of_frame[number].append(row)
    order = np.argsort(-score, kind="stable")
    hit, taken = np.zeros(len(score), bool), set()
    for turn in np.flatnonzero(np.isin(frame[order], true_frame)):
        number, rows = order[turn], of_frame[int(frame[order[turn]])]
        overlap = overlaps(box[number], true_box[rows])
        best = int(overlap.argmax())
        hit[turn] = overlap[best] >= 0.5 and rows[best] not in taken
        taken |= {rows[best]} if hit[turn] else set()
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[hit].sum() / len(true_frame))


def overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box `[4]` with others `[N, 4]`, `[N]`."""
    both = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.prod(np.maximum(both, 0.0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1) + np.prod(box[2:] - box[:2])
    return shared / (areas - shared)
