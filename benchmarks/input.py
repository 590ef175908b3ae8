"""Clips per second and CPU time a clip of the input pipeline, alone or beside another, by turns.

python -m benchmarks.input --videos a.mp4 b.avi --workers 2 --against released

`released` is the loader that VideoMAE and its forks share, re-created. Every measurement is a
process of its own. Clips are for pre-training; without --videos, a made file is read.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import pathlib
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import psutil

from benchmarks import table
from input_pipeline import loader
from input_pipeline.elements import ClipSpec
from input_pipeline.encode import Options, h264
from input_pipeline.sources.records import Record

BATCH = 8
PARALLEL = 2  # Threads, or the released loader's processes, where --workers names none.
COPIES = 8192  # Of a record: a shuffle of a few is slow.


def write_videos(folder: pathlib.Path, count: int, num_frames: int = 150) -> list[Record]:
    """Writes `count` files of moving noise, H.264, 320 x 240 at 25 frames per second."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(count):
        path = folder / f"{number}.mp4"
        canvas = rng.integers(0, 256, (60, 80 + num_frames, 3), np.uint8).repeat(4, 0)
        frames = (canvas[:, t : t + 80].repeat(4, 1) for t in range(num_frames))
        path.write_bytes(h264(frames, 25, Options(gop=250)))
        records.append(Record(path.name, str(path), number))
    return records


def ours(path: str, flags: argparse.Namespace) -> Iterator[Any]:
    """Our batches: uint8, which the device normalises."""
    options = {"threads": PARALLEL, "workers": flags.workers, "batch_size": BATCH, "seed": 0}
    records = [Record(path, path, 0)] * COPIES
    for batch in loader.train_batches(records, ClipSpec(*flags.clip), **options):
        if batch["skipped"].any():
            raise SystemExit(f"error: {int(batch['skipped'].sum())} records cannot be read")
        yield batch["video"]


class Released:
    """Clips as VideoMAE's loader makes them, from its description (arXiv 2203.12602, 2211.10636).

    decord, PIL and normalised float32 `[3, T, H, W]`, over and over. Needs requirements-peers.txt.
    """

    def __init__(self, path: str, num_frames: int, stride: int, size: int):
        self.path, self.num_frames, self.stride, self.size = path, num_frames, stride, size

    def __len__(self) -> int:
        return 1 << 16

    def __getitem__(self, index: int) -> Any:
        import decord
        import torch
        from PIL import Image

        from benchmarks.torch_models import MEAN, STD

        reader = decord.VideoReader(self.path, num_threads=1)
        spare = len(reader) - (self.num_frames - 1) * self.stride - 1
        start = random.randint(0, max(spare, 0))
        numbers = (start + self.stride * np.arange(self.num_frames)).clip(max=len(reader) - 1)
        frames = reader.get_batch(numbers.tolist()).asnumpy()
        # One of four sizes of crop, anywhere, resized frame by frame in PIL.
        short = min(frames.shape[1:3])
        h, w = (int(short * random.choice((1, 0.875, 0.75, 0.66))) for _ in range(2))
        y, x = (random.randint(0, n - m) for n, m in zip(frames.shape[1:3], (h, w)))
        images = [Image.fromarray(frame).crop((x, y, x + w, y + h)) for frame in frames]
        images = [im.resize((self.size, self.size), Image.Resampling.BILINEAR) for im in images]
        clip = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        clip = clip.permute(3, 0, 1, 2).contiguous().float().div(255)  # [3, T, H, W]
        mean, std = (torch.tensor(x).view(3, 1, 1, 1) for x in (MEAN, STD))
        return clip.sub_(mean).div_(std)


def released(path: str, flags: argparse.Namespace) -> Iterator[Any]:
    """The re-created released loader's batches."""
    from torch.utils.data import DataLoader

    samples: Any = Released(path, *flags.clip)
    options = {"num_workers": flags.workers or PARALLEL, "multiprocessing_context": "fork"}
    return iter(DataLoader(samples, BATCH, shuffle=True, **options))


def cpu_seconds() -> float:
    """Processor time of this process and its living descendants."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])  # With what has ended in each.
    return total


def measure(side: str, path: str, flags: argparse.Namespace) -> dict[str, float]:
    """Reads batches, of clips, for some seconds, after the first ones.

    The released loader's are made side by side and end together; whole groups are counted.
    """
    batches, group = ours(path, flags), 1
    if side == "released":
        batches, group = released(path, flags), flags.workers or PARALLEL
    count = 0
    for _ in range(max(3, group)):
        next(batches)
    began_cpu, began = cpu_seconds(), time.perf_counter()
    while not count or time.perf_counter() - began < flags.seconds:
        for _ in range(group):
            count += len(next(batches))
    wall, cpu = time.perf_counter() - began, cpu_seconds() - began_cpu
    return {"clips/s": count / wall, "CPU-ms a clip": 1e3 * cpu / count}


def by_turns(path: pathlib.Path, flags: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A line for each side, one after the other in each round; how many times ours is as good."""
    rounds: dict[str, list[Any]] = {"ours": [], **({flags.against: []} if flags.against else {})}
    for _, side in itertools.product(range(flags.rounds), rounds):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            rounds[side].append(alone.submit(measure, side, str(path), flags).result())
    first: dict[str, float] = {}
    for side, found in rounds.items():
        line: dict[str, Any] = {"input": path.name, "side": side}
        for key, sign in (("clips/s", 1), ("CPU-ms a clip", -1)):
            values = [numbers[key] for numbers in found]
            median = statistics.median(values)
            line[f"{key}: median, least, most"] = [median, min(values), max(values)]
            line[f"ours: times, {key}"] = (first.setdefault(key, median) / median) ** sign
        yield line


def main(argv: Sequence[str] | None = None) -> None:
    parser = table.parser(__doc__)
    parser.add_argument("--videos", nargs="+", type=pathlib.Path, default=[], help="each alone")
    parser.add_argument("--against", default="", choices=["released"])
    parser.add_argument("--seconds", type=float, default=4.0, help="of one round of one side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0, help="decoding processes; 0 = threads")
    flags = parser.parse_args(argv)
    flags.clip = 16, 4, 224  # Frames, one of how many, and pixels of a side.
    if flags.smoke:
        flags.seconds, flags.rounds, flags.clip = 0.1, 1, (4, 4, 32)
    with tempfile.TemporaryDirectory() as folder:
        if not flags.videos:
            flags.videos = [pathlib.Path(write_videos(pathlib.Path(folder), 1)[0].path)]
        rows = [line for path in flags.videos for line in by_turns(path, flags)]
    table.show(rows, {"flags": vars(flags), "measured": rows}, flags.json, "av", "grain")


if __name__ == "__main__":
    main()
