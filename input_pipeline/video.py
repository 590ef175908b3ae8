"""What every readable video has, however it is stored."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import numpy as np


class VideoError(ValueError):
    """A source that gives no usable frames; the message is one short reason."""


class Header(NamedTuple):
    """What one demux tells: exact frame count, coded size in pixels (not rotated), codec name."""

    num_frames: int
    height: int
    width: int
    codec: str


class Readable(Protocol):
    """An open video; see `decode.Video` for what each part promises."""

    header: Header
    damage: int

    def read(
        self,
        indices: Iterable[int],
        map_frame: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> list[np.ndarray]: ...

    def at_rate(self, fps: float) -> np.ndarray:
        """Numbers of the frames shown at times 0, 1 / fps, 2 / fps ...; int64, ascending.

        Raises:
            VideoError: the frames have no times.
        """
