"""Runs side by side: `python -m mvm.compare runs/*` prints a table and writes a page of curves.

Of `comparison.json` files of sweeps it takes the scores, also where the runs are no more.
"""

import argparse
import json
import logging
import os
import statistics
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, isnan, nan
from typing import Any, NamedTuple

from etils import epath
from scipy import special

from mvm import config as schema
from mvm import health
from mvm.figures import charts, report
from mvm.runtime import metrics
from mvm.types import UserError, first_line

log = logging.getLogger(__name__)

NEIGHBOURS = "nearest neighbours"
"""What judges beside a probe."""
TOLD = ("arm", "cost", "judge")
"""What a stage of a sweep says of itself, for `arms`."""
_MOST = 30  # Runs whose curves are drawn.
# The first that there is stands for a run.
_PICTURES = ("overview", "boxes", "timeline", "masks", "clips")


class Run(NamedTuple):
    """What is compared of a run directory."""

    folder: epath.Path
    name: str
    config: dict[str, Any]
    """By key, such as "optim.base_lr"."""
    rows: list[dict[str, float]]
    """Of metrics.jsonl, with the numbers alone."""
    results: dict[str, float]
    """Numbers of results.json, if it was tested."""
    warnings: list[str]
    """What was wrong at its end."""
    told: Mapping[str, Any]
    """What its sweep says of it (`TOLD`)."""

    @property
    def arm(self) -> str:
        return str(self.told.get("arm", self.name))


def read(
    folders: Sequence[epath.PathLike], told: Mapping[str, Mapping[str, Any]] = {}
) -> list[Run]:
    """The runs of these folders, or of a sweep's; the log says which are none, or damaged.

    `told` are stages of a sweep, by the name of their folder. All may be comparison.json files.
    """
    paths, runs = list[epath.Path](), []
    for path in map(epath.Path, folders):
        stages = [] if (path / "config.json").exists() else sorted(path.glob("*/config.json"))
        paths += [file.parent for file in stages] or [path]
    root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    if all(path.suffix == ".json" for path in paths):
        runs, paths = [run for path in paths for run in _recorded(path, root)], []
    for path in paths:
        name, config = os.path.relpath(path, root), _json(path / "config.json")
        if not config:
            log.warning("%s is left out: it has no config.json that can be read", path)
            continue
        rows = [*map(_numbers, metrics.read_rows(path / "metrics.jsonl"))]
        results = _numbers(_json(path / "results.json"))
        warned = path / "warnings.txt"
        warnings = warned.read_text().splitlines() if warned.exists() else []
        about = _about(told.get(path.name, {}))
        runs.append(Run(path, name, schema.flat(config), rows, results, warnings, about))
    if not runs:
        raise UserError("none of these is a run; give run directories, such as runs/*")
    tasks = sorted({str(run.config.get("task")) for run in runs})
    if len(tasks) > 1:
        log.warning("runs of %s: their losses mean different things", ", ".join(tasks))
    return runs


def _recorded(path: epath.Path, root: str) -> list[Run]:
    """The runs of a sweep as its comparison.json has them, without what was logged."""
    runs, default = [], schema.flat(schema.defaults())
    try:
        for row in _json(path)["runs"]:
            folder, config, about = path.parent / row["run"], default | row["config"], _about(row)
            results, warned = _numbers(row["results"]), list(row["warnings"])
            name = os.path.relpath(folder, root)
            runs.append(Run(folder, name, config, [], results, warned, about))
    except (AttributeError, KeyError, TypeError, ValueError):
        log.warning("%s is left out: it is no comparison.json of this version", path)
        return []
    return runs


def _about(stage: Mapping[str, Any]) -> dict[str, Any]:
    about = {key: stage[key] for key in TOLD if key in stage}
    return about | {"cost": float(about.get("cost", 0.0))}


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {k: v for k, v in row.items() if isinstance(v, int | float) and isfinite(v)}


