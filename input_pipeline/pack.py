"""Packs a source of videos into a few large ArrayRecord files, as they are or re-encoded.

python -m input_pipeline.pack LIST OUT --split train --codec h264
Train from it with --config.data.train=OUT. A killed command is repeated unchanged: it resumes.
"""

import argparse
import contextlib
import fcntl
import functools
import hashlib
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from input_pipeline.each import each
from input_pipeline.encode import Options, encode
from input_pipeline.sources import arrayrecord as packed
from input_pipeline.sources import load as sources
from input_pipeline.sources.frames import read_bytes, stills
from input_pipeline.sources.records import DataError, Record
from input_pipeline.video import decode, whole
from input_pipeline.video.base import VideoError

_VIDEOS = 128  # of a file
# Videos are compressed already; with one in a group, each is read alone.
_OPTIONS = "group_size:1,uncompressed"
_H264 = Options()


class Stored(NamedTuple):
    """A video as it is stored, or the `reason` why it cannot be.

    Attributes:
        feature: "video", of which `parts` is the file, or "frames", of which it is the pictures.
        damage: frames that could not be decoded as they were meant.
    """

    id: str
    label: int
    reason: str = ""
    feature: str = "video"
    parts: tuple[bytes, ...] = ()
    num_frames: int = 0
    damage: int = 0


def store(record: Record, lost: str, options: Options) -> Stored:
    """Reads one record, unless it is `lost`, and if `options` say so encodes it."""
    stored, source = Stored(record.id, record.label), record.source
    try:
        if lost:
            raise VideoError(lost)
        if options.codec != "copy":
            data, count, damage = encode(source, options)
            return stored._replace(parts=(data,), num_frames=count, damage=damage)
        if isinstance(source, str):
            source = read_bytes(source)
        stored = stored._replace(num_frames=decode.probe(source).num_frames)
        if isinstance(source, bytes):
            return stored._replace(parts=(source,))
        return stored._replace(feature="frames", parts=tuple(map(_picture, stills(source).frames)))
    except VideoError as error:
        return stored._replace(reason=" ".join(str(error).split()))


def _picture(frame: str | bytes) -> bytes:
    """Its bytes; none if it cannot be read, which readers count as damage."""
    try:
        return read_bytes(frame) if isinstance(frame, str) else frame
    except VideoError:
        return b""


def pack(
    spec: str,
    out: pathlib.Path,
    split: str = "train",
    root: str = "",
    options: Options = _H264,
    workers: int = 0,
) -> bool:
    """`write` for a source named as for `sources.load`, whose errors it raises too."""
    records, classes = sources.load(spec, root, 0, split), sources.named(spec, root)
    names = list(classes[0].names) if classes else []
    return write(records, out, split, names, spec, options, workers)


