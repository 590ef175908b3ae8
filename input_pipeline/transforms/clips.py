"""Which frames a clip takes: integers from the frame count, nothing else.

Everywhere `n` is the frames of the video, `num_frames` = T those of the clip, `stride` the frames
between samples, `num_segments` = S the temporal positions of a test; indices are int64 `[T]` or
`[S, T]`, ascending along T. Rules that have no stride take no notice of it.
"""

from collections.abc import Callable

import numpy as np

_PARTS = 1 << 20  # Of a bin: far more than it has frames, far fewer than would overflow 64 bits.


def pretrain(rng: np.random.Generator, n: int, num_frames: int, stride: int) -> np.ndarray:
    """Pre-training (VideoMAE, 2203.12602; EVEREST, AdaMAE alike): true steps from anywhere.

    A short video walks as far as it can and holds the last frame it reached. As released, a step
    is taken only while the frame after it exists: `n = 5` at stride 2 holds frame 2, not 4.
    """
    choices = n - num_frames * stride + 1
    offset = int(rng.integers(choices)) if choices > 0 else 0
    reach = max((n - 2 - offset) // stride, 0)
    return offset + np.minimum(np.arange(num_frames), reach) * stride


def finetune(rng: np.random.Generator, n: int, num_frames: int, stride: int) -> np.ndarray:
    """Fine-tuning (VideoMAE and EVEREST, dense sampling); a short video is spread and then held.

    As released, T frames are spread over `T * stride`, so steps are uneven (0, 4, 8, 12, 17, ...
    for 16 x 4), and the last start is never drawn; `strided` has true steps.
    """
    span = num_frames * stride
    if n > span:
        end = int(rng.integers(span, n))
        even = np.linspace(end - span, end, num=num_frames)
        return np.clip(even, end - span, end - 1).astype(np.int64)
    even = np.linspace(0, n, num=n // stride)
    held = np.concatenate([even, np.full(num_frames - len(even), n)])
    return np.clip(held, 0, n - 1).astype(np.int64)


def strided(rng: np.random.Generator, n: int, num_frames: int, stride: int) -> np.ndarray:
    """True steps from any start that fits; a short video holds its last frame."""
    last = max(n - ((num_frames - 1) * stride + 1), 0)
    return np.minimum(int(rng.integers(last + 1)) + np.arange(num_frames) * stride, n - 1)


def center(rng: np.random.Generator, n: int, num_frames: int, stride: int) -> np.ndarray:
    """The middle one of `strided`."""
    last = max(n - ((num_frames - 1) * stride + 1), 0)
    return np.minimum(last // 2 + np.arange(num_frames) * stride, n - 1)


def segments(rng: np.random.Generator, n: int, num_frames: int, stride: int) -> np.ndarray:
    """One frame of each of T equal segments (TSN, 1608.00859; VideoMAE and AdaMAE on SSv2).

    As released, a segment has `n // T` whole frames, so that up to `T - 1` at the end are never
    seen, and a video of fewer than T frames is its first frame throughout.
    """
    length = n // num_frames
    return np.arange(num_frames) * length + rng.integers(max(length, 1), size=num_frames)


def segments_v2(rng: np.random.Generator, n: int, num_frames: int, stride: int) -> np.ndarray:
    """`segments` of VideoMAE V2 (2303.16727): a short video holds its first frame, then runs."""
    if n < num_frames:
        return np.maximum(np.arange(n - num_frames, n), 0)
    return segments(rng, n, num_frames, stride)


def segments_center(rng: np.random.Generator, n: int, num_frames: int, stride: int) -> np.ndarray:
    """The middle frame of each segment (validation of VideoMAE V2)."""
    if n < num_frames:
        return np.maximum(np.arange(n - num_frames, n), 0)
    length = n // num_frames
    return np.arange(num_frames) * length + length // 2


def spread_at(part: np.ndarray | int, parts: int, n: int, num_frames: int) -> np.ndarray:
    """T frames spread over the whole video, one of each of T equal bins.

    A bin has `n / T` frames, which need not be whole, and `parts` places; `part`, `[T]` or one for
    all, is one of them, `0 .. parts - 1`. Bins of a video shorter than T share frames.
    """
    # In integers, because a rounded fraction would name the frame before.
    return n * (parts * np.arange(num_frames) + part) // (parts * num_frames)


def spread(rng: np.random.Generator, n: int, num_frames: int, stride: int) -> np.ndarray:
    """`spread_at` an independent random place in each bin."""
    return spread_at(rng.integers(_PARTS, size=num_frames), _PARTS, n, num_frames)


def spread_center(rng: np.random.Generator, n: int, num_frames: int, stride: int) -> np.ndarray:
    """The centre of each bin."""
    return spread_at(1, 2, n, num_frames)


def strided_views(n: int, num_frames: int, stride: int, num_segments: int) -> np.ndarray:
    """Test clips with true steps (VideoMAE, EVEREST), from the first possible to the last.

    A short video holds its last sampled frame. The released code divides by `S - 1`; here one
    segment is the middle one.
    """
    sampled = np.arange(0, n, stride)
    sampled = np.pad(sampled, (0, max(num_frames - len(sampled), 0)), mode="edge")
    slack = len(sampled) - num_frames
    if num_segments == 1:
        starts = [slack // 2]
    else:
        starts = [int(segment * (slack / (num_segments - 1))) for segment in range(num_segments)]
    return np.stack([sampled[start : start + num_frames] for start in starts])


def segment_views(n: int, num_frames: int, stride: int, num_segments: int) -> np.ndarray:
    """Test clips for training by segments (VideoMAE and V2 on SSv2, which agree for S = 2).

    View k has the frames at `n / T * (x + k / S)`, rounded down, for x in `0 .. T - 1`. One view is
    that of validation, `segments_center`.
    """
    if num_segments == 1:
        return segments_center(np.random.default_rng(), n, num_frames, stride)[None]
    return np.stack([spread_at(k, num_segments, n, num_frames) for k in range(num_segments)])


def spread_views(n: int, num_frames: int, stride: int, num_segments: int) -> np.ndarray:
    """Test clips for training by spreads: view k is at `(k + 1/2) / S` of every bin."""
    places = range(1, 2 * num_segments, 2)
    return np.stack([spread_at(k, 2 * num_segments, n, num_frames) for k in places])


# Rules for one clip by name: `(rng, n, num_frames, stride) -> int64 [T]`.
SAMPLING: dict[str, Callable[[np.random.Generator, int, int, int], np.ndarray]] = {
    rule.__name__: rule
    for rule in (
        *(pretrain, finetune, strided, center, segments, segments_v2, segments_center),
        *(spread, spread_center),
    )
}

# The rule for test-time views that goes with each: `(n, num_frames, stride, S) -> int64 [S, T]`.
_VIEWS = {"segments": segment_views, "spread": spread_views}
VIEWS: dict[str, Callable[[int, int, int, int], np.ndarray]] = {
    name: _VIEWS.get(name.partition("_")[0], strided_views) for name in SAMPLING
}
