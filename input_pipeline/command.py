"""How a command of this package begins and ends."""

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from absl import flags
from ml_collections import config_flags

from input_pipeline import elements
from input_pipeline.elements import ClipSpec
from input_pipeline.sources import folders
from input_pipeline.sources import load as sources
from input_pipeline.sources.records import ANY, DataError, LazyRecords, Record
from input_pipeline.transforms import clips

_NAMED = 20  # Classes that are counted one by one.


class Data(NamedTuple):
    """What a command looks at."""

    splits: dict[str, Sequence[Record]]
    names: tuple[str, ...]
    """Of the classes, as far as known."""
    spec: ClipSpec
    """Of training clips."""

    def lines(self) -> list[str]:
        """One for each split: its videos, and those of each class."""
        return [
            f"{split}: {len(found)} videos{self._said(found)}" for split, found in self[0].items()
        ]

    def _said(self, found: Sequence[Record]) -> str:
        if any(isinstance(part.records, LazyRecords) for part in sources.parts_of(found)):
            return ""  # Labels would have to be read.
        count = Counter(record.label for record in found if record.label >= 0)
        if len(self.names) > _NAMED or (count and not self.names):
            some = count.values()
            return f" of {len(count)} classes, {min(some)} to {max(some)} each"
        said = [f"{name} {count[label]}" for label, name in enumerate(self.names)]
        return f": {', '.join(said)}" * bool(said)


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Of `python -m input_pipeline.NAME`, described by the first line of its module."""
    line = (doc or "").split("\n")[0]
    form = argparse.ArgumentDefaultsHelpFormatter
    return argparse.ArgumentParser(
        f"python -m input_pipeline.{name}", None, line, formatter_class=form
    )


def add_source(parser: argparse.ArgumentParser, recipe: bool = False) -> None:
    """The options that name a list, for `load`; or a recipe in its place, for `parse`."""
    nargs, split = ("?", "") if recipe else (None, "train")
    parser.add_argument("list", metavar="LIST", nargs=nargs, help="what data.train takes")
    parser.add_argument("--root", default="", help="of LIST, as data.root")
    parser.add_argument("--num-classes", type=int, default=0, help="of LIST, as data.num_classes")
    parser.add_argument("--split", default=split, choices=["train", "val", "test"])
    if recipe:
        text = "a recipe, for LIST; its keys as --config.data.root=FOLDER"
        parser.add_argument("--config", help=text)


def load(given: argparse.Namespace) -> Data:
    """The records that LIST names, and class names as far as known."""
    part, split = sources.Source(given.list, given.root), given.split or "train"
    records = sources.load_records([part], given.num_classes, split)
    return Data({split: records}, sources.reference(sources.named([part])).names, ClipSpec())


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[Any, Data]:
    """Options, and what they name: LIST, or the splits that a recipe has.

    Raises:
        DataError: no recipe, key, value or data is called so.
    """
    add_source(parser, recipe=True)
    every = sys.argv[1:] if argv is None else argv
    keys = [one for one in every if one.startswith("--config.")]
    given = parser.parse_args([one for one in every if one not in keys])
    if bool(given.list) == bool(given.config) or (keys and not given.config):
        parser.error("give LIST, or --config=RECIPE --config.KEY=VALUE")
    found = _of_recipe([f"--config={given.config}", *keys]) if given.config else load(given)
    if given.split not in {"", *found.splits}:
        raise DataError(f"--split={given.split}: there is only {', '.join(found.splits)}")
    some = {s: records for s, records in found.splits.items() if given.split in ("", s)}
    return given, found._replace(splits=some)


def _of_recipe(keys: Sequence[str]) -> Data:
    """What training by a recipe sees: of its configuration `data`, `task` and `seed`."""
    known, argv = flags.FlagValues(), ["", *keys]
    holder = config_flags.DEFINE_config_file("config", flag_values=known, sys_argv=argv)
    try:
        known(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        said = str(error).replace("\\n", " ").replace("\\'", "").strip("'")
        raise DataError(f"{keys[0]}: {said.splitlines()[-1]}") from error
    d, task = holder.value.data, holder.value.task
    spec = elements.spec_of(d, "train", task if task in clips.SAMPLING else "finetune")
    parts = {split: sources.given(d, split) for split in ("train", "val", "test")}
    if not any(parts.values()):
        if not d.root or d.fetch:
            raise DataError("there is no data: give --config.data.root=FOLDER or data.train=LIST")
        columns = d.path_column, d.label_column
        folder = folders.find(d.root, task != "pretrain", holder.value.seed, d.template, columns)
        return Data({**folder.splits}, folder.classes, spec)
    first = sources.reference(sources.named([*itertools.chain(*parts.values())]))
    wanted = ANY if task != "pretrain" and (first.names or d.num_classes) else 0
    order = first if first.names else None
    found = {s: sources.load_records(p, wanted, s, order) for s, p in parts.items() if p}
    return Data(found, first.names, spec)


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
