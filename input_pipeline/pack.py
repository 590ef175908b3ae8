"""Packs a source of videos into a few large ArrayRecord files, as they are or re-encoded.

python -m input_pipeline.pack LIST OUT --split train --codec h264
Train from it with --config.data.train=OUT. A killed command is repeated unchanged: it resumes.
"""

import contextlib
import fcntl
import functools
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from input_pipeline import command
from input_pipeline.encode import Options, encode
from input_pipeline.sources import packed
from input_pipeline.sources.frames import pictures_in, read_bytes
from input_pipeline.sources.records import DataError, Record
from input_pipeline.video import decode, whole
from input_pipeline.video.base import VideoError
from input_pipeline.workers import each

_VIDEOS = 128  # of a file
# Videos are compressed already; with one in a group, each is read alone.
_OPTIONS = "group_size:1,uncompressed"
_H264 = Options()


class Stored(NamedTuple):
    """A video as it is stored, or the `reason` why it cannot be."""

    id: str
    label: int
    reason: str = ""
    content: bytes = b""  # A serialised `tf.train.Example`, which `sources.packed` reads.


def store(record: Record, lost: str, options: Options) -> Stored:
    """Reads one record, unless it is `lost`, and if `options` say so encodes it."""
    example, source = packed.new_example(), record.source
    features = example.features.feature
    features["id"].bytes_list.value.append(record.id.encode())
    features["label"].int64_list.value.append(record.label)
    try:
        if lost:
            raise VideoError(lost)
        if options.codec == "h264":
            features["video"].bytes_list.value.append(encode(source, options))
        else:
            decode.probe(source)
            if pictures := pictures_in(source):
                features["frames"].bytes_list.value.extend(map(read_bytes, pictures.frames))
            else:
                assert isinstance(source, str | bytes)
                features["video"].bytes_list.value.append(read_bytes(source))
    except VideoError as error:
        return Stored(record.id, record.label, " ".join(str(error).split()))
    return Stored(record.id, record.label, "", example.SerializeToString(deterministic=True))


def write(
    records: Sequence[Record],
    out: pathlib.Path,
    split: str,
    class_names: Sequence[str],
    source: str,
    options: Options,
    workers: int = 0,
) -> bool:
    """Adds a split to a packed folder, the manifest with every file; False if it was whole.

    A killed call resumes with the first file that is not whole. Videos that cannot be read are
    left out and named in the manifest. `source` names the records.
    """
    listed = [one[:3] for one in records] if isinstance(records, list) else len(records)
    digest = hashlib.sha256(repr(listed).encode()).hexdigest()[:16]
    made_from = f"{source} ({len(records)} records, {digest}), {options}"
    number_of = -(-len(records) // _VIDEOS)
    task = functools.partial(store, options=options)
    try:
        with only_writer(out):
            manifest: dict[str, Any] = {"version": packed.VERSION, "class_names": [], "splits": {}}
            if (out / packed.MANIFEST).exists():
                manifest = packed.manifest(str(out))
            new = {"begun": True, "videos": 0, "labels": [], "failures": {}, "files": []}
            done = manifest["splits"].setdefault(split, {"made_from": made_from, **new})
            if (before := done.get("made_from")) != made_from:
                raise DataError(
                    f"{out}: split {split!r} is made from {before}, not {made_from}; choose "
                    "another folder or split, or delete it"
                )
            if not done["begun"]:
                return False
            if class_names and manifest["class_names"] not in ([], list(class_names)):
                raise DataError(f"{out}: its class names differ from those of {source}")
            manifest["class_names"] = list(class_names) or manifest["class_names"]
            first = len(done["files"])
            with contextlib.closing(each(task, records, workers, first=first * _VIDEOS)) as videos:
                for number in range(first, number_of):
                    name = f"videos-{split}.array_record-{number:05}-of-{number_of:05}"
                    _write_file(out / name, itertools.islice(videos, _VIDEOS), done)
                    done["begun"] = number + 1 < number_of or not done["videos"]
                    whole.write(out / packed.MANIFEST, json.dumps(manifest, indent=1))
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{out}: cannot be written ({packed.short(error)}); repeat to resume"
        ) from error
    if not done["videos"]:
        reason, names = next(iter(done["failures"].items()))
        raise DataError(f"{source}: no video can be read (first: {names[0]}: {reason})")
    return True


def _write_file(path: pathlib.Path, videos: Iterable[Stored], split: dict[str, Any]) -> None:
    """Writes one whole ArrayRecord file or none, and notes it in the manifest's `split`."""
    part, good = path.with_name(f"{path.name}.part"), 0
    writer = ArrayRecordWriter(os.fspath(part), _OPTIONS)
    for video in videos:
        if video.reason:
            split["failures"].setdefault(video.reason, []).append(video.id)
            continue
        writer.write(video.content)
        good += 1
        labels = [*split["labels"], video.label]
        split["labels"] = [min(labels), max(labels)]
    writer.close()
    reader = ArrayRecordReader(os.fspath(part))  # A full disk may have gone unnoticed.
    if reader.num_records() != good:
        raise RuntimeError(f"{reader.num_records()} records of {good} are in {path.name}")
    reader.close()
    part.replace(path)
    split["videos"] += good
    split["files"].append({"name": path.name, "videos": good, "bytes": path.stat().st_size})


@contextlib.contextmanager
def only_writer(folder: pathlib.Path, wait: bool = False) -> Iterator[None]:
    """Makes `folder` and lets one process at a time work there; a killed one lets go."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise DataError(f"{folder}: another process packs into it; wait for its end") from error
        yield


def summary(out: str, name: str) -> str:
    """What a split of a packed folder holds, some lines."""
    split = packed.manifest(out)["splits"][name]
    size = sum(file["bytes"] for file in split["files"]) / 1e6
    lines = [f"{out}: {name}, {split['videos']} videos, {size:.1f} MB"]
    for reason, names in split["failures"].items():
        lines.append(f"  left out, {reason}: {len(names)} (first: {names[0]})")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = command.parser("pack", __doc__)
    parser.add_argument("out", metavar="OUT", help="local folder to write")
    parser.add_argument(
        "--codec", choices=["copy", "h264"], default=_H264.codec, help="or as it is"
    )
    for name, value, meaning in (
        ("--short-side", _H264.short_side, "pixels of the shorter side at most, 0: all"),
        ("--crf", _H264.crf, "quality of H.264, lower is better"),
        ("--gop", _H264.gop, "frames from keyframe to keyframe of H.264"),
        ("--workers", 0, "processes, 0 for one per core"),
    ):
        parser.add_argument(name, type=int, default=value, help=meaning)
    given, found = command.parse(parser, argv)
    if "://" in given.out:
        parser.error("give a local folder to write as OUT, and copy it to a bucket afterwards")
    options = Options(given.codec, given.short_side, given.crf, given.gop)
    out, source = pathlib.Path(given.out), given.list or given.config
    for split, records in found.splits.items():
        if not write(records, out, split, list(found.names), source, options, given.workers):
            print(f"{out}: split {split!r} is packed already; nothing to do")
        print(summary(given.out, split))
    return 0


if __name__ == "__main__":
    from input_pipeline import pack as module  # Workers can import its functions, not this one's.

    command.run(module.main)
