"""How a command of this package begins and ends."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from input_pipeline.sources.records import DataError


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Of `python -m input_pipeline.NAME`, described by the first line of its module."""
    line = (doc or "").split("\n")[0]
    return argparse.ArgumentParser(prog=f"python -m input_pipeline.{name}", description=line)


def check(given: argparse.Namespace, **allowed: tuple[float, float]) -> None:
    """Raises DataError for an option outside its range, both ends included."""
    for name, (low, high) in allowed.items():
        if not low <= (value := getattr(given, name)) <= high:
            option = name.replace("_", "-")
            raise DataError(f"--{option} {value}; choose {low:g} to {high:g}")


def run(main: Callable[[], int]) -> NoReturn:
    """Exits with what `main` returns; with one line and 2 for bad data, and 130 after Ctrl-C."""
    line = ""
    try:
        code = main()
    except (DataError, OSError) as error:
        code, line = 2, f"error: {error}"
    except KeyboardInterrupt:
        code, line = 130, "stopped by Ctrl-C"
    if line:  # Here `main` has let go of its workers.
        print(line, file=sys.stderr)
    sys.exit(code)
