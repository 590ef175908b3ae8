"""Packs a source of videos into a few large files, as they are or encoded anew.

python -m input_pipeline.pack LIST OUT --split train --codec h264
python -m input_pipeline.pack LIST --compare  # only shows what each codec would give
Train from it with --config.data.train=OUT. Repeat a command that was stopped: it goes on.
"""

import argparse
import hashlib
import math
import pathlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from input_pipeline import packed, preflight, progress, sources, speed, staging
from input_pipeline.encode import CODECS, Options
from input_pipeline.records import DataError, Record
from input_pipeline.stills import Pictures
from input_pipeline.video import VideoError

_SHARD = 256 << 20  # Bytes of a file, about.


class Job(NamedTuple):
    """What to pack.

    Attributes:
        spec: the source, see `sources.load`.
        out: local folder to write.
        split: name of the split in `out`, and in a source that has several.
        root: see `sources.load`.
        options: how videos are stored.
        shards: files to write; 0 for files of about 256 MB.
        workers: processes; 0 for one per core.
    """

    spec: str
    out: pathlib.Path
    split: str = "train"
    root: str = ""
    options: Options = Options()
    shards: int = 0
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
    known = [record.label for part in listed for record in part]
    _class_names(job, max(known, default=-1))
    made_from = {"source": job.spec, "digest": _digest(records), "options": str(job.options)}
    done = _is_done(job, made_from)
    if done and not _work(job).exists():
        return False
    try:
        with staging.only_writer(job.out):
            if done:  # A call that was killed at its very end.
                shutil.rmtree(_work(job))
                return False
            _check_options(job)
            stage = staging.Stage(sources.shared(records), job.options, _work(job))
            found = staging.stage_all(stage, len(records), job.workers)
            _write(job, stage, found, made_from)
            shutil.rmtree(_work(job))
    except BlockingIOError as error:
        raise DataError(f"{job.out}: another process packs into it; wait for its end") from error
    except OSError as error:
        raise DataError(
            f"{job.out}: cannot be written ({error.strerror}); make room and repeat: it goes on"
        ) from error
    return True


def _work(job: Job) -> pathlib.Path:
    """Where encoded videos are kept until all are there."""
    return job.out / staging.FOLDER / job.split


def _digest(records: Sequence[Record]) -> str:
    """Tells one list from another; of a source read lazily only its length."""
    names = [record[:3] for record in records] if isinstance(records, list) else len(records)
    return hashlib.sha256(repr(names).encode()).hexdigest()[:16]


def _is_done(job: Job, made_from: dict[str, str]) -> bool:
    if not (job.out / packed.MANIFEST).exists():
        return False
    manifest = packed.manifest(str(job.out))
    before = manifest["splits"].get(job.split)
    if before is None:
        _same_storage(job, manifest["splits"])
        return False
    for name, value in made_from.items():
        if before[name] != value:
            what = {"source": "packed from", "options": "packed with"}.get(name, "of another list")
            text = f"{what} {before[name]}" if name != "digest" else f"{what} at {job.spec}"
            raise DataError(
                f"{job.out}: it holds a split {job.split!r} {text}; choose another folder or split"
            )
    return True


def _same_storage(job: Job, splits: dict[str, Any]) -> None:
    for name, split in splits.items():
        if split["options"] != str(job.options):
            raise DataError(
                f"{job.out}: its split {name!r} is packed with {split['options']}; use the same, "
                "or another folder"
            )


def _check_options(job: Job) -> None:
    """Refuses to mix encodings in what an interrupted call has left."""
    _work(job).mkdir(exist_ok=True)
    file = _work(job) / "options.txt"
    if file.exists() and file.read_text() != str(job.options):
        raise DataError(
            f"{job.out}: begun with {file.read_text()}; go on with these, or delete {_work(job)} "
            "to begin anew"
        )
    staging.replace(file, str(job.options).encode())


