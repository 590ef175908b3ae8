"""Clips per second and CPU time a clip of the input pipeline, alone or beside another, by turns.

python -m benchmarks.input --videos a.mp4 b.avi --workers 2 --against released

--against takes `released`, the loader that VideoMAE and its forks share, re-created, or the folder
of another checkout of this project, whose own `benchmarks.input` is run there. Every measurement
is a process of its own. Clips are for pre-training; without --videos, a made file is read.
"""

import argparse
import itertools
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks import table
from input_pipeline import loader
from input_pipeline.elements import ClipSpec
from input_pipeline.encode import Options, h264
from input_pipeline.sources.records import Record

BATCH = 8
PARALLEL = 2
"""Threads, or the released loader's processes, where --workers names none."""
_COPIES = 8192
"""Records at least: a shuffle of a few is slow."""


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


def sizes(flags: argparse.Namespace) -> tuple[int, int, int]:
    """Frames of a clip, frames between them, pixels of a side."""
    return (4, 4, 32) if flags.smoke else (16, 4, 224)


def ours(path: str, flags: argparse.Namespace) -> Iterator[Any]:
    """Our batches: uint8, which the device normalises."""
    options = {"threads": PARALLEL, "workers": flags.workers, "batch_size": BATCH, "seed": 0}
    records = [Record(path, path, 0)] * _COPIES
    for batch in loader.train_batches(records, ClipSpec(*sizes(flags)), **options):
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
    import decord  # noqa: F401  (before the processes are forked)
    from torch.utils.data import DataLoader

    samples: Any = Released(path, *sizes(flags))
    workers = flags.workers or PARALLEL
    fork = "fork"  # As where the released code runs.
    loader = DataLoader(
        samples, BATCH, shuffle=True, num_workers=workers, multiprocessing_context=fork
    )
    return iter(loader)


def measure(batches: Iterator[Any], seconds: float, group: int) -> dict[str, float]:
    """Reads batches, of clips, for some seconds, after the first ones.

    Batches of a group are made side by side and end together; whole groups are counted.
    """
    count = 0
    for _ in range(max(3, group)):
        next(batches)
    began_cpu, began = cpu_seconds(), time.perf_counter()
    while not count or time.perf_counter() - began < seconds:
        for _ in range(group):
            count += len(next(batches))
    wall, cpu = time.perf_counter() - began, cpu_seconds() - began_cpu
    return {"clips": count, "clips_per_s": count / wall, "cpu_ms_per_clip": 1e3 * cpu / count}


def cpu_seconds() -> float:
    """Processor time of this process and its living descendants (Linux)."""
    used: dict[int, tuple[int, int]] = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # It has ended.
        used[int(stat.parent.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    family = [os.getpid()]
    for member in family:  # Grows on the way.
        family += [pid for pid, (parent, _) in used.items() if parent == member]
    return sum(used[pid][1] for pid in family) / os.sysconf("SC_CLK_TCK")


def here(path: pathlib.Path, flags: argparse.Namespace) -> dict[str, float]:
    """Measures one side and input in this process."""
    make, group = (released, flags.workers or PARALLEL) if flags.side == "released" else (ours, 1)
    return measure(make(str(path), flags), flags.seconds, group)


def elsewhere(
    checkout: pathlib.Path, side: str, path: pathlib.Path, flags: argparse.Namespace
) -> dict[str, float]:
    """One round of a side by the `benchmarks.input` of a checkout, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.input", "--videos", str(path), "--side", side]
    command += [f"--seconds={flags.seconds}", f"--workers={flags.workers}"]
    command += ["--smoke"] * flags.smoke
    with tempfile.TemporaryDirectory() as folder:
        command += ["--json", f"{folder}/numbers"]
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"error: {checkout}: {done.stderr.strip().splitlines()[-1]}")
        report = json.loads(pathlib.Path(folder, "numbers").read_text())["measured"]
    return report[0]["rounds"][side][0]


def by_turns(path: pathlib.Path, flags: argparse.Namespace) -> dict[str, list[Any]]:
    """Measures all sides of an input, one after the other in each round."""
    sides = {"ours": (table.ROOT, "ours")}
    if flags.against == "released":
        sides["released"] = (table.ROOT, "released")
    elif flags.against:
        sides[flags.against] = (pathlib.Path(flags.against), "ours")
    rounds: dict[str, list[Any]] = {name: [] for name in sides}
    for _, (name, where) in itertools.product(range(flags.rounds), sides.items()):
        rounds[name].append(elsewhere(*where, path, flags))
    return rounds


def rows(case: dict[str, Any]) -> list[dict[str, str]]:
    """A line for each side: medians, from the least to the most of all rounds, and ours over it."""
    lines: list[dict[str, str]] = []
    first: dict[str, float] = {}
    for side, rounds in case["rounds"].items():
        line = {"input": case["input"], "side": side}
        for key, head, sign in (
            ("clips_per_s", "clips/s", 1),
            ("cpu_ms_per_clip", "CPU-ms a clip", -1),
        ):
            found = sorted(numbers[key] for numbers in rounds)
            median = statistics.median(found)
            line[head] = f"{median:.1f} ({found[0]:.1f} - {found[-1]:.1f})"
            line[f"ours: times, {head}"] = f"{(first.setdefault(key, median) / median) ** sign:.2f}"
        lines.append(line)
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = table.parser(__doc__)
    parser.add_argument("--videos", nargs="+", type=pathlib.Path, default=[], help="each alone")
    parser.add_argument("--against", default="", help="`released` or another checkout's folder")
    parser.add_argument("--side", default="", help="measure `ours` or `released` in this process")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one round of one side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0, help="decoding processes; 0 = threads")
    flags = parser.parse_args(argv)
    if flags.smoke:
        flags.seconds, flags.rounds = 0.1, 1
    report = []
    with tempfile.TemporaryDirectory() as folder:
        if not flags.videos:
            flags.videos = [pathlib.Path(write_videos(pathlib.Path(folder), 1)[0].path)]
        for path in map(pathlib.Path.absolute, flags.videos):
            rounds = {flags.side: [here(path, flags)]} if flags.side else by_turns(path, flags)
            report.append({"input": path.name, "rounds": rounds})
    numbers = {"flags": vars(flags), "measured": report}
    table.show([line for case in report for line in rows(case)], numbers, flags.json, "av", "grain")


if __name__ == "__main__":
    main()
