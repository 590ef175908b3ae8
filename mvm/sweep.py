"""One run, or several in one command: each stage of a configuration in a folder of its own."""

import graphlib
import json
import logging
import re
import statistics
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
from etils import epath

from mvm import config as schema
from mvm import data, evaluate, initial, runs, tasks, train
from mvm.figures import charts, gallery, report
from mvm.runtime import checkpoint, metrics
from mvm.types import UserError

log = logging.getLogger(__name__)
_SPLITS = ("train", "val", "test")


def run(config: Any, workdir: epath.PathLike) -> dict[str, float]:
    """Trains or evaluates, alone in `workdir`, or does so for every stage and compares them.

    Returns:
        The last metrics and scores; nothing of stages.
    """
    with runs.only_writer(workdir):
        workdir = epath.Path(workdir)
        if config.stages:
            _run_stages(config, workdir)
            return {}
        schema.validate(config)
        if _has_data(config) and config.synthetic.num_pretrain and _labelled(config):
            # As many classes as given data have: so a `:smoke` variant takes one's own clips.
            config = config.copy_and_resolve_references()
            config.data.num_classes = 0
        _check(config, workdir)
        config = located(config, workdir / "data")
        if command := tasks.command(config.task):
            return command(config, workdir)
        return (evaluate.evaluate if config.evaluate else train.train)(config, workdir)


def _has_data(config: Any) -> bool:
    return any(data.sources(config.data, split) for split in _SPLITS)


def _labelled(config: Any) -> bool:
    return tasks.spec(config.task).labels


def _changes(config: Any, workdir: epath.Path) -> dict[str, str]:
    return runs.check_config(runs.as_begun(config, workdir), workdir)


def _check(config: Any, workdir: epath.Path) -> None:
    """What is cheap to know, before anything is written, downloaded or computed."""
    _changes(config, workdir)
    if not config.evaluate:
        _check_best(config)
    given = {f"data.{split}": config.data[split] for split in _SPLITS}
    given |= {f"data.mix.{name}.source": part.source for name, part in config.data.mix.items()}
    for key, path in given.items():
        if path and not re.match(r"\w+:", path) and not epath.Path(path).exists():
            raise UserError(f"{key}={path} does not exist")
    starts = {"init_from": config.init_from}
    if not config.evaluate:
        starts["options.teacher"] = config.options.get("teacher", "")
    for key, path in starts.items():
        if path and not checkpoint.steps_in(workdir):
            runs.Source(path, key)  # UserError if nothing is there.


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


def located(config: Any, folder: epath.Path) -> Any:
    """The configuration with its own videos there and its lists pointing at them.

    It stays as it is if data is given or a task needs annotations. Moving shapes are written to
    `folder`, the data set of `data.fetch` to TFDS's folder, for all runs.
    """
    if tasks.spec(config.task).records or _has_data(config):
        return config
    config = config.copy_and_resolve_references()
    d, labelled = config.data, _labelled(config)
    if config.synthetic.num_pretrain:
        lists = data.moving_shapes(folder, config.synthetic.to_dict())
        d.train = str(lists.train if labelled else lists.pretrain)
        if labelled:
            d.val, d.test = str(lists.val), str(lists.test)
    elif d.fetch:
        d.train = data.fetch(d.fetch, d.root)
        if labelled:
            d.val = d.test = d.train
    return config


# --- Stages ---


class Stage(NamedTuple):
    """A run of several."""

    config: Any
    arm: str
    """Stages of one arm differ in their seed; their scores are averaged."""
    strategy: str
    """Arms of one strategy differ in their budget; they share a line of the chart."""
    before: str
    """The stage that it starts from, if any."""


def planned(config: Any, workdir: epath.Path) -> dict[str, Stage]:
    """The stages of a configuration, each the whole one with what the stage changes.

    "arm" (default: the stage's name) and "strategy" (default: the arm) group them. A stage's
    `init_from` may name another stage, which then comes before it.

    Raises:
        UserError: if a stage sets a key that does not exist, or stages start from each other.
    """
    stages = {}
    for name, given in config.stages.items():
        changes = given.to_dict()
        arm = changes.pop("arm", name)
        strategy = changes.pop("strategy", arm)
        own = config.copy_and_resolve_references()
        try:
            own.update(changes)
        except (KeyError, AttributeError, TypeError) as error:
            raise UserError(f"stages.{name}: {str(error).splitlines()[0]}") from error
        with own.unlocked():
            own.stages = {}
        schema.validate(own)
        own.name = f"{config.name}/{name}"
        before = own.init_from if own.init_from in config.stages else ""
        if before:
            own.init_from = str(workdir / before)
        stages[name] = Stage(own, arm, strategy, before)
    befores = {name: {stage.before} - {""} for name, stage in stages.items()}
    try:
        return {name: stages[name] for name in graphlib.TopologicalSorter(befores).static_order()}
    except graphlib.CycleError as error:
        raise UserError(f"stages start from each other: {' -> '.join(error.args[1])}") from error


