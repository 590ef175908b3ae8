"""One run, or several in one command: each stage of a configuration in a folder of its own."""

import importlib.util
import json
import logging
import re
import statistics
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import matplotlib
from etils import epath

from mvm import compare, data, evaluate, runs, tasks, train
from mvm import config as schema
from mvm.figures import gallery, report
from mvm.runtime import checkpoint, metrics
from mvm.types import UserError, imported

log = logging.getLogger(__name__)

_PAUSE = 5.0  # Seconds until stages of other processes are looked at again.


def run(config: Any, workdir: epath.PathLike, given: Iterable[str] = ()) -> dict[str, float]:
    """Trains or evaluates, alone in `workdir`, or does so for every stage and compares them.

    `given` are the keys of the command line. Returns the last metrics and scores; none of stages.
    """
    workdir = epath.Path(workdir)
    if config.stages:
        _run_stages(config, workdir)
        return {}
    with runs.only_writer(workdir):
        return _run(config, workdir, given)


def _run(config: Any, workdir: epath.Path, given: Iterable[str]) -> dict[str, float]:
    config = config.copy_and_resolve_references()
    schema.validate(config)
    matplotlib.rcParams["savefig.format"] = config.report.format
    imported(config.task, config.mask.name)
    tasks.check(config, given)
    if config.evaluate and config.init_from:
        _as_trained(config, [*given])
    _split(config, workdir, bool(runs.begun(workdir)))
    _count(config)
    _check(config, workdir)
    _locate(config, workdir / "data")
    if command := tasks.command(config.task):
        return command(config, workdir)
    return (evaluate.evaluate if config.evaluate else train.train)(config, workdir)


def _has_data(config: Any) -> bool:
    d = config.data  # A folder alone becomes lists.
    return bool(d.root and not d.fetch) or any(data.sources(d, split) for split in data.SPLITS)


def _count(config: Any) -> None:
    """Given data, and boxes, tell the number of classes: so `:smoke` takes one's own clips."""
    spec = tasks.spec(config.task)
    if config.synthetic.num_pretrain and spec.labels and (spec.records or _has_data(config)):
        config.data.num_classes = 0


def _as_trained(config: Any, given: Iterable[str]) -> None:
    """Gives an evaluation what model and clips its run had, but for what was `given`."""
    source = runs.Source(config.init_from, "init_from")
    if not source.is_run:
        return
    theirs = source.config()
    if tasks.spec(theirs.task) is not tasks.spec(config.task):
        return
    was, now = schema.flat(theirs), schema.flat(config)
    clips = {f"data.{key}" for key in (*runs.OF_WEIGHTS, *runs.OF_CLIPS, "fps")}
    mine = {key for key in was if key.startswith(("model.", "mask.")) or key in clips}
    mine -= {*given, *schema.FREE}
    taken = {key: was[key] for key in sorted(mine) if was[key] != now.get(key)}
    own = {k: v for k, v in theirs.options.items() if f"options.{k}" not in given}
    config.options = {**config.options, **own}
    if taken:
        config.update_from_flattened_dict(taken)
        said = ", ".join(f"{key} {value}" for key, value in taken.items())
        log.info("as in init_from=%s: %s", config.init_from, said)


def _split(config: Any, workdir: epath.Path, begun: bool) -> None:
    """Makes lists the sources, where `data.root` is all that is given.

    They are those that this run began with, those of the run it starts from, or of its sweep, or
    new ones. An evaluation without data takes the folder of that run.
    """
    d, spec, known = config.data, tasks.spec(config.task), workdir if begun else None
    if config.init_from and (config.evaluate or not begun):
        known = known or runs.Source(config.init_from, "init_from").folder
    if d.fetch or spec.records or any(data.sources(d, split) for split in data.SPLITS):
        return
    places = [folder / runs.SPLIT for folder in (known, known.parent)] if known else []
    lists = next((place for place in places if (place / "classes.txt").exists()), None)
    if known and lists and config.evaluate and not d.root:
        d.root = runs.begun(known)["data"]["root"]
    if d.root and not spec.labels and tasks.command(config.task):
        d.root, d.test = "", d.root  # Features are of all videos.
    elif d.root:
        own = {"labelled": spec.labels, "seed": config.seed, "whole": bool(config.evaluate)}
        data.split(d, workdir / runs.SPLIT, lists, **own)


def _check(config: Any, workdir: epath.Path) -> None:
    """What is cheap to know, before anything is written, downloaded or computed."""
    runs.resumed(config, workdir)
    if config.train.wandb and not importlib.util.find_spec("wandb"):
        raise UserError("train.wandb needs the package: pip install wandb; or leave it out")
    if not config.evaluate:
        _check_best(config)
    given = {f"data.{split}": config.data[split] for split in data.SPLITS}
    given |= {f"data.mix.{name}.source": part.source for name, part in config.data.mix.items()}
    for key, path in given.items():
        if path and not re.match(r"\w+:", path) and not epath.Path(path).exists():
            raise UserError(f"{key}={path} does not exist")
    teacher = "" if config.evaluate else config.options.get("teacher", "")
    if teacher and not checkpoint.steps_in(workdir):
        runs.Source(teacher, "options.teacher")  # UserError if nothing is there.


def _check_best(config: Any) -> None:
    """Raises UserError for a train.keep_best that no check of the run will measure."""
    t, spec = config.train, tasks.spec(config.task)
    checked = config.data.val or not _has_data(config) if spec.labels else t.probe_every
    known = [f"val_{name}" for name in spec.scores if checked]
    if t.keep_best not in ("", *known) or (t.patience and not t.keep_best):
        key = "data.val" if spec.labels else "train.probe_every"
        choices = f"choose {', '.join(known)}" if known else f"nothing is checked without {key}"
        patience = f" with train.patience={t.patience}" if t.patience else ""
        raise UserError(f"train.keep_best={t.keep_best!r}{patience}; {choices}")


