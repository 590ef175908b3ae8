"""Packs a source of videos into a few large files, as they are or encoded anew.

python -m input_pipeline.pack LIST OUT --split train --codec h264
Train from it with --config.data.train=OUT. Repeat a command that was stopped: it goes on.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from input_pipeline.encode import Options
from input_pipeline.sources import arrayrecord as packed
from input_pipeline.sources import load as sources
from input_pipeline.sources import shards
from input_pipeline.sources.records import DataError


class Job(NamedTuple):
    """What to pack.

    Attributes:
        spec: the source, see `sources.load`.
        out: local folder to write.
        split: name of the split in `out`, and in a source that has several.
        root: see `sources.load`.
        options: how videos are stored.
        workers: processes; 0 for one per core.
    """

    spec: str
    out: pathlib.Path
    split: str = "train"
    root: str = ""
    options: Options = Options()
    workers: int = 0


def pack(job: Job) -> bool:
    """Encodes every video that can be read and writes the split; progress goes to stderr.

    Returns:
        False if that had been done before.

    Raises:
        DataError: the source or the folder cannot be used, no video can be read, the folder holds
            or is about to hold the split in another form, or the disk is full.
    """
    records = sources.load(job.spec, job.root, 0, job.split)
    parts = sources.parts_of(records)
    if any(part.stride for part in parts):
        raise DataError(f"{job.spec}: a stride is not packed; give it in training: OUT?stride=4")
    # Of lists all labels are known before the long work.
    listed = [part.records for part in parts if isinstance(part.records, list)]
    names = _class_names(job, max((one.label for part in listed for one in part), default=-1))
    return shards.write(
        records, job.out, job.split, names, job.spec, job.options, workers=job.workers
    )


def _class_names(job: Job, highest: int) -> list[str]:
    """Names that the source itself gives, else those of the splits packed before.

    Raises:
        DataError: they differ from those, or are too few for the label `highest`.
    """
    names = sources.given_names(job.spec, job.root)
    there = (job.out / packed.MANIFEST).exists()
    before = packed.class_names(str(job.out)) if there else []
    if names and before and names != before:
        raise DataError(f"{job.out}: its class names differ from those of {job.spec}")
    names = names or before
    if names and highest >= len(names):
        raise DataError(f"{job.spec}: label {highest}, but only {len(names)} class names")
    return names


def summary(out: str, name: str) -> str:
    """What a split of a packed folder holds, some lines."""
    split = packed.manifest(out)["splits"][name]
    lines = [
        f"{out}: split {name!r}, {split['videos']} videos, {split['frames']} frames, "
        f"{split['bytes_out'] / 1e6:.1f} MB from {split['bytes_in'] / 1e6:.1f} MB"
    ]
    for reason, names in split["failures"].items():
        lines.append(f"  left out: {len(names)} ({reason}; first: {names[0]})")
    if names := split["damaged"]:
        lines.append(f"  damaged, kept as far as they go: {len(names)} (first: {names[0]})")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    default = Options()
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.pack", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("source", metavar="LIST", help="list, folder, tfds:NAME, packed folder")
    parser.add_argument("out", metavar="OUT", help="local folder to write")
    parser.add_argument(
        "--split", metavar="NAME", default="train", help="name of the split (train)"
    )
    parser.add_argument("--root", default="", help="what relative paths of the list start from")
    parser.add_argument("--codec", choices=("copy", "h264"), default=default.codec, help="(h264)")
    for name, default_value, meaning, high in (
        (
            "short_side",
            default.short_side,
            "pixels of the shorter side at most, 0 for all",
            1 << 14,
        ),
        ("crf", default.crf, "quality of H.264, lower is better", 51),
        ("gop", default.gop, "frames from keyframe to keyframe of H.264", 1 << 10),
        ("workers", 0, "processes, 0 for one per core", 1 << 10),
    ):
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            choices=range(name == "gop", high + 1),
            metavar="N",
            default=default_value,
            help=f"{meaning} ({default_value})",
        )
    given = parser.parse_args(argv)
    if "://" in given.out:
        parser.error("give a local folder to write as OUT, and copy it to a bucket afterwards")
    if not given.split.isidentifier():
        parser.error(f"--split={given.split}; give a plain name such as train, val or test")
    options = default._replace(
        codec=given.codec, short_side=given.short_side, crf=given.crf, gop=given.gop
    )
    out = pathlib.Path(given.out)
    job = Job(given.source, out, given.split, given.root, options, given.workers)
    try:
        if not pack(job):
            print(f"{out}: split {job.split!r} is packed already; nothing to do")
        print(summary(given.out, job.split))
    except DataError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("stopped; repeat the command to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
