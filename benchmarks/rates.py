"""How fast batches come, from our pipeline or the released loader, and the CPU time they take."""

import itertools
import math
import os
import pathlib
import resource
import sys
import time
from collections.abc import Generator, Sequence
from typing import Any

import cv2
import numpy as np

from benchmarks import released
from input_pipeline import loader
from input_pipeline.elements import ClipSpec, indices
from input_pipeline.sources.records import Record
from input_pipeline.transforms import clips
from input_pipeline.video import decode

SIDES = ("ours", "ours, float32", "decoding alone", "released")
Numbers = dict[str, float]
Source = Generator[tuple[Any, int], None, None]  # A batch of clips and how many were unreadable.


class _Again(Sequence[Record]):
    """Records without an end, because evaluation stops after the last one."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, index: Any) -> Any:
        return self._records[index % len(self._records)]


def measure(
    records: Sequence[Record],
    spec: ClipSpec,
    *,
    seconds: float,
    threads: int,
    workers: int,
    batch_size: int,
    mode: str = "pretrain",
    side: str = "ours",
) -> Numbers:
    """Reads batches for some seconds, after as many as are made at once.

    Args:
        records: the videos, begun again at their end.
        spec: what becomes of each.
        seconds: how long, at least.
        threads: clips decoded in parallel; worker processes of the released loader.
        workers: processes of ours that decode in place of the threads.
        batch_size: clips of a batch. Our test views come by the video, a quarter as many.
        mode: "pretrain", "finetune" or "views".
        side: one of `SIDES`; with "ours, float32" clips are normalised on the host, as the released
            loader does, and not on the device; "decoding alone" only opens the videos and reads
            their frames, in one thread: what no loader that decodes with FFmpeg can do without.

    Returns:
        "clips" (test views one by one), "seconds", "clips_per_s", "cores" (that this process may
        use, one for each that decodes), "clips_per_s_per_core", "cpu_ms_per_clip" (user and system
        time, other processes included), "skipped" (records that could not be read).
    """
    if side == "released":
        source = _released(records, spec, mode, batch_size, threads)
    elif side == "decoding alone":
        source = _frames(records, spec, mode)
    elif mode == "views":
        source = _views(records, spec, max(batch_size // 4, 1), threads, workers)
    else:
        source = _train(records, spec, batch_size, threads, workers)
    # Of the released loader's, batches are made side by side and end together: only whole groups
    # say how fast. Of ours as many as are begun ahead must be gone before.
    group = {"released": threads, "decoding alone": 1}.get(side, workers or threads)
    count = skipped = 0
    for _ in itertools.islice(source, group if side == "released" else 3):
        pass
    begin_cpu, begin = cpu_seconds(), time.perf_counter()
    while not count or time.perf_counter() - begin < seconds:
        for video, missed in itertools.islice(source, group if side == "released" else 1):
            count += math.prod(video.shape[:-4])
            skipped += missed
            if side == "ours, float32":
                normalised(video)
    wall, cpu = time.perf_counter() - begin, cpu_seconds() - begin_cpu
    source.close()
    cores = min(group, cpus())
    return {
        "clips": count,
        "seconds": round(wall, 3),
        "clips_per_s": round(count / wall, 2),
        "cores": cores,
        "clips_per_s_per_core": round(count / wall / cores, 2),
        "cpu_ms_per_clip": round(1e3 * cpu / count, 2),
        "skipped": skipped,
    }


def normalised(video: np.ndarray) -> np.ndarray:
    """uint8 `[..., T, H, W, 3]` to float32 with the mean and deviation of ImageNet."""
    levels = np.arange(256)[:, None] / 255
    table = ((levels - released.MEAN) / released.STD).astype(np.float32)[None]
    return cv2.LUT(video.reshape(-1, video.shape[-2], 3), table).reshape(video.shape)


def cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def cpu_seconds() -> float:
    """User and system time of this process and all its descendants, living (Linux) or ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(usage.ru_utime + usage.ru_stime for usage in used)
    processes: dict[int, tuple[int, int]] = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue  # It ended meanwhile.
        fields = text.rpartition(")")[2].split()  # A program's name may hold spaces.
        # Own user and system time, then that of the children it has waited for.
        processes[int(stat.parent.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    family = [os.getpid()]
    for member in family:  # Grows on the way.
        children = [pid for pid, (parent, _) in processes.items() if parent == member]
        total += sum(processes[pid][1] for pid in children) / os.sysconf("SC_CLK_TCK")
        family += children
    return total


def _train(
    records: Sequence[Record], spec: ClipSpec, size: int, threads: int, workers: int
) -> Source:
    batches = loader.train_batches(
        records, spec, batch_size=size, seed=0, threads=threads, workers=workers
    )
    try:
        for batch in batches:
            yield batch["video"], int(batch["skipped"].sum())
    finally:
        batches.close()


def _views(
    records: Sequence[Record], spec: ClipSpec, size: int, threads: int, workers: int
) -> Source:
    for batch in loader.eval_batches(
        _Again(records), spec, batch_size=size, threads=threads, workers=workers
    ):
        yield batch["video"], size - int(batch["valid"].sum())


def _frames(records: Sequence[Record], spec: ClipSpec, mode: str) -> Source:
    rng = np.random.default_rng(0)
    for record in itertools.cycle(records):
        stride = record.stride or spec.frame_stride

        def rule(n: int, stride: int = stride) -> np.ndarray:
            if mode == "views":
                return clips.VIEWS[spec.sampling](n, spec.num_frames, stride, spec.num_segments)
            return clips.SAMPLING[spec.sampling](rng, n, spec.num_frames, stride)

        with decode.open_video(record.source, spec.min_frames) as video:
            # A view would keep the whole frame.
            video.read(indices(video, spec.fps, rule).ravel(), lambda f: f[:1, :1].copy())
        count = spec.num_segments * spec.num_crops if mode == "views" else 1
        yield np.empty((count, spec.num_frames, 0, 0, 3), np.uint8), 0


def _released(
    records: Sequence[Record], spec: ClipSpec, mode: str, size: int, threads: int
) -> Source:
    for video in released.batches(records, spec, mode, size, threads):
        yield video, 0