def _json(path: epath.Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except (OSError, TypeError, ValueError) as error:
        log.warning("%s cannot be read (%s)", path, first_line(error))
        return {}


class Arm(NamedTuple):
    """Scores of runs that differ in their seed alone."""

    name: str
    cost: float
    """Of training, in the unit of the comparison; 0 if none is told."""
    judge: str
    """What the scores are, in percent."""
    scores: list[float]
    mean: float
    error: float
    """Half of the mean's 95 % interval: by Student's t over runs; of one run by its number of test
    videos, NaN where that is not told."""

    @property
    def score(self) -> str:
        return f"{self.mean:.1f}" + ("" if isnan(self.error) else f" +- {self.error:.1f}")

    def __str__(self) -> str:
        return f"{self.name}{f' ({self.cost:g})' if self.cost else ''} {self.score} %"


def arms(runs: Sequence[Run]) -> list[Arm]:
    """Scored runs by arm (default: the run), cost and judge.

    A probe's nearest neighbours are a judge of their own.
    """
    found = dict[tuple[str, float, str], list[Run]]()
    for run in runs:
        judges = {run.told.get("judge", "test accuracy"): "top1", NEIGHBOURS: "knn"}
        for judge, score in judges.items():
            if score in run.results:
                key = run.arm, run.told.get("cost", 0.0), judge
                found.setdefault(key, []).append(run)
    out = []
    for key, own in found.items():
        scores = [run.results["knn" if key[2] == NEIGHBOURS else "top1"] for run in own]
        n, count = len(scores), int(own[0].results.get("num_videos", 0))
        if n > 1:
            error = float(special.stdtrit(n - 1, 0.975)) * statistics.stdev(scores) / n**0.5
        else:
            error = 1.96 * health.error(scores[0], count) if count else nan
        out.append(Arm(*key, scores, statistics.mean(scores), error))
    return out


def means(found: Sequence[Arm]) -> list[str]:
    """A line for each judge."""
    judges = dict.fromkeys(arm.judge for arm in found)
    return [f"{one}: {', '.join(str(a) for a in found if a.judge == one)}" for one in judges]


def table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]], list[str]]:
    """Head and rows: test, validation (best and last), the last loss, and keys that differ.

    Of a long value, such as a path, it has the end. Lines name the best run by validation (*), and
    what runs warned of.
    """
    keys, columns = dict[str, list[Any]](), dict[str, list[Any]]()
    best, said = "", list[str]()
    default = schema.flat(schema.defaults())
    for key in dict.fromkeys(key for run in runs for key in run.config):
        values = [_text(run.config.get(key, default.get(key, ""))) for run in runs]
        told = set(map(_told, runs, values))
        if len(told) > 1 and key not in ("name", "report.format", "train.wandb"):
            keys[key] = values
    scores = (k for run in runs for k, v in run.results.items() if isinstance(v, float))
    for key in dict.fromkeys(k for k in scores if k not in ("top5", "resampled_to")):
        columns[f"test {key}"] = [run.results.get(key, "") for run in runs]
    logged = {k for run in runs for row in run.rows for k in row if k[:4] == "val_"} - {"val_top5"}
    keep = [run.config.get("train.keep_best") for run in runs]
    for key in sorted(logged, key=lambda k: (k not in keep, k != "val_top1", "loss" in k, k)):
        choose = min if "loss" in key else max
        found = [[(row[key], row["step"]) for row in run.rows if key in row] for run in runs]
        tops = [choose(pairs, key=lambda pair: pair[0], default=None) for pairs in found]
        columns[f"{key} best"] = [f"{_text(top[0])} at {top[1]}" if top else "" for top in tops]
        columns[f"{key} last"] = [pairs[-1][0] if pairs else "" for pairs in found]
        kept = [pairs if k == key else pairs[-1:] for k, pairs in zip(keep, found)]
        checks = {run.name: choose(pairs)[0] for run, pairs in zip(runs, kept) if pairs}
        if not said and len(checks) > 1 and "data.val" not in keys:
            top = choose(checks.values())
            tied = [run for run in runs if checks.get(run.name) == top]
            best, *others = [run.name for run in sorted(tied, key=_least_loss)]
            said = [
                f"best by validation: {best} (*), {key} {_text(top)}{_certain(tied[0], key, top)}"
            ]
            said += [f"as good: {', '.join(others)}, of no lower val_loss"] if others else []
    ends = [{k: v for row in run.rows for k, v in row.items()} for run in runs]
    columns |= {f"{key} last": [end.get(key, "") for end in ends] for key in ("loss", "step")}
    columns |= keys
    cells = [[f"..{c[-22:]}" if c[24:] else c for c in map(_text, v)] for v in columns.values()]
    names = [run.name + " *" * (run.name == best) for run in runs]
    said += [f"{run.name}: WARNING {line}" for run in runs for line in run.warnings]
    return ["run", *columns], [[*row] for row in zip(names, *cells)], said


