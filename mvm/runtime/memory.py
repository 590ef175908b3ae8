"""The C library's memory, where XLA computes in it."""

import ctypes
import sys
from typing import Any


def tune_allocator() -> None:
    """Has glibc keep freed memory for the next request; call it before there are threads.

    XLA on CPU asks for the temporary arrays of every step anew. By default large requests are
    mapped fresh, and the kernel clears their pages on first touch: a third of the CPU time of a
    small model's step (docs/benchmarks.md). The process then holds on to its peak.
    """
    if mallopt := _glibc("mallopt"):
        mallopt(-8, 1)  # M_ARENA_MAX: threads with a heap of their own map large requests.
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        # M_MMAP_THRESHOLD: larger blocks would hardly ever be whole again for the next step. Old
        # versions take no more than 32 MB; there nothing is mapped at all (M_MMAP_MAX).
        _ = mallopt(-3, 2**28) or mallopt(-4, 0)


def give_back() -> None:
    """Hands what is free back to the kernel, such as what compiling a step needed."""
    if trim := _glibc("malloc_trim"):
        trim(0)


def _glibc(name: str) -> Any:
    """A function of the C library; None where there is none, as on other systems than Linux."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