def _locate(config: Any, folder: epath.Path) -> None:
    """Gets videos and makes them the sources, if none are given.

    Moving shapes are written to `folder`, the data set of `data.fetch` to TFDS's, for all runs.
    """
    d, spec = config.data, tasks.spec(config.task)
    if _has_data(config):
        return
    if config.synthetic.num_pretrain:
        data.moving_shapes(folder, config.synthetic.to_dict())
        lists, kind = (folder / "boxes", "csv") if spec.records else (folder, "txt")
        d.root = str(folder) if spec.records else d.root
        d.train = str(lists / f"{'train' if spec.labels else 'pretrain'}.{kind}")
        if spec.labels or tasks.command(config.task):
            d.val, d.test = str(lists / f"val.{kind}"), str(lists / f"test.{kind}")
    elif d.fetch:
        d.train = data.fetch(d.fetch, d.root)
        if spec.labels:
            d.val = d.test = d.train


# --- Stages ---


def planned(config: Any, workdir: epath.Path) -> dict[str, Any]:
    """The stages of a configuration in their order, each the whole one with what it changes."""
    stages: dict[str, Any] = {}
    for name, given in config.stages.items():
        changes = {key: value for key, value in given.to_dict().items() if key not in compare.TOLD}
        own = config.copy_and_resolve_references()
        try:
            own.update(changes)
        except (KeyError, AttributeError, TypeError) as error:
            raise UserError(f"stages.{name}: {str(error).splitlines()[0]}") from error
        with own.unlocked():
            own.stages = {}
        schema.validate(own)
        imported(own.task, own.mask.name)
        tasks.check(own, schema.flat(given))
        if not isinstance(given.get("cost", 0), int | float):
            raise UserError(f"stages.{name}.cost={given.cost!r} is no number")
        if own.synthetic != config.synthetic:
            raise UserError(f"stages.{name} changes synthetic; all stages share one set of videos")
        own.name = f"{config.name}/{name}"
        if own.init_from in config.stages:
            if own.init_from not in stages:
                raise UserError(
                    f"stages.{name} starts from {own.init_from}, which does not come before it; "
                    f"write that first, in a ConfigDict with sort_keys=False"
                )
            own.init_from = str(workdir / own.init_from)
        _count(own)
        stages[name] = own
    return stages


def _run_stages(config: Any, workdir: epath.Path) -> None:
    """A finished stage is not run again, an unfinished one resumes.

    The same command may be started several times: each process takes the next stage that is free.
    """
    stages = planned(config, workdir)
    source = {name: given.get("init_from") for name, given in config.stages.items()}
    with runs.only_writer(workdir, wait=True):
        for name, own in stages.items():  # All of them, before the first is run.
            # One split for all.
            _split(own, workdir, source[name] in stages or (workdir / runs.SPLIT).exists())
            _check(own, workdir / name)
            _locate(own, workdir / "data")
    left, before = [*stages], 0
    while left:
        for name in [*left]:
            if source[name] not in left and _run_stage(config, workdir / name, stages[name]):
                left.remove(name)
        if len(left) not in (0, before):
            log.info("waiting for other processes: %d stages", before := len(left))
        time.sleep(_PAUSE * bool(left))
    if jax.process_index() == 0:
        with runs.only_writer(workdir, wait=True):
            for line in _summarise(workdir, config.stages):
                log.info("%s", line)


def _run_stage(config: Any, workdir: epath.Path, own: Any) -> bool:
    """Whether the stage is finished now; else another process is at work on it."""
    done, name = workdir / "final.json", workdir.name
    try:
        with runs.only_writer(workdir):
            if done.exists() and not runs.resumed(own, workdir)[1]:
                log.info("stage %s is finished", name)
                return True
            log.info("stage %s", name)
            values = _run(own, workdir, schema.flat(config.stages[name]))
            if jax.process_index() == 0:
                metrics.replace_text(done, json.dumps(values) + "\n")
            return True
    except runs.Busy:
        if jax.process_count() > 1:
            raise
        return False


def _summarise(workdir: epath.Path, stages: Mapping[str, Any]) -> list[str]:
    """Writes a report that compares the stages, and comparison.json; returns their tables.

    Stages of one "arm" (default: the stage's name), "cost" and "judge" are averaged.
    """
    found = compare.read([workdir / name for name in stages], stages)
    arms = compare.arms(found)
    values = {"arms": [arm._asdict() for arm in arms], "runs": [_row(run) for run in found]}
    finite = json.loads(json.dumps(values), parse_constant=lambda _: None)  # No NaN, no Infinity.
    metrics.replace_text(workdir / "comparison.json", json.dumps(finite, indent=1) + "\n")
    page = workdir / "report.html"
    gallery.attempt(lambda: report.write(workdir, compare.html(found, page, arms)))
    return [*compare.lines(found), *compare.means(arms)]


def _row(run: compare.Run) -> dict[str, Any]:
    """What comparison.json says of a run: scores, the last row, and the median of its speed."""
    rows = metrics.read_rows(run.folder / "speed.jsonl")
    speed = dict.fromkeys(key for row in rows for key in row if key != "step")
    return {
        "run": run.name,
        "init_from": epath.Path(run.config.get("init_from", "")).name,
        **run.told,
        "config": schema.changed(run.config),
        "last": metrics.last_values(run.folder / "metrics.jsonl"),
        "results": run.results,
        "warnings": run.warnings,
        "speed": {key: statistics.median(row[key] for row in rows if key in row) for key in speed},
    }
