"""The input pipeline's clips per second and CPU time per clip, beside the released loader's.

python -m benchmarks.input --list train.csv --against released
python -m benchmarks.input --videos a.mp4 folder --mode all --reencode --against released

Without --list and --videos: the usual four files, if --clips has them, else made ones. Rates are
those of the whole machine; rounds of the sides alternate, and each side has its own process.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import pathlib
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

from benchmarks import ceiling, rates, released
from benchmarks.cases import Case, one_file, reencoded, usual_cases, write_videos
from benchmarks.rates import Numbers, measure
from input_pipeline.elements import ClipSpec
from input_pipeline.sources import load as sources
from input_pipeline.sources.records import DataError
from input_pipeline.video.base import VideoError
from mvm.runtime import memory

TARGET = 500  # clips/s that the last column is for: about what eight accelerators take
MODES: dict[str, dict[str, Any]] = {
    "pretrain": {},
    "finetune": {
        "sampling": "finetune",
        "crop": "random_resized",
        "flip": True,
        "rand_augment": "rand-m7-n4-mstd0.5-inc1",
        "erasing": 0.25,
    },
    "views": {"sampling": "finetune", "num_segments": 5, "num_crops": 3},
}
_SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v")


class Job(NamedTuple):
    """What is measured: a key of `MODES`, what is read, and what becomes of it."""

    mode: str
    case: Case
    spec: ClipSpec


def find_cases(flags: argparse.Namespace, folder: pathlib.Path) -> list[Case]:
    """What the command line asks for; made files go to `folder`.

    Raises:
        DataError: no such file, or a folder without videos.
    """
    if flags.list:
        records = sources.load(flags.list, flags.root)
        return [Case(pathlib.Path(flags.list).name, records, flags.frame_stride)]
    cases = []
    for given in map(pathlib.Path, flags.videos):
        inside = sorted(p for p in given.rglob("*") if p.suffix.lower() in _SUFFIXES)
        if not inside and not given.is_file():
            raise DataError(f"--videos {given}: neither a file nor a folder with {_SUFFIXES}")
        cases += [one_file(path, stride=flags.frame_stride) for path in inside or [given]]
    if cases:
        return cases
    if flags.clips:
        return usual_cases(pathlib.Path(flags.clips), folder)
    return [Case("made", write_videos(folder, 4), flags.frame_stride)]


def row(case: str, mode: str, side: str, rounds: Sequence[Numbers]) -> str:
    """One line of the table: medians, and from the least to the most of all rounds."""
    speed = sorted(numbers["clips_per_s"] for numbers in rounds)
    cpu = sorted(numbers["cpu_ms_per_clip"] for numbers in rounds)
    per_core = statistics.median(numbers["clips_per_s_per_core"] for numbers in rounds)
    cells = [
        *(mode, case, side),
        f"{statistics.median(speed):.1f} ({speed[0]:.1f} - {speed[-1]:.1f})",
        f"{per_core:.1f}",
        f"{statistics.median(cpu):.2f} ({cpu[0]:.2f} - {cpu[-1]:.2f})",
        f"{TARGET * statistics.median(cpu) / 1e3:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def ratio(
    case: str, mode: str, side: str, ours: Sequence[Numbers], theirs: Sequence[Numbers]
) -> str:
    """The line that compares two sides by the medians of their rounds."""
    median = {
        (key, side): statistics.median(numbers[key] for numbers in rounds)
        for key in ("clips_per_s_per_core", "cpu_ms_per_clip")
        for side, rounds in (("ours", ours), ("theirs", theirs))
    }
    each = "clips_per_s_per_core"
    speed = median[each, "ours"] / median[each, "theirs"]
    cpu = median["cpu_ms_per_clip", "theirs"] / median["cpu_ms_per_clip", "ours"]
    return f"| {mode} | {case} | **{side}: times** | **{speed:.2f}** | | **{cpu:.2f}** | |"


HEAD = (
    f"| mode | input | side | clips/s | per core | CPU-ms a clip | cores for {TARGET} clips/s |\n"
    "|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", default="", help="any source that data.train takes")
    parser.add_argument("--root", default="", help="folder that the paths of the list start from")
    parser.add_argument("--videos", nargs="+", default=[], help="files or folders; each file alone")
    parser.add_argument("--clips", default=_clips(), help="folder of the usual files' real ones")
    parser.add_argument("--mode", choices=[*MODES, "all"], default="pretrain")
    parser.add_argument("--against", choices=["released"], help="measure this loader beside ours")
    parser.add_argument("--float32", action="store_true", help="ours also normalised on the host")
    parser.add_argument("--decoding", action="store_true", help="also decoding alone: the bound")
    parser.add_argument("--reencode", action="store_true", help="also files quick to decode")
    parser.add_argument("--ceiling", action="store_true", help="ours alone with 1, 2, 4 .. threads")
    parser.add_argument("--seconds", type=float, default=8.0, help="of one round of one side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="also processes of the other loader")
    parser.add_argument("--workers", type=int, default=0, help="processes of ours, 0 for threads")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--num_frames", type=int, default=16)
    parser.add_argument("--frame_stride", type=int, default=4, help="but of --clips: 4 and 2")
    parser.add_argument("--json", default="", help="file to write all numbers to")
    flags = parser.parse_args()
    sides = ["ours", *(["ours, float32"] if flags.float32 else [])]
    sides += ["decoding alone"] if flags.decoding else []
    if flags.against:
        absent = released.missing()
        if absent:
            print(
                f"Only ours is measured: the released loader needs {', '.join(absent)} "
                "(pip install -r requirements-peers.txt)"
            )
        else:
            sides.append(flags.against)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        cases = find_cases(flags, pathlib.Path(folder))
        if flags.reencode:
            pairs = [(case, reencoded(case, pathlib.Path(folder))) for case in cases]
            cases = [case for pair in pairs for case in pair]
        # A process for each side: its CPU time is its own, and torch forks no threads of ours.
        context = multiprocessing.get_context("spawn")
        pools = {}
        for side in sides:
            # As main.py does before it decodes.
            setup = memory.keep_freed if side != flags.against else None
            pools[side] = stack.enter_context(ProcessPoolExecutor(1, context, setup))
        modes = list(MODES) if flags.mode == "all" else [flags.mode]
        jobs = [
            Job(
                mode, case, ClipSpec(flags.num_frames, case.stride, flags.image_size, **MODES[mode])
            )
            for mode, case in itertools.product(modes, cases)
        ]
        report = scale(jobs, flags, pools["ours"]) if flags.ceiling else compare(jobs, flags, pools)
    if flags.json:
        text = json.dumps({"flags": vars(flags), "measured": report}, indent=2)
        pathlib.Path(flags.json).write_text(text + "\n")


def compare(
    jobs: Sequence[Job], flags: argparse.Namespace, pools: dict[str, ProcessPoolExecutor]
) -> list[dict[str, Any]]:
    """Prints the table, the sides by turns in each round of a job; returns all rounds."""
    print(f"{rates.cpus()} cores, batches of {flags.batch_size}, {flags.rounds} rounds: medians")
    print(f"(from the least to the most). Ours are uint8, which the device normalises.\n\n{HEAD}")
    report = []
    for mode, case, spec in jobs:
        rounds: dict[str, list[Numbers]] = {side: [] for side in pools}
        for _, (side, pool) in itertools.product(range(flags.rounds), pools.items()):
            job = pool.submit(
                measure,
                case.records,
                spec,
                seconds=flags.seconds,
                threads=flags.threads,
                workers=flags.workers,
                batch_size=flags.batch_size,
                mode=mode,
                side=side,
            )
            rounds[side].append(job.result())
        lines = [row(case.name, mode, side, rounds[side]) for side in pools]
        if flags.against in pools:
            others = [side for side in pools if side != flags.against]
            theirs = rounds[flags.against]
            lines += [ratio(case.name, mode, side, rounds[side], theirs) for side in others]
        print(*lines, sep="\n", flush=True)
        report.append({"mode": mode, "input": case.name, "rounds": rounds})
    return report


def scale(
    jobs: Sequence[Job], flags: argparse.Namespace, pool: ProcessPoolExecutor
) -> list[dict[str, Any]]:
    """Prints how our pipeline alone grows with threads and with cores; returns the numbers."""
    print(ceiling.HEAD)
    report = []
    for mode, case, spec in jobs:
        options = {"seconds": flags.seconds, "batch_size": flags.batch_size, "mode": mode}
        measured = pool.submit(ceiling.scaling, case.records, spec, **options).result()
        print(*ceiling.rows(mode, case.name, measured), sep="\n", flush=True)
        report.append({"mode": mode, "input": case.name, "measured": measured})
    return report


def _clips() -> str:
    """The folder of real clips beside the project, if there is one."""
    shared = os.environ.get("MVM_SHARED") or pathlib.Path(__file__).resolve().parents[2] / "shared"
    folder = pathlib.Path(shared) / "clips"
    return str(folder) if folder.is_dir() else ""


if __name__ == "__main__":
    try:
        main()
    except (DataError, VideoError) as error:
        raise SystemExit(f"error: {error}") from error
