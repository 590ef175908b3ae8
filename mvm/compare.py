"""Runs side by side: `python -m mvm.compare runs/*` prints a table and writes a page of curves."""

import argparse
import json
import logging
import os
import urllib.parse
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath

from mvm import config as schema
from mvm.figures import charts, report
from mvm.runtime import metrics
from mvm.types import UserError, first_line

log = logging.getLogger(__name__)


class Run(NamedTuple):
    """What is compared of a run directory."""

    folder: epath.Path
    name: str
    config: dict[str, Any]
    """By key, such as "optim.base_lr"."""
    rows: list[dict[str, float]]
    """Of metrics.jsonl, with the numbers alone."""
    results: dict[str, float]
    """Scores of the test list, if it was tested."""


def read(folders: Sequence[epath.PathLike]) -> list[Run]:
    """The runs of these folders; a line of the log says which are none, or damaged.

    Raises:
        UserError: if there is no run.
    """
    whole, runs = [os.path.abspath(folder) for folder in folders], []
    root = os.path.commonpath([os.path.dirname(path) for path in whole])
    for path, full in zip(map(epath.Path, folders), whole):
        name, config = os.path.relpath(full, root), _json(path / "config.json")
        if not config:
            log.warning("%s is left out: it has no config.json that can be read", path)
            continue
        rows = metrics.read_rows(path / "metrics.jsonl")
        rows = [{k: v for k, v in row.items() if isinstance(v, int | float)} for row in rows]
        results = {k: v for k, v in _json(path / "results.json").items() if isinstance(v, float)}
        runs.append(Run(path, name, schema.flat(config), rows, results))
    if not runs:
        raise UserError("none of these is a run; give run directories, such as runs/*")
    tasks = sorted({str(run.config.get("task")) for run in runs})
    if len(tasks) > 1:
        log.warning("runs of %s: their losses mean different things", ", ".join(tasks))
    return runs


def _json(path: epath.Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except (OSError, TypeError, ValueError) as error:
        log.warning("%s cannot be read (%s)", path, first_line(error))
        return {}


def table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: keys that differ, validation (best and last), test, the last loss.

    Of a long value, such as a path, it has the end.
    """
    columns: dict[str, list[Any]] = {}
    default = schema.flat(schema.defaults())
    for key in dict.fromkeys(key for run in runs for key in run.config):
        values = [_text(run.config.get(key, default.get(key, ""))) for run in runs]
        if len(set(values)) > 1 and key not in ("name", "report.format", "train.wandb"):
            columns[key] = values
    logged = sorted({k for run in runs for row in run.rows for k in row if k[:4] == "val_"})
    for key in [key for key in logged if key != "val_top5"]:
        choose = min if "loss" in key else max
        found = [[(row[key], row["step"]) for row in run.rows if key in row] for run in runs]
        tops = [choose(pairs, key=lambda pair: pair[0], default=None) for pairs in found]
        columns[f"{key} best"] = [f"{_text(top[0])} at {top[1]}" if top else "" for top in tops]
        columns[f"{key} last"] = [pairs[-1][0] if pairs else "" for pairs in found]
    for key in dict.fromkeys(k for run in runs for k in run.results if k != "top5"):
        columns[f"test {key}"] = [run.results.get(key, "") for run in runs]
    ends = [{k: v for row in run.rows for k, v in row.items()} for run in runs]
    columns |= {f"{key} last": [end.get(key, "") for end in ends] for key in ("loss", "step")}
    rows = [[_text(cell) for cell in row] for row in zip(*columns.values())]
    rows = [[c if len(c) < 25 else f"..{c[-22:]}" for c in row] for row in rows]
    return ["run", *columns], [[run.name, *row] for run, row in zip(runs, rows)]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def lines(runs: Sequence[Run]) -> list[str]:
    """The table as text."""
    head, rows = table(runs)
    wide = [max(map(len, column)) for column in zip(head, *rows)]
    return ["  ".join(map(str.ljust, row, wide)).rstrip() for row in (head, *rows)]


def html(runs: Sequence[Run], page: epath.Path) -> str:
    """Table and overlaid curves for a page; the picture is left beside it."""
    (head, rows), picture = table(runs), page.with_name(f"{page.stem}_curves.png")
    cells = [[report.text(cell) for cell in row] for row in rows]
    for run, row in zip(runs, cells):
        if (own := run.folder / "report.html").exists():
            link = urllib.parse.quote(os.path.relpath(own, page.parent))
            row[0] = f'<a href="{link}">{row[0]}</a>'
    body = report.table(cells, *map(report.text, head))
    if any(run.rows for run in runs):
        charts.curves(picture, {run.name: run.rows for run in runs})
        body += report.image(picture, "Curves")
    return body


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m mvm.compare", description=__doc__)
    parser.add_argument("runs", nargs="+", help="run directories")
    parser.add_argument("--out", default="compare.html", help="the page")
    given = parser.parse_args(argv)
    try:
        runs, out = read(given.runs), epath.Path(given.out)
        print(*lines(runs), sep="\n")
        report.page(out, "Comparison", f"{len(runs)} runs; accuracies in percent", html(runs, out))
    except (OSError, UserError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
