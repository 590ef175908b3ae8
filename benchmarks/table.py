"""What benchmarks share: times of a call, and a Markdown table with machine, versions, commit."""

import argparse
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Of a command line, with the flags that all benchmarks have."""
    raw = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(description=doc, formatter_class=raw)
    made.add_argument("--smoke", action="store_true", help="tiny and short, to see that it runs")
    made.add_argument("--json", default="", help="file for all numbers")
    return made


def show(rows: Sequence[Mapping[str, str]], numbers: Any, path: str, *packages: str) -> None:
    """Prints rows and where they were measured; all numbers go to a file, if there is a path."""
    if rows:
        print(markdown(rows))
    print(f"\n{where(*packages)}")
    if path:
        text = json.dumps(numbers, indent=2, default=str)
        pathlib.Path(path).write_text(text + "\n")


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of equal keys as a table whose columns are aligned in the terminal, too."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, ["-" * width for width in widths])
    cells = ([cell.ljust(width) for cell, width in zip(line, widths)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def where(*packages: str) -> str:
    """The CPU, the versions of these packages and the commit, in one line."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    git = ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    found = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
    said = [f"{len(os.sched_getaffinity(0)) if sys.platform == 'linux' else os.cpu_count()} cores"]
    said += [names[0] if names else platform.machine(), f"Python {platform.python_version()}"]
    said += [f"{package} {metadata.version(package)}" for package in packages]
    return ", ".join([*said, f"commit {found.stdout.strip() or 'unknown'}"])


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[Any, float, float]:
    """What a call returns, its seconds, and the CPU seconds of this process meanwhile."""
    began, began_cpu = time.perf_counter(), time.process_time()
    result = call(*arguments)
    return result, time.perf_counter() - began, time.process_time() - began_cpu


def peak_gb() -> float:
    """Most memory that this process has had, GB of 1e9 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
