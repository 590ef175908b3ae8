"""What every readable video has, however it is stored."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

LARGE = 64 << 20  # Bytes; larger local files are not kept in memory, nor are packets of theirs.


class VideoError(ValueError):
    """A source that gives no usable frames; the message is one short reason."""


class Header(NamedTuple):
    """Exact frame count, coded size in pixels (not rotated), codec name."""

    num_frames: int
    height: int
    width: int
    codec: str


class Readable(Protocol):
    """An open video: `decode.Video`, or single pictures."""

    header: Header
    damage: int
    """Frames given so far that are not those of an intact file."""
    fps: float
    """Mean frames per second; 0 if unknown."""

    def read(
        self,
        indices: Iterable[int],
        map_frame: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """Frames in the order asked, uint8 `[H, W, 3]` RGB, all of the first one's size.

        Repeated indices give the same array, made once by `map_frame`: do not write into it. A
        frame that cannot be decoded is the nearest wanted one that can.

        Raises:
            VideoError: none of the wanted frames can be decoded, or it took too long.
            IndexError: no index, or one outside `[0, num_frames)`.
        """

    def stream(self, indices: Iterable[int], map_frame: Any) -> Iterator[np.ndarray]:
        """Frames of ascending numbers, which may repeat, decoded once and not kept.

        A frame that cannot be decoded is the one before it; VideoError if there is none.
        """

    def at_rate(self, fps: float) -> np.ndarray:
        """Numbers of the frames shown at times 0, 1 / fps, 2 / fps ...; int64, ascending.

        Raises:
            VideoError: the frames have no times.
        """


def in_order(
    indices: Iterable[int], count: int, find: Callable[[set[int]], dict[int, np.ndarray]]
) -> tuple[list[np.ndarray], int]:
    """The frames of `Readable.read` of those that `find` gives, and how many it does not give."""
    order = [int(i) for i in indices]
    wanted = set(order)
    if not wanted or min(wanted) < 0 or max(wanted) >= count:
        raise IndexError(f"frames {sorted(wanted)} of a video of {count}")
    found = find(wanted)
    missing = wanted - found.keys()
    have = np.array(sorted(found))
    for index in missing:
        found[index] = found[int(have[np.argmin(np.abs(have - index))])]
    height, width = found[order[0]].shape[:2]
    for index, frame in found.items():
        if frame.shape[:2] != (height, width):
            found[index] = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
    return [found[index] for index in order], len(missing)
