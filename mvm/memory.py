"""The C library's memory, where XLA computes in it."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Names of glibc's options, from malloc.h."""


def keep_freed() -> bool:
    """Asks glibc to keep freed memory for the next request; returns whether it will.

    XLA on CPU asks for the temporary arrays of every step anew. By default large requests are
    mapped fresh and unmapped again, and the kernel clears each of their pages on first touch,
    which is a third of the CPU time of a small model's step (docs/benchmarks.md).

    Note:
        The process then holds on to its peak. Other C libraries are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
