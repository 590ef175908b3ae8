"""How a command of this package begins and ends."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Of `python -m input_pipeline.NAME`, described by the first line of its module."""
    line = (doc or "").split("\n")[0]
    return argparse.ArgumentParser(prog=f"python -m input_pipeline.{name}", description=line)


def run(main: Callable[[], int]) -> NoReturn:
    """Exits with what `main` returns; after Ctrl-C with one line and 130."""
    try:
        code = main()
    except KeyboardInterrupt:
        code = 130
    if code == 130:  # Here `main` has let go of its workers.
        print("stopped by Ctrl-C", file=sys.stderr)
    sys.exit(code)
