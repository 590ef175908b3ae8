"""Where long work keeps what is done: whole files or none, one writer, safe to kill at any time."""

import collections
import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from input_pipeline import decode, isolate
from input_pipeline.encode import Encoded, Options, encode
from input_pipeline.progress import Progress
from input_pipeline.records import Record
from input_pipeline.stills import Stills, read_bytes, stills
from input_pipeline.video import VideoError

FOLDER = ".staging"
_TIMEOUT = 3600.0  # Seconds for one video.


class Staged(NamedTuple):
    """What is known of a video that is stored, or why it cannot be.

    Attributes:
        id: of its record.
        label: of its record.
        reason: why it cannot be used; else empty.
        file: name of the encoded copy; empty if it is stored as it is.
        frames: single pictures rather than one file.
        num_frames: exact.
        bytes_in: size of the source.
        sizes: bytes of the file or of each picture, as stored.
        damage: frames that could not be decoded as they were meant.
        timed: the file tells when its frames are shown.
    """

    id: str
    label: int
    reason: str = ""
    file: str = ""
    frames: bool = False
    num_frames: int = 0
    bytes_in: int = 0
    sizes: tuple[int, ...] = ()
    damage: int = 0
    timed: bool = True


class Stage:
    """Encodes record after record into files of a folder; for `isolate.Children`.

    Args:
        records: the source.
        options: how videos are stored.
        folder: local, made if absent.
    """

    def __init__(self, records: Sequence[Record], options: Options, folder: pathlib.Path) -> None:
        self.records, self._options, self._folder = records, options, folder

    def __call__(self, position: int) -> Staged:
        """Makes sure that record `position` is there; at once if it is.

        Raises:
            OSError: the folder cannot be written, as when the disk is full.
        """
        record = self.records[position]
        staged = Staged(record.id, record.label)
        try:
            if self._options.codec == "copy":
                return self._as_it_is(record, staged)
            name = hashlib.sha256(repr((*record[:2], self._options)).encode()).hexdigest()[:32]
            file = self._folder / name
            if known := _known(file):
                return known._replace(id=record.id, label=record.label)
            source = in_memory(record)
            staged = staged._replace(file=name, bytes_in=sum(map(len, pieces(source))))
            return self._write(file, staged, encode(source, self._options))
        except VideoError as error:
            return Staged(record.id, record.label, reason=" ".join(str(error).split()))

    def _as_it_is(self, record: Record, staged: Staged) -> Staged:
        source = in_memory(record)
        sizes = tuple(map(len, pieces(source)))
        header = decode.probe(source)
        return staged._replace(
            frames=isinstance(source, Stills),
            num_frames=header.num_frames,
            bytes_in=sum(sizes),
            sizes=sizes,
            timed=isinstance(source, bytes),
        )

    def _write(self, file: pathlib.Path, staged: Staged, encoded: Encoded) -> Staged:
        data, num_frames, damage, timed = encoded
        parts = pieces(data)
        staged = staged._replace(
            frames=isinstance(data, Stills),
            num_frames=num_frames,
            sizes=tuple(map(len, parts)),
            damage=damage,
            timed=timed,
        )
        head = json.dumps(staged._asdict()).encode()
        replace(file, b"".join([head, b"\n", *parts]))
        return staged

    def pieces(self, position: int, staged: Staged) -> list[bytes]:
        """The file or the single pictures of a staged video.

        Raises:
            VideoError: the source has gone since.
        """
        if not staged.file:
            return pieces(in_memory(self.records[position]))
        with (self._folder / staged.file).open("rb") as content:
            content.readline()
            return [content.read(size) for size in staged.sizes]


def pieces(data: bytes | Stills) -> list[bytes]:
    """The file or the single pictures that are in memory."""
    if isinstance(data, bytes):
        return [data]
    return [frame for frame in data.frames if isinstance(frame, bytes)]


def in_memory(record: Record) -> bytes | Stills:
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


def _known(file: pathlib.Path) -> Staged | None:
    """What an earlier call has left, if it is whole."""
    try:
        with file.open("rb") as content:
            head = content.readline()
            known = Staged(**json.loads(head))
            known = known._replace(sizes=tuple(known.sizes))
            size = os.fstat(content.fileno()).st_size
        return known if size == len(head) + sum(known.sizes) else None
    except (FileNotFoundError, TypeError, ValueError):
        return None


def stage_all(stage: Stage, count: int, workers: int) -> list[Staged]:
    """Stages records 0 to `count` in child processes; one result each, in order.

    A video at which a process dies is tried once more, as memory may have run out, and then given
    up.

    Args:
        stage: the task.
        count: records.
        workers: processes; 0 for one per core.

    Raises:
        OSError: as `Stage`.
        RuntimeError: no process can start.
    """
    workers = min(workers or os.cpu_count() or 1, count)
    show, found = Progress(), []
    running: collections.deque[concurrent.futures.Future[Staged]] = collections.deque()
    with (
        isolate.Children(stage, workers, _TIMEOUT) as children,
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
    ):
        try:
            for position in range(count + 4 * workers):
                if position < count:
                    running.append(pool.submit(_attempt, children, stage, position))
                if running and position >= 4 * workers:
                    found.append(running.popleft().result())
                    show(len(found), count)
        finally:
            show.end()
            pool.shutdown(wait=False, cancel_futures=True)
            children.close()
    return found


def _attempt(children: isolate.Children, stage: Stage, position: int) -> Staged:
    try:
        return children(position)
    except isolate.Crashed:
        try:
            return children(position)
        except isolate.Crashed as crash:
            return Staged(stage.records[position].id, -1, reason=crash.reason)


def replace(path: pathlib.Path, content: bytes) -> None:
    """Writes a whole file or nothing."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def only_writer(folder: pathlib.Path, wait: bool = False) -> Iterator[None]:
    """Makes `folder/.staging` and lets one process at a time work there; a killed one lets go.

    Args:
        folder: where to work.
        wait: for another process to end.

    Raises:
        BlockingIOError: another process is at work, and this one is not to wait.
        OSError: the folder cannot be written.
    """
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    with (folder / FOLDER / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
