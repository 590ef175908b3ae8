"""Clips per second of the training input, per core, and its CPU time per clip.

python -m benchmarks.input --list train.csv [--root videos] [--seconds 20] [--threads 2]
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

import av
import numpy as np

from input_pipeline import lists, pipeline
from input_pipeline.records import DataError, Record


def write_videos(folder: pathlib.Path, count: int, num_frames: int = 150) -> list[Record]:
    """Writes `count` moving-noise H.264 files of 320 x 240, for a run without data."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(count):
        path = folder / f"{number}.mp4"
        canvas = rng.integers(0, 256, (60, 80 + num_frames, 3), np.uint8).repeat(4, 0)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            for t in range(num_frames):
                image = canvas[:, t : t + 80].repeat(4, 1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
        records.append(Record(path.name, str(path), number))
    return records


def measure(
    records: list[Record],
    spec: pipeline.ClipSpec,
    *,
    seconds: float,
    threads: int,
    workers: int,
    batch_size: int,
) -> dict[str, float]:
    """Reads batches for some seconds after one warm-up batch.

    Returns:
        "clips", "seconds", "clips_per_s", "cores" (threads that decode, at most the CPUs),
        "clips_per_s_per_core", "cpu_ms_per_clip" (user and system time of this process only;
        -1 with worker processes), "skipped" (records that could not be read).
    """
    batches = pipeline.train_batches(
        records, spec, batch_size=batch_size, seed=0, threads=threads, workers=workers
    )
    next(batches)
    clips = skipped = 0
    begin, begin_cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        batch = next(batches)
        clips += len(batch["index"])
        skipped += int(batch["skipped"].sum())
    wall, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    batches.close()
    cores = min(threads * max(workers, 1), os.cpu_count() or 1)
    return {
        "clips": clips,
        "seconds": round(wall, 3),
        "clips_per_s": round(clips / wall, 2),
        "cores": cores,
        "clips_per_s_per_core": round(clips / wall / cores, 2),
        "cpu_ms_per_clip": -1.0 if workers else round(1e3 * cpu / clips, 2),
        "skipped": skipped,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--list", default="", help="list file or class folders; made if empty")
    parser.add_argument("--root", default="", help="folder that the paths of the list start from")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--num_frames", type=int, default=16)
    parser.add_argument("--frame_stride", type=int, default=4)
    parser.add_argument("--json", default="", help="file to write the numbers to")
    flags = parser.parse_args()
    spec = pipeline.ClipSpec(flags.num_frames, flags.frame_stride, flags.image_size)
    with tempfile.TemporaryDirectory() as folder:
        if flags.list:
            records = lists.load(flags.list, flags.root)
        else:
            records = write_videos(pathlib.Path(folder), 4)
        numbers = measure(
            records,
            spec,
            seconds=flags.seconds,
            threads=flags.threads,
            workers=flags.workers,
            batch_size=flags.batch_size,
        )
    print(
        f"{numbers['clips_per_s']} clips/s, {numbers['clips_per_s_per_core']} per core "
        f"({numbers['cores']:g} used), {numbers['cpu_ms_per_clip']} CPU-ms per clip"
    )
    if flags.json:
        report = {"spec": spec._asdict(), "videos": len(records), **numbers}
        pathlib.Path(flags.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        raise SystemExit(f"error: {error}") from error