def _certain(run: Run, key: str, percent: float) -> str:
    """How many videos an accuracy is of, and its standard error as `health.error` has it."""
    path = epath.Path(str(run.config.get("data.val", "")))
    listed = path.read_text().split("\n") if path.suffix == ".txt" and path.is_file() else []
    count = sum(bool(line.strip()) for line in listed)
    if "loss" in key or not count:
        return ""
    return f" of {count} videos, give or take {health.error(percent, count):.0f}"


def _least_loss(run: Run) -> float:
    return min((row["val_loss"] for row in run.rows if "val_loss" in row), default=float("inf"))


def _told(run: Run, value: str) -> str:
    """The text of a list below `data.root`, of which each run may have a copy; else the value."""
    is_list = run.config.get("data.root") and value[-4:] == ".txt" and os.path.isfile(value)
    return epath.Path(value).read_text() if is_list else value


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def lines(runs: Sequence[Run]) -> list[str]:
    """The table as text."""
    head, rows, said = table(runs)
    wide = [max(map(len, column)) for column in zip(head, *rows)]
    return ["  ".join(map(str.ljust, row, wide)).rstrip() for row in (head, *rows)] + said


def _by_judge(found: Sequence[Arm]) -> str:
    """A table of arms by cost, and of their scores by judge."""
    judges, rows = dict.fromkeys(arm.judge for arm in found), dict[Any, dict[str, str]]()
    head = ["arm", "cost"][: 1 + any(arm.cost for arm in found)]
    for arm in sorted(found, key=lambda arm: arm.cost):
        key = (arm.name, f"{arm.cost:g}")[: len(head)]
        rows.setdefault(key, {})[arm.judge] = arm.score
    cells = ([*key, *(own.get(judge, "") for judge in judges)] for key, own in rows.items())
    head += [f"{judge}, %" for judge in judges]
    return report.table((map(report.text, row) for row in cells), *map(report.text, head))


def html(runs: Sequence[Run], page: epath.Path, of_arms: Sequence[Arm]) -> dict[str, str]:
    """Sections of a page; its charts are left beside it."""
    head, rows, said = table(runs)
    cells = [[report.text(cell) for cell in row] for row in rows]
    strip, charted = dict[str, str](), ""
    for run, row in zip(runs, cells):
        if (own := run.folder / "report.html").exists():
            link = urllib.parse.quote(os.path.relpath(own, page.parent))
            row[0] = f'<a href="{link}">{row[0]}</a>'
            drawn = [run.folder / "figures" / f"{name}.png" for name in _PICTURES]
            if run.arm not in strip and (drawn := [path for path in drawn if path.exists()]):
                strip[run.arm] = report.image(drawn[0], report.text(run.arm), link)
    if of_arms:
        chart = charts.against_cost if any(arm.cost for arm in of_arms) else charts.accuracies
        chart(picture := page.with_name(f"{page.stem}_accuracy.png"), of_arms)
        charted = report.image(picture, "Test accuracy, %") + _by_judge(of_arms)
    warned = [line for line in said if ": WARNING " in line]
    charted += _lines(line for line in said if line not in warned)
    picture = page.with_name(f"{page.stem}_curves.png")
    if len(runs) <= _MOST and charts.curves(picture, {run.name: run.rows for run in runs}):
        charted += report.image(picture, "Training")
    summary = f"<details><summary>Warnings: {len(warned)}</summary>{_lines(warned)}</details>"
    return {
        "What they see": f'<div class="strip">{"".join(strip.values())}</div>' * bool(strip),
        "How they did": charted,
        "Runs": report.table(cells, *map(report.text, head)) + summary * bool(warned),
    }


def _lines(found: Iterable[str]) -> str:
    return "".join(f"<p>{report.text(line)}</p>" for line in found)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m mvm.compare", description=__doc__)
    parser.add_argument("runs", nargs="+", help="run directories, or comparison.json files")
    parser.add_argument("--out", default="compare.html", help="the page")
    given = parser.parse_args(argv)
    try:
        runs, out = read(given.runs), epath.Path(given.out)
        found, title = arms(runs), f"{len(runs)} runs; accuracies in percent"
        said = means(found) if any(len(arm.scores) > 1 for arm in found) else []
        print(*lines(runs), *said, sep="\n")
        body = html(runs, out, found)
        report.page(out, "Comparison", title, body)
    except (OSError, UserError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