def _write(
    job: Job, stage: staging.Stage, found: Sequence[staging.Staged], made_from: dict[str, str]
) -> None:
    from input_pipeline import builder  # TFDS is slow to load, and children need none of it.

    good = [(position, one) for position, one in enumerate(found) if not one.reason]
    failures: dict[str, list[str]] = {}
    for one in found:
        if one.reason:
            failures.setdefault(one.reason, []).append(one.id)
    if not good:
        reason, names = next(iter(failures.items()))
        raise DataError(f"{job.spec}: no video can be read (first: {names[0]}: {reason})")
    kinds = {one.frames for _, one in good}
    if len(kinds) > 1:
        raise DataError(
            f"{job.spec}: video files and folders of pictures; encode them with --codec h264 or "
            "--codec jpeg"
        )
    labels = [one.label for _, one in good]
    size = sum(sum(one.sizes) for _, one in good)
    shards = min(job.shards or math.ceil(size / _SHARD), len(good))

    def examples() -> Iterator[builder.Example]:
        show = progress.Progress("videos written")
        for done, (position, one) in enumerate(good, 1):
            show(done, len(good))
            parts = stage.pieces(position, one)
            yield {
                "id": one.id,
                "label": one.label,
                "num_frames": one.num_frames,
                **({"frames": parts} if one.frames else {"video": parts[0]}),
            }

    manifest: dict[str, Any] = {"version": packed.VERSION, "class_names": [], "splits": {}}
    if (job.out / packed.MANIFEST).exists():
        manifest = packed.manifest(str(job.out))
    manifest["class_names"] = _class_names(job, max(labels))
    manifest["splits"][job.split] = {
        **made_from,
        "videos": len(good),
        "frames": sum(one.num_frames for _, one in good),
        "labels": [min(labels), max(labels)],
        "bytes_in": sum(one.bytes_in for _, one in good),
        "bytes_out": size,
        "left_out": sum(map(len, failures.values())),
        "failures": failures,
        "damaged": [one.id for _, one in good if one.damage],
        "without_times": sum(not one.timed for _, one in good),
    }
    try:
        builder.write(
            job.out,
            {job.split: builder.Split(len(good), shards, examples)},
            manifest,
            frames=kinds.pop(),
            about=f"Packed by input_pipeline.pack {job.options}.",
        )
    except VideoError as error:
        raise DataError(f"{job.spec}: changed while it was packed ({error}); repeat") from error


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


def summary(job: Job) -> str:
    """What `job.out` holds and what it is worth, some lines."""
    split = packed.manifest(str(job.out))["splits"][job.split]
    lines = [f"{job.out}: split {job.split!r}, {split['videos']} videos, {split['frames']} frames"]
    for reason, names in split["failures"].items():
        lines.append(f"  left out: {len(names)} ({reason}; first: {names[0]})")
    if split["damaged"]:
        names = split["damaged"]
        lines.append(f"  damaged, kept as far as they go: {len(names)} (first: {names[0]})")
    records = packed.load(str(job.out), job.split)
    originals = sources.load(job.spec, job.root, 0, job.split)
    left_out = {name for names in split["failures"].values() for name in names}
    picked = [originals[p] for p in preflight.positions(len(originals), speed.SAMPLE)]
    rows = [
        speed.Row("source", split["bytes_in"], speed.rate(_sources(picked, left_out))),
        speed.Row(
            str(job.options),
            split["bytes_out"],
            speed.rate(records[p].source for p in preflight.positions(len(records), speed.SAMPLE)),
        ),
    ]
    return "\n".join([*lines, speed.table(rows)])


def _sources(records: Sequence[Record], left_out: set[str]) -> Iterator[str | bytes | Pictures]:
    return (record.source for record in records if record.id not in left_out)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    default = Options()
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.pack", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("source", metavar="LIST", help="list, folder, tfds:NAME, packed folder")
    parser.add_argument("out", metavar="OUT", nargs="?", default="", help="local folder to write")
    parser.add_argument(
        "--split", metavar="NAME", default="train", help="name of the split (train)"
    )
    parser.add_argument("--root", default="", help="what relative paths of the list start from")
    parser.add_argument("--codec", choices=CODECS, default=default.codec, help="(h264)")
    for name, meaning in (
        ("short_side", "pixels of the shorter side at most, 0 for all"),
        ("crf", "quality of H.264, lower is better"),
        ("gop", "frames from keyframe to keyframe of H.264"),
        ("quality", "of JPEG, 1 to 100"),
    ):
        value = getattr(default, name)
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=value, help=f"{meaning} ({value})")
    parser.add_argument("--workers", type=int, default=0, help="processes (one per core)")
    parser.add_argument("--shards", type=int, default=0, help="files (of about 256 MB each)")
    parser.add_argument(
        "--compare", action="store_true", help="only measure all codecs on a sample"
    )
    given = parser.parse_args(argv)
    for name, low, high in (
        *(("short_side", 0, 1 << 14), ("crf", 0, 51), ("gop", 1, 1 << 10), ("quality", 1, 100)),
        *(("workers", 0, 1 << 10), ("shards", 0, 1 << 16)),
    ):
        if not low <= getattr(given, name) <= high:
            flag = f"--{name.replace('_', '-')}"
            parser.error(f"{flag}={getattr(given, name)}; give {low} to {high}")
    if not given.compare and (not given.out or "://" in given.out):
        parser.error("give a local folder to write as OUT, and copy it to a bucket afterwards")
    if not given.split.isidentifier():
        parser.error(f"--split={given.split}; give a plain name such as train, val or test")
    options = Options(given.codec, given.short_side, given.crf, given.gop, given.quality)
    out = pathlib.Path(given.out)
    job = Job(given.source, out, given.split, given.root, options, given.shards, given.workers)
    try:
        if given.compare:
            records = sources.load(job.spec, job.root, 0, job.split)
            print(speed.table(speed.compare(records, options)))
        elif pack(job):
            print(summary(job))
        else:
            print(f"{out}: split {job.split!r} is packed already; nothing to do")
    except DataError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("stopped; repeat the command to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
