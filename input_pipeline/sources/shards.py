"""Writes packed folders: ArrayRecord files of encoded videos, one after another, safe to kill."""

import collections
import concurrent.futures
import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from input_pipeline import isolate
from input_pipeline.encode import Options, encode
from input_pipeline.progress import Progress
from input_pipeline.sources import arrayrecord as packed
from input_pipeline.sources import load as sources
from input_pipeline.sources.frames import Stills, read_bytes, stills
from input_pipeline.sources.records import DataError, Record
from input_pipeline.video import decode, whole
from input_pipeline.video.base import VideoError

_VIDEOS = 128  # of a file
_TIMEOUT = 3600.0  # seconds for one video
# Videos are compressed already: trying again costs time and gains nothing.
_OPTIONS = "group_size:1,uncompressed"


class Stored(NamedTuple):
    """A video as it is stored, or why it cannot be.

    Attributes:
        reason: why it cannot be used; else empty.
        parts: the file, or single pictures.
        frames: `parts` are pictures.
        bytes_in: size of the source.
        damage: frames that could not be decoded as they were meant.
    """

    id: str
    label: int
    reason: str = ""
    parts: tuple[bytes, ...] = ()
    frames: bool = False
    num_frames: int = 0
    bytes_in: int = 0
    damage: int = 0