def write(
    records: Sequence[Record],
    out: pathlib.Path,
    split: str,
    class_names: Sequence[str],
    source: str,
    options: Options,
    workers: int = 0,
) -> bool:
    """Adds a split to a packed folder; the manifest is replaced last and makes it count.

    A killed call resumes with the first file that is not whole. Videos that cannot be read are
    left out and named in the manifest. `source` says what the records come from.

    Returns:
        False if that had been done before.

    Raises:
        DataError: the folder holds such a split of something else, whole or begun, or other class
            names, another process is at it, no video can be read, or the disk is full.
    """
    listed = [one[:3] for one in records] if isinstance(records, list) else len(records)
    digest = hashlib.sha256(repr(listed).encode()).hexdigest()[:16]
    made_from = {"source": source, "digest": digest, "options": str(options)}
    begun, number_of = out / f"{split}.begun.json", -(-len(records) // _VIDEOS)
    try:
        with only_writer(out):
            manifest: dict[str, Any] = {"version": packed.VERSION, "class_names": [], "splits": {}}
            if (out / packed.MANIFEST).exists():
                manifest = packed.manifest(str(out))
            before = manifest["splits"].get(split) or {**made_from, "files": []}
            if split not in manifest["splits"] and begun.exists():
                before = json.loads(begun.read_text())
            for key, value in made_from.items():
                if before[key] != value:
                    raise DataError(
                        f"{out}: split {split!r} is of another {key} ({before[key]}, now {value}); "
                        "choose another folder or split, or delete it"
                    )
            if split in manifest["splits"]:
                return False
            if class_names and manifest["class_names"] not in ([], list(class_names)):
                raise DataError(f"{out}: its class names differ from those of {source}")
            files = before["files"]
            first, task = len(files) * _VIDEOS, functools.partial(store, options=options)
            with contextlib.closing(each(task, records, workers, first=first)) as videos:
                for number in range(len(files), number_of):
                    name = f"videos-{split}.array_record-{number:05}-of-{number_of:05}"
                    files.append(_write_file(out / name, itertools.islice(videos, _VIDEOS)))
                    whole.write(begun, json.dumps({**made_from, "files": files}, indent=1))
            manifest["class_names"] = list(class_names) or manifest["class_names"]
            manifest["splits"][split] = {**made_from, **_summed(files, source)}
            whole.write(out / packed.MANIFEST, json.dumps(manifest, indent=1))
            begun.unlink()
            return True
    except BlockingIOError as error:
        raise DataError(f"{out}: another process packs into it; wait for its end") from error
    except (OSError, RuntimeError) as error:
        text = getattr(error, "strerror", None) or packed.reason(error)
        raise DataError(f"{out}: cannot be written ({text}); repeat to resume") from error


def _write_file(path: pathlib.Path, videos: Iterable[Stored]) -> dict[str, Any]:
    """Writes one whole ArrayRecord file or none; returns what the manifest says of it."""
    good, failures = list[Stored](), dict[str, list[str]]()
    part = path.with_name(f"{path.name}.part")
    writer = ArrayRecordWriter(os.fspath(part), _OPTIONS)
    for video in videos:
        if video.reason:
            failures.setdefault(video.reason, []).append(video.id)
        else:
            writer.write(_example(video))
            good.append(video._replace(parts=()))
    writer.close()
    reader = ArrayRecordReader(os.fspath(part))  # A full disk may have gone unnoticed.
    if reader.num_records() != len(good):
        raise RuntimeError(f"{reader.num_records()} records of {len(good)} are in {path.name}")
    reader.close()
    part.replace(path)
    labels = [video.label for video in good]
    return {
        "name": path.name,
        "videos": len(good),
        "bytes": path.stat().st_size,
        "frames": sum(video.num_frames for video in good),
        "labels": [min(labels, default=-1), max(labels, default=-1)],
        "failures": failures,
        "damaged": [video.id for video in good if video.damage],
    }


def _example(video: Stored) -> bytes:
    """A serialised `tf.train.Example`, which `sources.arrayrecord` reads."""
    from tensorflow_datasets.proto import tf_example_pb2  # It takes half a second.

    example = tf_example_pb2.Example()
    features = example.features.feature
    features["id"].bytes_list.value.append(video.id.encode())
    features["label"].int64_list.value.append(video.label)
    features["num_frames"].int64_list.value.append(video.num_frames)
    features[video.feature].bytes_list.value.extend(video.parts)
    return example.SerializeToString(deterministic=True)


def _summed(files: Sequence[dict[str, Any]], source: str) -> dict[str, Any]:
    """What the manifest says of a split.

    Raises:
        DataError: there is no video in it.
    """
    failures: dict[str, list[str]] = {}
    for reason, names in itertools.chain(*(file["failures"].items() for file in files)):
        failures.setdefault(reason, []).extend(names)
    good = [file for file in files if file["videos"]]
    if not good:
        reason, names = next(iter(failures.items()))
        raise DataError(f"{source}: no video can be read (first: {names[0]}: {reason})")
    return {
        **{key: sum(file[key] for file in good) for key in ("videos", "frames")},
        "labels": [min(f["labels"][0] for f in good), max(f["labels"][1] for f in good)],
        "failures": failures,
        "damaged": [name for file in good for name in file["damaged"]],
        "files": [{key: file[key] for key in ("name", "videos", "bytes")} for file in good],
    }


@contextlib.contextmanager
def only_writer(folder: pathlib.Path, wait: bool = False) -> Iterator[None]:
    """Makes `folder` and lets one process at a time work there; a killed one lets go.

    Raises:
        BlockingIOError: another process is at work, and this one is not to `wait`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def summary(out: str, name: str) -> str:
    """What a split of a packed folder holds, some lines."""
    split = packed.manifest(out)["splits"][name]
    size = sum(file["bytes"] for file in split["files"]) / 1e6
    lines = [f"{out}: {name}, {split['videos']} videos, {split['frames']} frames, {size:.1f} MB"]
    left = {f"left out, {reason}": names for reason, names in split["failures"].items()}
    for what, names in {**left, "damaged, kept": split["damaged"]}.items():
        lines += [f"  {what}: {len(names)} (first: {names[0]})"] if names else []
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.pack", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("source", metavar="LIST", help="list, folder, tfds:NAME, packed folder")
    parser.add_argument("out", metavar="OUT", help="local folder to write")
    parser.add_argument("--split", default="train", choices=["train", "val", "test"])
    parser.add_argument("--root", default="", help="what relative paths of the list start from")
    parser.add_argument("--codec", choices=["copy", "h264"], default=_H264.codec, help="(h264)")
    for name, value, most, meaning in (
        ("--short-side", _H264.short_side, 1 << 14, "pixels of the shorter side at most, 0: all"),
        ("--crf", _H264.crf, 51, "quality of H.264, lower is better"),
        ("--gop", _H264.gop, 1 << 10, "frames from keyframe to keyframe of H.264"),
        ("--workers", 0, 1 << 10, "processes, 0 for one per core"),
    ):
        numbers = range(name == "--gop", most + 1)
        text = f"{meaning} ({value})"
        parser.add_argument(name, type=int, choices=numbers, metavar="N", default=value, help=text)
    given = parser.parse_args(argv)
    if "://" in given.out:
        parser.error("give a local folder to write as OUT, and copy it to a bucket afterwards")
    options = Options(given.codec, given.short_side, given.crf, given.gop)
    out = pathlib.Path(given.out)
    try:
        if not pack(given.source, out, given.split, given.root, options, given.workers):
            print(f"{out}: split {given.split!r} is packed already; nothing to do")
        print(summary(given.out, given.split))
    except DataError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    from input_pipeline import pack as module  # Workers can import its functions, not this one's.

    sys.exit(module.main())
