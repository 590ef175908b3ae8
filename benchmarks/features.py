"""Memory and windows per second of `configs/features.py`, for a video of 2 and one of 20 minutes.

python -m benchmarks.features RUN --out features_memory.png

RUN is what `init_from` takes. The rate is that of `model.features`, beside a loop over `embed` on
frames decoded and resized already, by turns; memory is that of the command, a process of its own.
"""

import contextlib
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import psutil
from matplotlib.figure import Figure

import mvm
from benchmarks import table
from benchmarks.input import write_videos
from input_pipeline.video import decode


def memory(command: Sequence[str]) -> list[tuple[float, float]]:
    """Seconds since the start and MB in memory of a command."""
    began, found = time.monotonic(), []
    with psutil.Popen(command, cwd=table.ROOT, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):  # It may have just ended.
                found.append((time.monotonic() - began, process.memory_info().rss / 1e6))
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"error: {' '.join(command)} ended with {process.returncode}")
    return found


def rates(weights: str, path: str) -> tuple[float, float]:
    """Windows per second of `features` and of `embed`, medians."""
    model = mvm.load(weights)
    clip = model.config.data
    with decode.open_video(path) as video:
        shrunk = partial(cv2.resize, dsize=(clip.image_size, clip.image_size))
        frames = np.stack(video.read(range(video.header.num_frames), shrunk))
    starts = range(0, len(frames) - (clip.num_frames - 1) * clip.frame_stride, 4)[:200]

    def embed() -> list[np.ndarray]:
        clips = (frames[start :: clip.frame_stride][: clip.num_frames] for start in starts)
        return [model.embed(one) for one in clips]

    def rate(call: Callable[..., Any]) -> float:
        windows, took = table.timed(call)
        return len(windows) / took["s"]

    turns = [(rate(partial(model.features, path, stride=4)), rate(embed)) for _ in range(4)]
    whole, alone = np.median(turns[1:], axis=0)  # The first one compiles.
    return float(whole), float(alone)


def main(argv: Sequence[str] | None = None) -> None:
    parser = table.parser(__doc__)
    parser.add_argument("weights", metavar="RUN", help="as init_from")
    parser.add_argument("--out", default="features_memory.png", help="picture to write")
    flags = parser.parse_args(argv)
    figure = Figure((6, 3), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="seconds", ylabel="MB in memory")
    rows: list[dict[str, Any]] = []
    for minutes in (0.1,) if flags.smoke else (2, 20):
        with tempfile.TemporaryDirectory() as folder:
            record = write_videos(pathlib.Path(folder), 1, round(minutes * 60 * 25))[0]
            listed = pathlib.Path(folder, "videos.txt")
            listed.write_text(f"{record.path}\n")
            command = [sys.executable, "main.py", "--config=configs/features.py"]
            command += [f"--config.init_from={flags.weights}", f"--config.data.test={listed}"]
            seconds, megabytes = zip(*memory([*command, f"--workdir={folder}/rows"]))
            axes.plot(seconds, megabytes, label=f"{minutes} minutes")
            row = {"minutes": minutes, "most MB": max(megabytes)}
            if not rows:
                whole, alone = rates(flags.weights, str(record.path))
                row |= {"windows/s": whole, "by embed": alone, "times": whole / alone}
            rows.append(row)
    axes.set_ylim(0)
    axes.legend()
    figure.savefig(flags.out)
    table.show(rows, rows, flags.json, "jax", "av")


if __name__ == "__main__":
    main()
