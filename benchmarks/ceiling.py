"""How our pipeline grows with threads and with cores while nothing takes its batches."""

import os
import sys
from collections.abc import Sequence

from benchmarks.rates import Numbers, cpus, measure
from input_pipeline.elements import ClipSpec
from input_pipeline.sources.records import Record

HEAD = (
    "| mode | input | threads | cores | clips/s | times the first | CPU-ms a clip |\n"
    "|---|---|---|---|---|---|---|"
)


def scaling(
    records: Sequence[Record], spec: ClipSpec, *, seconds: float, batch_size: int, mode: str
) -> list[Numbers]:
    """Measures 1, 2, 4 ... threads on all cores, then (on Linux) each on as many cores.

    Returns:
        `rates.measure`'s numbers and "threads" and "bound" (1 where cores were as many) of each.
    """
    allowed = os.sched_getaffinity(0) if sys.platform == "linux" else set()
    counts = [1 << power for power in range(cpus().bit_length())]
    measured = []
    for bound in (False, True) if allowed else (False,):
        for threads in counts:
            if bound:
                os.sched_setaffinity(0, sorted(allowed)[:threads])  # New threads inherit it.
            try:
                numbers = measure(
                    records,
                    spec,
                    seconds=seconds,
                    threads=threads,
                    workers=0,
                    batch_size=batch_size,
                    mode=mode,
                )
            finally:
                if bound:
                    os.sched_setaffinity(0, allowed)
            measured.append(numbers | {"threads": threads, "bound": float(bound)})
    return measured


def rows(mode: str, name: str, measured: Sequence[Numbers]) -> list[str]:
    """Lines of the table for what `scaling` gave."""
    lines = []
    for numbers in measured:
        first = next(other for other in measured if other["bound"] == numbers["bound"])
        times = numbers["clips_per_s"] / first["clips_per_s"]
        cores = f"{numbers['cores']:g}" if numbers["bound"] else "all"
        cells = [mode, name, f"{numbers['threads']:g}", cores, f"{numbers['clips_per_s']:.1f}"]
        cells += [f"{times:.2f}", f"{numbers['cpu_ms_per_clip']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
