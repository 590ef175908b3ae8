"""Videos stored as single pictures: a folder of numbered files, or encoded pictures in memory."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from input_pipeline.video import Header, VideoError


class Stills(NamedTuple):
    """The frames of one video, each an encoded picture.

    Attributes:
        frames: in order, each a path or the bytes of a JPEG, PNG or WebP picture.
    """

    frames: tuple[str | bytes, ...]


class StillVideo:
    """Reads `Stills` as `decode.Video` reads a file: only the pictures that are wanted."""

    def __init__(self, stills: Stills, min_frames: int):
        self.header = Header(len(stills.frames), 0, 0, "stills")
        self.damage = 0

    def read(
        self,
        indices: Iterable[int],
        map_frame: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        raise VideoError("not yet")

    def at_rate(self, fps: float) -> np.ndarray:
        raise VideoError("single pictures have no times; set data.fps=0")
