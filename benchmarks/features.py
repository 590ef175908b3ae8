"""Memory and windows per second of `configs/features.py`, for videos of some lengths.

python -m benchmarks.features RUN --minutes 2 20 --out features_memory.png

RUN is what `init_from` takes. The rate is that of `model.features`, beside a loop over `embed` on
frames decoded and resized already, by turns; memory is that of the command, a process of its own.
"""

import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial

import cv2
import numpy as np
from matplotlib.figure import Figure

import mvm
from benchmarks import input as made
from benchmarks import table
from input_pipeline.video import decode


def memory(command: Sequence[str]) -> tuple[list[float], list[float]]:
    """Seconds since the start and MB in memory of a command (Linux)."""
    began, seconds, megabytes = time.monotonic(), [], []
    with subprocess.Popen(command, cwd=table.ROOT, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            if "VmRSS:" in status:
                seconds.append(time.monotonic() - began)
                megabytes.append(int(status.partition("VmRSS:")[2].split()[0]) / 1e3)
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"error: {' '.join(command)} ended with {process.returncode}")
    return seconds, megabytes


def rates(weights: str, path: str, stride: int, rounds: int, most: int) -> tuple[float, float]:
    """Windows per second: medians of `features` and of `embed`, the latter of `most` windows."""
    model = mvm.load(weights)
    clip = model.config.data
    with decode.open_video(path) as video:
        shrunk = partial(cv2.resize, dsize=(clip.image_size, clip.image_size))
        frames = np.stack(video.read(range(video.header.num_frames), shrunk))
    starts = range(0, len(frames) - (clip.num_frames - 1) * clip.frame_stride, stride)
    both: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        began = time.perf_counter()
        count = len(model.features(path, stride=stride))
        between = time.perf_counter()
        for start in starts[:most]:
            model.embed(frames[start:][:: clip.frame_stride][: clip.num_frames])
        ended = time.perf_counter()
        if turn:  # The first one compiles.
            both[0].append(count / (between - began))
            both[1].append(len(starts[:most]) / (ended - between))
    return statistics.median(both[0]), statistics.median(both[1])


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = table.parser(__doc__)
    parser.add_argument("weights", metavar="RUN", help="as init_from")
    parser.add_argument("--minutes", nargs="+", type=float, default=[2.0, 20.0])
    parser.add_argument("--stride", type=int, default=4, help="frames between windows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default="features_memory.png", help="picture to write")
    flags = parser.parse_args(argv)
    if flags.smoke:
        flags.minutes, flags.rounds = [0.1], 1
    figure = Figure((6, 3), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="seconds", ylabel="MB in memory")
    rows: list[dict[str, str]] = []
    command = [sys.executable, "main.py", "--config", "configs/features.py"]
    for minutes in flags.minutes:
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            record = made.write_videos(folder, 1, round(minutes * 60 * 25))[0]
            (folder / "videos.txt").write_text(f"{record.path}\n")
            values = {"init_from": flags.weights, "data.test": folder / "videos.txt"}
            given = [f"--config.{key}={value}" for key, value in values.items()]
            given += [f"--config.options.stride={flags.stride}", f"--workdir={folder / 'rows'}"]
            seconds, megabytes = memory([*command, *given])
            axes.plot(seconds, megabytes, label=f"{minutes:g} minutes")
            row = {"minutes": f"{minutes:g}", "most MB": f"{max(megabytes):.0f}"}
            if minutes == flags.minutes[0]:
                fast, slow = rates(flags.weights, str(record.path), flags.stride, flags.rounds, 200)
                row |= {"windows/s": f"{fast:.1f}", "by embed": f"{slow:.1f}"}
                row["times"] = f"{fast / slow:.2f}"
            rows.append(dict.fromkeys(rows[0], "") | row if rows else row)
    axes.set_ylim(0)
    axes.legend()
    figure.savefig(flags.out)
    table.show(rows, rows, flags.json, "jax", "av")


if __name__ == "__main__":
    main()