class Store:
    """Reads and encodes one record; for `isolate.Children`."""

    def __init__(self, records: Sequence[Record], options: Options) -> None:
        self.records, self._options = records, options

    def __call__(self, position: int) -> Stored:
        record = self.records[position]
        stored = Stored(record.id, record.label)
        try:
            data = source = _in_memory(record)
            damage = 0
            if self._options.codec == "copy":
                count = decode.probe(source).num_frames
            else:
                data, count, damage, *_ = encode(source, self._options)
        except VideoError as error:
            return stored._replace(reason=" ".join(str(error).split()))
        size, frames = sum(map(len, _parts(source))), isinstance(data, Stills)
        return Stored(record.id, record.label, "", _parts(data), frames, count, size, damage)


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

    A call that was killed goes on with the first file that is not whole. Videos that cannot be
    read are left out, and named in the manifest. `source` says what the records come from.

    Returns:
        False if that had been done before.

    Raises:
        DataError: the folder holds such a split of something else, whole or half, another process
            is at it, no video can be read, or the disk is full.
    """
    made_from = {"source": source, "digest": _digest(records), "options": str(options)}
    begun = out / f"{split}.begun.json"
    try:
        with only_writer(out):
            manifest: dict[str, Any] = {"version": packed.VERSION, "splits": {}}
            if (out / packed.MANIFEST).exists():
                manifest = packed.manifest(str(out))
            if before := manifest["splits"].get(split):
                _check_same(out, f"it holds a split {split!r}", before, made_from)
                return False
            files: list[dict[str, Any]] = []
            if begun.exists():
                known = json.loads(begun.read_text())
                _check_same(begun, "begun", known, made_from)
                files = list(itertools.takewhile(lambda file: _is_whole(out, file), known["files"]))
            starts = range(0, len(records), _VIDEOS)
            rest = _stored(sources.shared(records), len(files) * _VIDEOS, options, workers)
            with contextlib.closing(rest) as videos:
                for number in range(len(files), len(starts)):
                    name = f"videos-{split}.array_record-{number:05}-of-{len(starts):05}"
                    files.append(_write_file(out / name, itertools.islice(videos, _VIDEOS)))
                    whole.write(begun, json.dumps({**made_from, "files": files}, indent=1))
            manifest["class_names"] = list(class_names)
            manifest["splits"][split] = {**made_from, **_summed(files, source)}
            whole.write(out / packed.MANIFEST, json.dumps(manifest, indent=1))
            begun.unlink()
            return True
    except BlockingIOError as error:
        raise DataError(f"{out}: another process packs into it; wait for its end") from error
    except (OSError, RuntimeError) as error:
        text = getattr(error, "strerror", None) or packed.reason(error)
        raise DataError(f"{out}: cannot be written ({text}); repeat: it goes on") from error


def _digest(records: Sequence[Record]) -> str:
    """Tells one list from another; of a source read lazily only its length."""
    names = [record[:3] for record in records] if isinstance(records, list) else len(records)
    return hashlib.sha256(repr(names).encode()).hexdigest()[:16]


def _check_same(path: pathlib.Path, what: str, before: dict[str, Any], now: dict[str, str]) -> None:
    for key, value in now.items():
        if before[key] != value:
            raise DataError(
                f"{path}: {what} of another {key} ({before[key]}, now {value}); choose another "
                "folder or split, or delete it"
            )


def _is_whole(folder: pathlib.Path, file: dict[str, Any]) -> bool:
    path = folder / file["name"]
    return path.exists() and path.stat().st_size == file["bytes"]


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
        **{key: sum(f[key] for f in good) for key in ("videos", "frames", "bytes_in", "bytes_out")},
        "labels": [min(f["labels"][0] for f in good), max(f["labels"][1] for f in good)],
        "left_out": sum(map(len, failures.values())),
        "failures": failures,
        "damaged": [name for f in good for name in f["damaged"]],
        "files": [{key: f[key] for key in ("name", "videos", "bytes")} for f in good],
    }


def _write_file(path: pathlib.Path, videos: Iterable[Stored]) -> dict[str, Any]:
    """Writes one whole ArrayRecord file or none, and says what is in it."""
    good: list[Stored] = []
    failures: dict[str, list[str]] = {}
    bytes_out = 0
    part = path.with_name(f"{path.name}.part")
    writer = ArrayRecordWriter(os.fspath(part), _OPTIONS)
    for video in videos:
        if video.reason:
            failures.setdefault(video.reason, []).append(video.id)
            continue
        writer.write(_example(video))
        bytes_out += sum(map(len, video.parts))
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
        "bytes_in": sum(video.bytes_in for video in good),
        "bytes_out": bytes_out,
        "failures": failures,
        "damaged": [video.id for video in good if video.damage],
    }


def _example(video: Stored) -> bytes:
    """A serialised `tf.train.Example`, which `packed` reads."""
    from tensorflow_datasets.proto import tf_example_pb2  # It takes half a second.

    example = tf_example_pb2.Example()
    features = example.features.feature
    features["id"].bytes_list.value.append(video.id.encode())
    features["label"].int64_list.value.append(video.label)
    features["num_frames"].int64_list.value.append(video.num_frames)
    features["frames" if video.frames else "video"].bytes_list.value.extend(video.parts)
    return example.SerializeToString(deterministic=True)


def _stored(
    records: Sequence[Record], first: int, options: Options, workers: int
) -> Generator[Stored, None, None]:
    """The records from `first` on in order, by workers.

    A video at which a process dies is tried once more, as memory may have run out, and then given
    up.
    """
    count, task, show = len(records), Store(records, options), Progress()
    workers = max(min(workers or os.cpu_count() or 1, count - first), 1)
    running: collections.deque[concurrent.futures.Future[Stored]] = collections.deque()
    with (
        isolate.Children(task, workers, _TIMEOUT) as children,
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
    ):
        try:
            for position in range(first, count + 2 * workers):
                if position < count:
                    running.append(pool.submit(_attempt, children, task, position))
                if running and position >= first + 2 * workers:
                    yield running.popleft().result()
                    show(min(position - 2 * workers + 1, count), count)
        finally:
            show.end()
            pool.shutdown(wait=False, cancel_futures=True)
            children.close()


def _attempt(children: isolate.Children, task: Store, position: int) -> Stored:
    try:
        return children(position)
    except isolate.Crashed:
        try:
            return children(position)
        except isolate.Crashed as crash:
            return Stored(task.records[position].id, -1, crash.reason)


def _in_memory(record: Record) -> bytes | Stills:
    """The source, read once; a picture that cannot be read is empty, which counts as damage."""
    source = record.source
    if isinstance(source, bytes):
        return source
    if isinstance(source, str):
        return read_bytes(source)
    frames, reason = stills(source)
    return Stills(tuple(map(_picture, frames)), reason)


def _picture(frame: str | bytes) -> bytes:
    if isinstance(frame, bytes):
        return frame
    try:
        return read_bytes(frame)
    except VideoError:
        return b""


def _parts(data: bytes | Stills) -> tuple[bytes, ...]:
    if isinstance(data, bytes):
        return (data,)
    return tuple(frame for frame in data.frames if isinstance(frame, bytes))


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
