"""How a command of this package begins and ends."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from input_pipeline.sources import load as sources
from input_pipeline.sources.records import DataError, Record


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Of `python -m input_pipeline.NAME`, described by the first line of its module."""
    line = (doc or "").split("\n")[0]
    form = argparse.ArgumentDefaultsHelpFormatter
    return argparse.ArgumentParser(
        f"python -m input_pipeline.{name}", None, line, formatter_class=form
    )


def add_source(parser: argparse.ArgumentParser) -> None:
    """The options that name a list, for `load`."""
    parser.add_argument("list", metavar="LIST", help="what data.train takes: a list, folder, ...")
    parser.add_argument("--root", default="", help="as data.root")
    parser.add_argument("--num-classes", type=int, default=0, help="as data.num_classes")
    parser.add_argument("--split", default="train", choices=["train", "val", "test"])


def load(given: argparse.Namespace) -> tuple[Sequence[Record], list[str]]:
    """The records that the options of `add_source` name, and class names as far as known."""
    parts = [sources.Source(given.list, given.root)]
    records = sources.load_records(parts, given.num_classes, given.split)
    return records, [name for one in sources.named(parts) for name in one.names]


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
