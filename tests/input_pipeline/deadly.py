"""What workers are given; alone, for they import the whole module of it, and pytest is slow."""

import ctypes
import os
import sys

from input_pipeline.sources.records import Record


class Deadly(Record):
    """Ends the worker that opens it, as C code may do; elsewhere it cannot be read."""

    @property
    def source(self):
        if sys.argv[0].endswith("workers.py"):
            os.abort()
        return "/no/such/file.mp4"


def call(record, function, *args):
    """A task that calls what it is given."""
    return function(*args)


def hang():
    ctypes.PyDLL(None).sleep(100)  # With the interpreter held.
