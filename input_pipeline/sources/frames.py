"""Videos stored as single pictures: a folder of numbered files, or encoded pictures in memory."""

import io
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from etils import epath

from input_pipeline.video.base import LARGE, Header, VideoError, in_order

EXTENSIONS = frozenset(["jpg", "jpeg", "png", "webp", "bmp"])

# A bad picture is counted and named by its record; OpenCV's own lines name nothing.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class Stills(NamedTuple):
    """The frames of one video, each an encoded picture.

    Attributes:
        frames: in order, each a path or the bytes of a JPEG, PNG, WebP or BMP picture.
        reason: why there are none, if the source knows.
    """

    frames: tuple[str | bytes, ...]
    reason: str = ""


class Numbered(NamedTuple):
    """The frames of one video as numbered files of a folder; no file is looked for.

    Attributes:
        folder: local or remote (`gs://`).
        template: file name of frame number n by `str.format`, such as "img_{:05}.jpg".
        first: number of the first frame.
        total: how many frames.
    """

    folder: str
    template: str
    first: int
    total: int

    def path(self, index: int) -> str:
        """File of frame `index`, counted from 0."""
        return f"{self.folder.rstrip('/')}/{self.template.format(self.first + index)}"


class Folder(NamedTuple):
    """The frames of one video: all pictures of a folder, `2.jpg` before `10.jpg`."""

    path: str


Pictures = Stills | Numbered | Folder  # what `decode.open_video` opens as one video


def stills(pictures: Pictures) -> Stills:
    """The frames themselves.

    Raises:
        VideoError: a folder that cannot be listed.
    """
    if isinstance(pictures, Stills):
        return pictures
    if isinstance(pictures, Numbered):
        return Stills(tuple(map(pictures.path, range(pictures.total))))
    try:
        names = [path.name for path in epath.Path(pictures.path).iterdir() if is_picture(path.name)]
    except FileNotFoundError as error:
        raise VideoError("no such folder") from error
    except Exception as error:  # Each remote backend has its own error classes.
        raise VideoError(f"cannot be listed ({type(error).__name__})") from error
    paths = tuple(f"{pictures.path.rstrip('/')}/{name}" for name in sorted(names, key=natural))
    return Stills(paths, "" if paths else "no pictures in the folder")


def is_picture(name: str) -> bool:
    """Whether a file name is that of a picture; hidden files are none."""
    return name.rpartition(".")[2].lower() in EXTENSIONS and not name.startswith(".")


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key by which `img_2` is before `img_10`."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part) if i % 2 else 0, part) for i, part in enumerate(parts)], name


class StillVideo:
    """Reads pictures as `decode.Video` reads a file: only those that are wanted.

    Attributes:
        header: number of pictures, height and width of the first one in pixels.
        damage: wanted pictures that could not be read so far; each is the nearest one that could.
        fps: 0, as nobody knows.
    """

    def __init__(self, pictures: Pictures, min_frames: int):
        """Reads the first picture for the header, or if it is bad the middle or the last one.

        Raises:
            VideoError: fewer than `min_frames` pictures, or all three are bad (the first one's
                reason is shown).
        """
        self._frames, reason = stills(pictures)
        count = len(self._frames)
        if reason and not count:
            raise VideoError(reason)
        if count < min_frames:
            plural = "" if count == 1 else "s"
            raise VideoError(f"{count} frame{plural}, fewer than data.min_frames={min_frames}")
        self.damage, self.fps = 0, 0.0
        self._kept: dict[int, np.ndarray] = {}
        for index in dict.fromkeys((0, count // 2, count - 1)):
            try:
                image = _picture(self._frames[index])
            except VideoError as error:
                reason = reason or f"{_name(self._frames[0], 0)} {error}"
                continue
            self._kept[index] = image  # Often wanted next.
            break
        if not self._kept:
            raise VideoError(f"pictures cannot be read: {reason}")
        self.header = Header(count, image.shape[0], image.shape[1], "stills")

    def read(
        self,
        indices: Iterable[int],
        map_frame: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """Frames in the order asked; no other picture is read.

        Args:
            indices: frame numbers in `[0, num_frames)`; repeats are allowed.
            map_frame: applied once to each different frame, for example to shrink it.

        Returns:
            uint8 `[H, W, 3]` RGB arrays as stored (EXIF turns nothing), all of the first one's
            size. Repeated indices give the same array: do not write into it.

        Raises:
            VideoError: none of the wanted pictures can be read.
            IndexError: an index outside `[0, num_frames)`.
        """

        def find(wanted: set[int]) -> dict[int, np.ndarray]:
            found: dict[int, np.ndarray] = {}
            reason = ""
            for index in sorted(wanted):
                try:
                    image = self._kept.get(index)
                    image = _picture(self._frames[index]) if image is None else image
                except VideoError as error:
                    reason = reason or f"{_name(self._frames[index], index)} {error}"
                    continue
                found[index] = image if map_frame is None else map_frame(image)
            if not found:
                raise VideoError(f"none of the wanted pictures can be read: {reason}")
            return found

        frames, missing = in_order(indices, self.header.num_frames, find)
        self.damage += missing
        return frames

    def at_rate(self, fps: float) -> np.ndarray:
        """Pictures have no times.

        Raises:
            VideoError: always.
        """
        raise VideoError("single pictures have no times; set data.fps=0")


def read_bytes(path: str) -> bytes:
    """A whole file.

    Raises:
        VideoError: as `open_file`.
    """
    with open_file(path) as file:
        return file.read()


def open_file(path: str) -> BinaryIO:
    """A file, remote (`gs://`) and small ones in memory.

    Raises:
        VideoError: it cannot be read; the message is one short reason.
    """
    if "://" in path:
        try:
            return io.BytesIO(epath.Path(path).read_bytes())
        except Exception as error:  # Each remote backend has its own error classes.
            name, text = type(error).__name__, " ".join(str(error).split())[:100]
            raise VideoError(f"cannot be read ({name}: {text})") from error
    try:
        file = pathlib.Path(path)
        return file.open("rb") if file.stat().st_size >= LARGE else io.BytesIO(file.read_bytes())
    except FileNotFoundError as error:
        raise VideoError("no such file") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise VideoError(f"cannot be read ({reason})") from error


def _picture(frame: str | bytes) -> np.ndarray:
    """uint8 `[H, W, 3]` RGB of a gray, 16-bit, transparent or plain picture."""
    data = read_bytes(frame) if isinstance(frame, str) else frame
    if not data:
        raise VideoError("is empty (0 bytes)")
    # Some builds of OpenCV fill a cut JPEG with gray instead of refusing it. A thumbnail inside
    # has an end mark of its own, but never in the second half.
    cut = data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") < len(data) // 2
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = None if cut else cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise VideoError("is cut off" if cut else "is not a picture that OpenCV can read")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _name(frame: str | bytes, index: int) -> str:
    return frame.rpartition("/")[2] if isinstance(frame, str) else f"picture {index}"