def _run_stages(config: Any, workdir: epath.Path) -> None:
    """A finished stage is not run again, an unfinished one resumes."""
    stages = planned(config, workdir)
    finals: dict[str, dict[str, float]] = {}
    for name, stage in stages.items():  # All of them, before the first is run.
        _changes(stage.config, workdir / name)
    for name, stage in stages.items():
        own, done = located(stage.config, workdir / "data"), workdir / name / "final.json"
        if done.exists() and not _changes(own, workdir / name):
            log.info("stage %s is finished", name)
            finals[name] = json.loads(done.read_text())
            continue
        log.info("stage %s", name)
        began = time.monotonic()
        finals[name] = run(own, workdir / name)
        finals[name]["seconds"] = time.monotonic() - began
        if jax.process_index() == 0:
            metrics.replace_text(done, json.dumps(finals[name]) + "\n")
    if jax.process_index() == 0:
        for line in _summarise(config, workdir, stages, finals):
            log.info("%s", line)


def tflop(config: Any, steps: float) -> float:
    """Floating-point operations of training, 1e12: of the matrix products that we do."""
    task = tasks.build(config)
    return task.work(executed=True) * steps * config.train.batch_size * config.data.repeats / 1e12


def _summarise(
    config: Any,
    workdir: epath.Path,
    stages: Mapping[str, Stage],
    finals: Mapping[str, Mapping[str, float]],
) -> list[str]:
    """Writes summary.json, figures and report; returns what is worth a line of the log."""
    accuracies: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    compute: dict[str, float] = {}
    points: dict[str, list[tuple[float, float]]] = {}  # Of pre-trained arms, by strategy.
    scratch: list[float] = []
    for name, (_, arm, strategy, before) in stages.items():
        seconds.setdefault(arm, []).append(finals[name]["seconds"])
        if (top1 := finals[name].get("test_top1")) is not None:
            accuracies.setdefault(arm, []).append(top1)
            compute[arm] = tflop(stages[before].config, finals[before]["step"]) if before else 0.0
            if before:
                points.setdefault(strategy, []).append((compute[arm], top1))
            else:
                scratch.append(top1)
    lines = [f"{arm}: {statistics.mean(s):.0f} s" for arm, s in seconds.items()]
    scored = []
    for arm, values in accuracies.items():
        spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        scored.append(f"{arm} {statistics.mean(values):.1f}{spread} %")
    lines += [f"test accuracy: {', '.join(scored)}"] if scored else []
    summary = {"title": config.name, "lines": lines, "accuracies": accuracies}
    summary |= {"compute": compute, "seconds": seconds}
    metrics.replace_text(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    folder = workdir / "figures"
    chance = 100.0 / config.data.num_classes if config.data.num_classes else None
    several = sum(bool(spent) for spent in compute.values()) > 1
    gallery.attempt(
        partial(folder.mkdir, parents=True, exist_ok=True),
        lambda: accuracies and charts.accuracies(folder / "accuracies.png", accuracies, chance),
        lambda: several and charts.compute(folder / "compute.png", points, scratch, chance),
        partial(_draw_strategies, folder / "strategies.png", workdir, stages),
        partial(report.write, workdir),
    )
    return lines


def _draw_strategies(path: epath.Path, workdir: epath.Path, stages: Mapping[str, Stage]) -> None:
    """What the masks of several strategies choose, each with the last of its models."""
    chosen = {
        stage.config.mask.name: (name, stage.config)
        for name, stage in stages.items()
        if not tasks.spec(stage.config.task).labels
    }
    if len(chosen) > 1:
        trained = {}
        for mask, (name, own) in chosen.items():
            task = tasks.build_vit(own)
            trained[mask] = task, initial.params(str(workdir / name), task.abstract)
        first = located(next(iter(chosen.values()))[1], workdir / "data")
        found = data.records(data.sources(first.data, "train"))
        gallery.draw_strategies(path, trained, found, first.seed)
