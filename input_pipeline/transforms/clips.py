"""Which frames a clip takes: integers from the frame count, nothing else.

Each released rule is split into a pure function of its one random draw and a drawing wrapper.
Everywhere `n` is the frames of the video, `num_frames` = T those of the clip, `stride` the frames
between samples, `num_segments` = S the temporal positions of a test; indices are int64 `[T]` or
`[S, T]`, ascending along T.
"""

from collections.abc import Callable

import numpy as np

_PARTS = 1 << 20  # Of a bin: far more than it has frames, far fewer than would overflow 64 bits.


def pretrain_at(offset: int, n: int, num_frames: int, stride: int) -> np.ndarray:
    """Pre-training indices from a given first frame (VideoMAE, 2203.12602; EVEREST, AdaMAE alike).

    `offset, offset + stride, ...`; a short video walks as far as it can and then holds the last
    frame it reached.

    Note:
        As released, a step is taken only while the frame after it exists, so `n = 16` at stride 2
        holds frame 14, and `n = 5` holds frame 2 although frame 4 exists.
    """
    steps = np.arange(num_frames)
    reach = max((n - 2 - offset) // stride, 0)
    return offset + np.minimum(steps, reach) * stride


def pretrain_indices(rng: np.random.Generator, n: int, num_frames: int, stride: int) -> np.ndarray:
    """`pretrain_at` a uniformly drawn offset, or at 0 if the video is shorter than `T * stride`."""
    choices = n - num_frames * stride + 1
    return pretrain_at(int(rng.integers(choices)) if choices > 0 else 0, n, num_frames, stride)


def finetune_at(end: int, n: int, num_frames: int, stride: int) -> np.ndarray:
    """Fine-tuning indices that end before frame `end` (VideoMAE and EVEREST, dense sampling).

    A video of at most `num_frames * stride` frames has no `end`: it is spread and then held.

    Note:
        As released, T frames are spread over `T * stride`, so steps are uneven and a little longer
        than `stride` (0, 4, 8, 12, 17, ... for 16 x 4); `strided_indices` has true steps.
    """
    span = num_frames * stride
    if n > span:
        return np.clip(np.linspace(end - span, end, num=num_frames), end - span, end - 1).astype(
            np.int64
        )
    spread = np.linspace(0, n, num=n // stride)
    held = np.concatenate([spread, np.full(num_frames - len(spread), n)])
    return np.clip(held, 0, n - 1).astype(np.int64)


def finetune_indices(rng: np.random.Generator, n: int, num_frames: int, stride: int) -> np.ndarray:
    """`finetune_at` an end drawn from `T * stride .. n - 1`; the last start is never drawn."""
    span = num_frames * stride
    return finetune_at(int(rng.integers(span, n)) if n > span else n, n, num_frames, stride)


def strided_at(start: int, n: int, num_frames: int, stride: int) -> np.ndarray:
    """`start, start + stride, ...`, holding the last frame of a short video."""
    return np.minimum(start + np.arange(num_frames) * stride, n - 1)


def strided_indices(rng: np.random.Generator, n: int, num_frames: int, stride: int) -> np.ndarray:
    """`strided_at` a start drawn from all that fit, the last possible one included."""
    last = max(n - ((num_frames - 1) * stride + 1), 0)
    return strided_at(int(rng.integers(last + 1)), n, num_frames, stride)


def center_indices(n: int, num_frames: int, stride: int) -> np.ndarray:
    """The middle clip with true steps."""
    return strided_at(max(n - ((num_frames - 1) * stride + 1), 0) // 2, n, num_frames, stride)


def view_indices(n: int, num_frames: int, stride: int, num_segments: int) -> np.ndarray:
    """Test-time indices of every segment (VideoMAE, EVEREST): evenly placed, true steps.

    From the first to the last possible position; a short video holds its last sampled frame.

    Note:
        The released code divides by `S - 1`; here one segment is the middle one.
    """
    sampled = np.arange(0, n, stride)
    held = np.full(max(num_frames - len(sampled), 0), sampled[-1])
    sampled = np.concatenate([sampled, held])
    slack = len(sampled) - num_frames
    if num_segments == 1:
        starts = [slack // 2]
    else:
        starts = [int(segment * (slack / (num_segments - 1))) for segment in range(num_segments)]
    return np.stack([sampled[start : start + num_frames] for start in starts])


def segments_at(offsets: np.ndarray | int, n: int, num_frames: int) -> np.ndarray:
    """One frame of each of T equal segments (TSN, 1608.00859; VideoMAE and AdaMAE on SSv2).

    `offsets` are frames inside each segment, `0 .. n // T - 1`; `[T]` or one for all.

    Note:
        As released, a segment has `n // T` whole frames, so that up to `T - 1` frames at the end
        are never seen, and a video of fewer than T frames is its first frame T times.
    """
    if n < num_frames:
        return np.zeros(num_frames, np.int64)
    return np.arange(num_frames) * (n // num_frames) + offsets


def segments_v2_at(offsets: np.ndarray | int, n: int, num_frames: int) -> np.ndarray:
    """`segments_at` of VideoMAE V2 (2303.16727): a short video holds its first frame, then runs."""
    if n < num_frames:
        return np.maximum(np.arange(n - num_frames, n), 0)
    return segments_at(offsets, n, num_frames)


def segment_offsets(rng: np.random.Generator, n: int, num_frames: int) -> np.ndarray:
    """Draws the `offsets` of `segments_at`; zeros if the video is shorter than T."""
    return rng.integers(max(n // num_frames, 1), size=num_frames)


def segments_center_indices(n: int, num_frames: int) -> np.ndarray:
    """The middle frame of each segment (validation of VideoMAE V2)."""
    return segments_v2_at(n // num_frames // 2, n, num_frames)


def spread_at(part: np.ndarray | int, parts: int, n: int, num_frames: int) -> np.ndarray:
    """T frames spread over the whole video, one of each of T equal bins.

    A bin has `n / T` frames, which need not be whole, and `parts` places; `part`, `[T]` or one for
    all, is one of them, `0 .. parts - 1`. Bins of a video shorter than T share frames.
    """
    # In integers, because a rounded fraction would name the frame before.
    return n * (parts * np.arange(num_frames) + part) // (parts * num_frames)


def spread_indices(rng: np.random.Generator, n: int, num_frames: int) -> np.ndarray:
    """`spread_at` an independent random place in each bin."""
    return spread_at(rng.integers(_PARTS, size=num_frames), _PARTS, n, num_frames)


def segment_views(n: int, num_frames: int, num_segments: int) -> np.ndarray:
    """Test-time indices for training by segments (VideoMAE and V2 on SSv2).

    View k has the frames at `n / T * (x + k / S)`, rounded down, for x in `0 .. T - 1`.

    Note:
        For S = 2, which all released recipes use, VideoMAE and V2 agree: starts and middles of the
        segments. For another S this is V2's rule; VideoMAE has two views only. One view is that of
        validation, `segments_center_indices` (V2: the starts).
    """
    if num_segments == 1:
        return segments_center_indices(n, num_frames)[None]
    return np.stack([spread_at(k, num_segments, n, num_frames) for k in range(num_segments)])


def spread_views(n: int, num_frames: int, num_segments: int) -> np.ndarray:
    """Test-time indices for training by spreads: S shifted ones, evenly placed.

    View k is at `(k + 1/2) / S` of every bin, so that one view is the centres of the bins.
    """
    places = range(1, 2 * num_segments, 2)
    return np.stack([spread_at(k, 2 * num_segments, n, num_frames) for k in places])


# Rules for one clip by name: `(rng, n, num_frames, stride) -> int64 [T]`.
SAMPLING: dict[str, Callable[[np.random.Generator, int, int, int], np.ndarray]] = {
    "pretrain": pretrain_indices,
    "finetune": finetune_indices,
    "strided": strided_indices,
    "center": lambda rng, n, t, stride: center_indices(n, t, stride),
    "segments": lambda rng, n, t, stride: segments_at(segment_offsets(rng, n, t), n, t),
    "segments_v2": lambda rng, n, t, stride: segments_v2_at(segment_offsets(rng, n, t), n, t),
    "segments_center": lambda rng, n, t, stride: segments_center_indices(n, t),
    "spread": lambda rng, n, t, stride: spread_indices(rng, n, t),
    "spread_center": lambda rng, n, t, stride: spread_at(1, 2, n, t),
}

# The rule for test-time views that goes with each: `(n, num_frames, stride, S) -> int64 [S, T]`.
VIEWS: dict[str, Callable[[int, int, int, int], np.ndarray]] = {
    **dict.fromkeys(SAMPLING, view_indices),
    **dict.fromkeys(
        ("segments", "segments_v2", "segments_center"),
        lambda n, t, stride, s: segment_views(n, t, s),
    ),
    **dict.fromkeys(("spread", "spread_center"), lambda n, t, stride, s: spread_views(n, t, s)),
}
