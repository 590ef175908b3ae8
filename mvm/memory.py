"""The C library's memory, where XLA computes in it."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Names of glibc's options, from malloc.h."""


def keep_freed() -> bool:
    """Asks glibc to keep freed memory for the next request; returns whether it will.

    XLA on CPU asks for the temporary arrays of every step anew. By default large requests are
    mapped fresh and unmapped again, and the kernel clears each of their pages on first touch,
    which is a third of the CPU time of a small model's step (docs/benchmarks.md).

    Note:
        Call it before there are threads: those that have a heap of their own keep it, and there any
        request above 64 MB is mapped fresh, whatever is asked here. The process then holds on to
        its peak. Other C libraries are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    options = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1))
    return mallopt is not None and all(mallopt(name, value) for name, value in options)
