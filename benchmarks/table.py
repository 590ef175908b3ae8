"""What benchmarks share: times of a call, and a Markdown table with machine, versions, commit."""

import argparse
import json
import os
import pathlib
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
FORMATS = {"M": ".1f", "GMAC": ".2f", "here": ".2f", "MFU": ".1%"}
"""Of numbers in a column; elsewhere they have four digits."""


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Of a command line, with the flags that all benchmarks have."""
    raw = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(description=doc, formatter_class=raw)
    made.add_argument("--smoke", action="store_true", help="tiny and short, to see that it runs")
    made.add_argument("--json", default="", help="file for all numbers")
    return made


def show(rows: Sequence[Mapping[str, Any]], numbers: Any, path: str, *packages: str) -> None:
    """Prints a table and where it was measured; all numbers go to a file, if there is a path.

    Columns are those of the first row, aligned in the terminal, too.
    """
    if rows:
        lines = [[*rows[0]], *([cell(head, row.get(head, "")) for head in rows[0]] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines)]
        lines.insert(1, ["-" * width for width in widths])
        for line in lines:
            print(f"| {' | '.join(map(str.ljust, line, widths))} |")
    print(f"\n{where(*packages)}")
    if path:
        pathlib.Path(path).write_text(json.dumps(numbers, indent=2, default=str) + "\n")


def beside(rows: Sequence[dict[str, Any]], *heads: str) -> list[dict[str, Any]]:
    """Rows, and how many times as much as the first they have in these columns."""
    ratios = [{f"x {head}": row[head] / rows[0][head] for head in heads} for row in rows]
    return [row | more for row, more in zip(rows, ratios)]


def cell(head: str, value: Any) -> str:
    """A value of a column as text."""
    if isinstance(value, list):
        return " / ".join(cell(head, one) for one in value)
    if isinstance(value, float):
        return format(value, FORMATS.get(head, ".4g"))
    return "-" if value is None else str(value)


def where(*packages: str) -> str:
    """The CPU, the versions of these packages and the commit, in one line."""
    info = pathlib.Path("/proc/cpuinfo")
    names = re.findall("model name.*: (.*)", info.read_text()) if info.is_file() else []
    git = ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    found = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
    said = [f"{len(os.sched_getaffinity(0)) if sys.platform == 'linux' else os.cpu_count()} cores"]
    said += [names[0] if names else platform.machine(), f"Python {platform.python_version()}"]
    said += [f"{package} {metadata.version(package)}" for package in packages]
    return ", ".join([*said, f"commit {found.stdout.strip() or 'unknown'}"])


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[Any, dict[str, float]]:
    """What a call returns, and its seconds, CPU seconds and most memory of this process so far."""
    began, began_cpu = time.perf_counter(), time.process_time()
    result = call(*arguments)
    took = {"s": time.perf_counter() - began, "cpu_s": time.process_time() - began_cpu}
    unit = 1 if sys.platform == "darwin" else 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return result, took | {"gb": most / 1e9}
