"""The C library's memory, where XLA computes in it."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
"""Names of glibc's options, from malloc.h."""

LARGEST_KEPT = 2**28
"""Bytes. What a step asks for beyond that is mapped afresh: kept, it would hardly ever be whole
again for the next step, and the process would grow by as much each time."""


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
    mallopt = _glibc("mallopt")
    if mallopt is None:
        return False
    kept = [mallopt(_ARENA_MAX, 1), mallopt(_TRIM_THRESHOLD, 2**31 - 1)]
    # Old versions take no more than 32 MB; there nothing is mapped at all.
    kept.append(mallopt(_MMAP_THRESHOLD, LARGEST_KEPT) or mallopt(_MMAP_MAX, 0))
    return all(kept)


def give_back() -> None:
    """Hands what is free back to the kernel, such as what compiling a step needed."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(name: str) -> "ctypes._NamedFuncPointer | None":
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)
