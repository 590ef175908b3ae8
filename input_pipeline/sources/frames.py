"""Videos stored as single pictures: a folder of numbered files, or encoded pictures in memory."""

import contextlib
import io
import itertools
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from etils import epath

from input_pipeline.video.base import LARGE, Header, MapFrame, Readable, VideoError

# What FFmpeg reads as video and names by extension.
_NAMES = (
    "264 265 3g2 3gp amv apng asf avi divx dv f4v flv gif h264 h265 hevc ivf m1v m2t m2ts m2v m4v "
    "mj2 mjpeg mjpg mk3d mkv mov mp4 mp4v mpe mpeg mpg mpg4 mpv mts mxf nut obu ogg ogm ogv qt rm "
    "rmvb swf ts vob webm wmv wtv xvid y4m"
)
_VIDEO = frozenset(_NAMES.split())
_PICTURE = frozenset(["jpg", "jpeg", "png", "webp", "bmp"])

# A bad picture is counted and named by its record; OpenCV's own lines name nothing.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class Stills(NamedTuple):
    """The frames of one video, each an encoded picture."""

    frames: tuple[str | bytes, ...]  # In order, each a path or the bytes of a picture.
    reason: str = ""  # Why there are none, if the source knows.


class Numbered(NamedTuple):
    """The frames of one video as numbered files of a folder; no file is looked for."""

    folder: str
    template: str  # File name of frame number n by `str.format`.
    first: int
    total: int

    def path(self, index: int) -> str:
        """File of frame `index`, counted from 0."""
        return f"{self.folder}/{self.template.format(self.first + index)}"


Pictures = Stills | Numbered


def is_video(path: str) -> bool:
    """Whether a file is called like a video."""
    _, dot, extension = path.rpartition(".")
    return bool(dot) and extension.lower() in _VIDEO


def is_picture(name: str) -> bool:
    """Whether a file is called like a picture; hidden ones are none."""
    return name.rpartition(".")[2].lower() in _PICTURE and not name.startswith(".")


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key by which `img_2` is before `img_10`."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part) if i % 2 else 0, part) for i, part in enumerate(parts)], name


def pictures_in(source: str | bytes | Pictures) -> Stills | None:
    """The frames of a source of single pictures, which a path to a folder is, too; else None."""
    if isinstance(source, Stills):
        return source
    if isinstance(source, Numbered):
        return Stills(tuple(map(source.path, range(source.total))))
    if isinstance(source, bytes) or is_video(source):
        return None
    with reading():
        if not (folder := epath.Path(source)).is_dir():
            return None
        names = sorted(filter(is_picture, (path.name for path in folder.iterdir())), key=natural)
    paths = tuple(f"{source}/{name}" for name in names)
    return Stills(paths, "" if paths else "no pictures in the folder")


class StillVideo(Readable):
    """Pictures as a video; only those that are wanted are read, and EXIF turns nothing."""

    def __init__(self, pictures: Stills, min_frames: int):
        self._frames, reason = pictures
        count = len(self._frames)
        if reason or count < min_frames:
            raise VideoError(reason or f"{count} frames, fewer than data.min_frames={min_frames}")
        for index in (0, count // 2, count - 1):
            with contextlib.suppress(VideoError):
                height, width, _ = self._picture(index).shape
                self.header = Header(count, height, width, "stills")
                return
        self._picture(0)  # Says why.

    def _find(self, wanted: set[int], map_frame: MapFrame) -> dict[int, np.ndarray]:
        found: dict[int, np.ndarray] = {}
        reason = ""
        for index in sorted(wanted):
            try:
                image = self._picture(index)
            except VideoError as error:
                reason = reason or str(error)
                continue
            found[index] = image if map_frame is None else map_frame(image)
        if not found:
            raise VideoError(f"none of the wanted pictures can be read: {reason}")
        return found

    def stream(self, indices: Iterable[int], map_frame: MapFrame) -> Iterator[np.ndarray]:
        order = iter(indices)
        while some := list(itertools.islice(order, 16)):  # Few at a time.
            yield from self.read(some, map_frame)

    def _picture(self, index: int) -> np.ndarray:
        """uint8 `[H, W, 3]` RGB of a gray, 16-bit, transparent or plain picture."""
        frame = self._frames[index]
        name = frame.rpartition("/")[2] if isinstance(frame, str) else f"picture {index}"
        data = read_bytes(frame, f"{name}: ")
        # Some builds of OpenCV fill a cut JPEG with gray instead of refusing it. A thumbnail inside
        # has an end mark of its own, but never in the second half.
        if data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") < len(data) // 2:
            raise VideoError(f"{name}: cut off")
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        image = None
        with contextlib.suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if image is None:
            raise VideoError(f"{name}: no picture OpenCV can read ({len(data)} bytes)")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


class DecodedVideo(StillVideo):
    """Frames uint8 `[n, H, W, 3]` as a video of no known rate: they are those of any."""

    def __init__(self, frames: np.ndarray):
        self._images = frames
        n, h, w, _ = frames.shape
        self.header = Header(n, h, w, "frames")

    def at_rate(self, fps: float) -> np.ndarray:
        return np.arange(len(self._images))

    def _picture(self, index: int) -> np.ndarray:
        return self._images[index]


@contextlib.contextmanager
def reading(name: str = "") -> Iterator[None]:
    """Gives errors of files, for which each remote backend has its own classes, as a VideoError."""
    try:
        yield
    except FileNotFoundError as error:
        raise VideoError(f"{name}no such file") from error
    except Exception as error:
        reason = " ".join(str(getattr(error, "strerror", "") or error).split())[:100]
        raise VideoError(f"{name}cannot be read ({type(error).__name__}: {reason})") from error


def read_bytes(source: str | bytes, name: str = "") -> bytes:
    """A whole file, unless these are its bytes; VideoError as `open_file`."""
    if isinstance(source, bytes):
        return source
    with open_file(source, name) as file:
        return file.read()


def open_file(path: str, name: str = "") -> BinaryIO:
    """A file, remote (`gs://`) and small ones in memory; VideoError says `name` and a reason."""
    with reading(name):
        if "://" in path:
            return io.BytesIO(epath.Path(path).read_bytes())
        file = pathlib.Path(path)
        return file.open("rb") if file.stat().st_size >= LARGE else io.BytesIO(file.read_bytes())
