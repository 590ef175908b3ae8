"""Records in one piece of memory, which workers share where a list would be copied."""

import pickle
from array import array
from collections.abc import Iterable

import numpy as np

from input_pipeline.sources.records import LazyRecords, Record


class Table(LazyRecords):
    """The given records, each made anew when it is asked for.

    Processes that `isolate.Children` starts with it read the same two arrays.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        rows, ends = bytearray(), array("q", [0])
        for record in records:
            rows += pickle.dumps(tuple(record), 5)
            ends.append(len(rows))
        self._rows, self._ends = np.frombuffer(rows, np.uint8), np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def at(self, position: int) -> Record:
        """The record at a position from 0 on."""
        begin, end = self._ends[position : position + 2]
        return Record(*pickle.loads(self._rows[begin:end].data))
