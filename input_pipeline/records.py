"""What every source of videos gives: records; and the record of those that could not be read."""

import logging
import threading
from typing import NamedTuple

from input_pipeline.stills import Pictures

_LOG = logging.getLogger(__name__)


class Record(NamedTuple):
    """One video.

    Attributes:
        id: a name unique in its source.
        path: where it is; opened if `data` is None, else only named in messages.
        label: class number, -1 where the source has none.
        data: the encoded file or its single pictures, if it is no file at `path`.
        num_frames: 0 where the source does not know.
        stride: frames between samples, where this source has its own; 0 = `data.frame_stride`.
    """

    id: str
    path: str
    label: int
    data: bytes | Pictures | None = None
    num_frames: int = 0
    stride: int = 0

    @property
    def source(self) -> str | bytes | Pictures:
        """What `decode.open_video` opens."""
        return self.path if self.data is None else self.data


class DataError(ValueError):
    """Data that cannot be used as given; the message is one line with the cure."""


class Failures:
    """Records that could not be read, safe to share between threads; logs each id once.

    Attributes:
        count: failed reads, repeats included.
    """

    def __init__(self) -> None:
        self.count = 0
        self._reasons: dict[str, str] = {}
        self._lock = threading.Lock()

    def add(self, name: str, reason: str) -> None:
        """Notes one failed read of record `name`."""
        with self._lock:
            self.count += 1
            known = name in self._reasons
            self._reasons.setdefault(name, reason)
        if not known:
            _LOG.warning("cannot use video %s: %s", name, reason)

    @property
    def items(self) -> list[tuple[str, str]]:
        """`(record id, reason)` of each record once, in the order first met."""
        with self._lock:
            return list(self._reasons.items())
