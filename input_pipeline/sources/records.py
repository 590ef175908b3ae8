"""What every source of videos gives: records; and the record of those that could not be read."""

import abc
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from input_pipeline.sources.frames import Pictures

_LOG = logging.getLogger(__name__)

ANY = 2**31  # num_classes where labels are wanted, however many; they are int32 in a batch


class DataError(ValueError):
    """Data that cannot be used as given; the message is one line with the cure."""


class Record(NamedTuple):
    """One video."""

    id: str  # Unique in its source.
    path: str  # Where it is; opened if `data` is None, else only named in messages.
    label: int  # -1 where the source has none.
    data: bytes | Pictures | None = None  # The encoded file or its single pictures.
    stride: int = 0  # Frames between samples, where this source has its own.
    truth: Any = ()  # What is annotated of it beyond a label, such as segments or boxes.

    @property
    def source(self) -> str | bytes | Pictures:
        """What `decode.open_video` opens."""
        return self.path if self.data is None else self.data


class LazyRecords(Sequence[Record]):
    """Records made when they are asked for, one by one; a subclass says how many and `at`."""

    num_classes = 0  # As many as the source says it has; 0 where it does not.

    @abc.abstractmethod
    def at(self, position: int) -> Record:
        """The record at a position from 0 on."""

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.at(index)


class Failures(dict[str, str]):
    """Why, by id, each record that could not be read cannot; logs each id once."""

    def add(self, name: str, reason: str) -> None:
        if name not in self:
            self[name] = reason
            _LOG.warning("cannot use video %s: %s", name, reason)
