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
from input_pipeline.transforms import clips, crops

_NAMED = 20  # Classes in a line.


class Data(NamedTuple):
    """What a command looks at."""

    splits: dict[str, Sequence[Record]]
    names: tuple[str, ...]  # Of the classes, as far as known.
    spec: ClipSpec  # Of training clips.

    def lines(self) -> list[str]:
        """One for each split: its videos, and those of each class unless that takes reading."""
        lines = []
        for split, found in self.splits.items():
            lazy = any(isinstance(part.records, LazyRecords) for part in sources.parts_of(found))
            labels = (record.label for record in ([] if lazy else found))
            count = Counter(label for label in labels if label >= 0)
            named = [f"{self.names[n] if self.names else n} {count[n]}" for n in sorted(count)]
            more = [f"... {len(named)} classes"] * (len(named) > _NAMED)
            said = f": {', '.join(named[:_NAMED] + more)}" if named else ""
            lines.append(f"{split}: {len(found)} videos{said}")
        return lines


def parser(name: str, doc: str | None, reads: bool = True) -> argparse.ArgumentParser:
    """Of `python -m input_pipeline.NAME`, which `reads` a list or the splits of a recipe, or not.

    The first line of its module describes it.
    """
    line = (doc or "").split("\n")[0]
    form = argparse.ArgumentDefaultsHelpFormatter
    made = argparse.ArgumentParser(
        f"python -m input_pipeline.{name}", None, line, formatter_class=form
    )
    if reads:
        made.add_argument("list", metavar="LIST", nargs="?", help="what data.train takes")
        made.add_argument("--config", help="a recipe, for LIST; keys as --config.data.root=FOLDER")
        made.add_argument("--root", default="", help="of LIST, as data.root")
        made.add_argument("--num-classes", type=int, default=0, help="of LIST, as data.num_classes")
        made.add_argument("--split", choices=["train", "val", "test"], help="this one alone")
    return made


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[Any, Data]:
    """Options, and the records that they name; DataError for what is not there."""
    every = sys.argv[1:] if argv is None else argv
    keys = [one for one in every if one.startswith("--config.")]
    given = parser.parse_intermixed_args([one for one in every if one not in keys])
    if bool(given.list) == bool(given.config) or (keys and not given.config):
        parser.error("give LIST, or --config=RECIPE --config.KEY=VALUE")
    if given.config:
        found = _of_recipe([f"--config={given.config}", *keys])
    else:
        part, split = sources.Source(given.list, given.root), given.split or "train"
        records = sources.load_records([part], given.num_classes, split)
        found = Data({split: records}, sources.reference(sources.named([part])).names, ClipSpec())
    some = {s: r for s, r in found.splits.items() if given.split in (None, s)}
    if not some:
        raise DataError(f"--split={given.split}: there is only {', '.join(found.splits)}")
    return given, found._replace(splits=some)


def _of_recipe(keys: Sequence[str]) -> Data:
    """What training by a recipe sees: of its configuration `data`, `task` and `seed`."""
    known, argv = flags.FlagValues(), ["", *keys]
    holder = config_flags.DEFINE_config_file("config", flag_values=known, sys_argv=argv)
    try:
        known(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        said = str(error).replace("\\n", " ").replace("\\'", "").strip("'").splitlines()[-1]
        raise DataError(f"{keys[0]}: {said.removeprefix('ValueError: ')}") from error
    d, task = holder.value.data, holder.value.task
    for key, rules in (("sampling", ("released", *clips.SAMPLING)), ("crop", tuple(crops.CROPS))):
        if d[key] not in rules:
            raise DataError(f"data.{key}={d[key]!r}; choose {', '.join(rules)}")
    spec = elements.spec_of(d, "train", task if task in clips.SAMPLING else "finetune")
    parts = {split: sources.given(d, split) for split in ("train", "val", "test")}
    if not any(parts.values()):
        if not d.root or d.fetch:
            raise DataError("there is no data: give --config.data.root=FOLDER or data.train=LIST")
        columns = d.path_column, d.label_column
        folder = folders.find(d.root, task != "pretrain", holder.value.seed, columns)
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
