"""Which frames a clip takes: integers from the frame count `n`, nothing else.

Each released rule is split into a pure function of its one random draw and a drawing wrapper.
"""

from collections.abc import Callable

import numpy as np


def pretrain_at(offset: int, n: int, num_frames: int, stride: int) -> np.ndarray:
    """Pre-training indices from a given first frame (VideoMAE, 2203.12602; EVEREST, AdaMAE alike).

    Args:
        offset: first frame.
        n: frames in the video.
        num_frames: T, frames in the clip.
        stride: frames between samples.

    Returns:
        int64 `[T]`: `offset, offset + stride, ...`; a short video walks as far as it can and then
        holds the last frame it reached.

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

    Args:
        end: one past the last frame; read only if `n > num_frames * stride`.
        n: frames in the video.
        num_frames: T, frames in the clip.
        stride: nominal frames between samples.

    Returns:
        int64 `[T]`, ascending.

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
    """int64 `[T]`: `start, start + stride, ...`, holding the last frame of a short video."""
    return np.minimum(start + np.arange(num_frames) * stride, n - 1)


def strided_indices(rng: np.random.Generator, n: int, num_frames: int, stride: int) -> np.ndarray:
    """`strided_at` a start drawn from all that fit, the last possible one included."""
    last = max(n - ((num_frames - 1) * stride + 1), 0)
    return strided_at(int(rng.integers(last + 1)), n, num_frames, stride)


def center_indices(n: int, num_frames: int, stride: int) -> np.ndarray:
    """The middle clip with true steps; int64 `[T]`."""
    return strided_at(max(n - ((num_frames - 1) * stride + 1), 0) // 2, n, num_frames, stride)


def view_indices(n: int, num_frames: int, stride: int, num_segments: int) -> np.ndarray:
    """Test-time indices of every segment (VideoMAE, EVEREST): evenly placed, true steps.

    Args:
        n: frames in the video.
        num_frames: T, frames in a clip.
        stride: frames between samples.
        num_segments: S, temporal positions from the first to the last possible one.

    Returns:
        int64 `[S, T]`; a short video holds its last sampled frame.

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


# Rules for training by name: `(rng, n, num_frames, stride) -> int64 [T]`.
SAMPLING: dict[str, Callable[[np.random.Generator, int, int, int], np.ndarray]] = {
    "pretrain": pretrain_indices,
    "finetune": finetune_indices,
    "strided": strided_indices,
    "center": lambda rng, n, num_frames, stride: center_indices(n, num_frames, stride),
}
