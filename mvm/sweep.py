"""One run, or several in one command: each stage of a configuration in a folder of its own."""

import importlib.util
import json
import logging
import re
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import matplotlib
from etils import epath

from mvm import compare, data, evaluate, runs, tasks, train
from mvm import config as schema
from mvm.figures import gallery, report
from mvm.runtime import checkpoint, metrics
from mvm.types import UserError, imported

log = logging.getLogger(__name__)


def run(config: Any, workdir: epath.PathLike, given: Iterable[str] = ()) -> dict[str, float]:
    """Trains or evaluates, alone in `workdir`, or does so for every stage and compares them.

    `given` are the keys of the command line. Returns the last metrics and scores; none of stages.
    """
    with runs.only_writer(workdir):
        workdir = epath.Path(workdir)
        if config.stages:
            _run_stages(config, workdir)
            return {}
        schema.validate(config)
        matplotlib.rcParams["savefig.format"] = config.report.format
        imported(config.task, config.mask.name)
        tasks.check(config, given)
        config = _counted(_split(config, workdir, bool(runs.begun(workdir))))
        _check(config, workdir)
        config = located(config, workdir / "data")
        if command := tasks.command(config.task):
            return command(config, workdir)
        return (evaluate.evaluate if config.evaluate else train.train)(config, workdir)


def _has_data(config: Any) -> bool:
    d = config.data  # A folder alone becomes lists.
    return bool(d.root and not d.fetch) or any(data.sources(d, split) for split in data.SPLITS)


def _counted(config: Any) -> Any:
    """With as many classes as given data have: so a `:smoke` variant takes one's own clips."""
    if _has_data(config) and config.synthetic.num_pretrain and _labelled(config):
        config.data.num_classes = 0
    return config


def _split(config: Any, workdir: epath.Path, begun: bool) -> Any:
    """The configuration with lists as sources, where `data.root` is all that is given.

    They are those that this run began with, those of the run it starts from, or new ones. An
    evaluation without data takes the folder of that run, and sees whole frames if that did.
    """
    config = config.copy_and_resolve_references()
    d, labelled, known = config.data, _labelled(config), workdir if begun else None
    if config.init_from and (config.evaluate or not begun):
        source = runs.Source(config.init_from, "init_from")
        known = known or source.folder
        if config.evaluate and source.config().data.crop == "fit":
            d.crop = "fit"
    if d.fetch or tasks.spec(config.task).records or any(data.sources(d, s) for s in data.SPLITS):
        return config
    lists = known / runs.SPLIT if known and (known / runs.SPLIT).exists() else None
    if known and lists and config.evaluate and not d.root:
        d.root = runs.begun(known)["data"]["root"]
    if d.root and not labelled and tasks.command(config.task):
        d.root, d.test = "", d.root  # Features are of all videos.
    elif d.root:
        whole = bool(config.evaluate)
        data.split(d, workdir / runs.SPLIT, lists, labelled=labelled, seed=config.seed, whole=whole)
    return config


def _labelled(config: Any) -> bool:
    return tasks.spec(config.task).labels


def _changes(config: Any, workdir: epath.Path) -> dict[str, str]:
    return runs.check_config(runs.as_begun(config, workdir), workdir)


def _check(config: Any, workdir: epath.Path) -> None:
    """What is cheap to know, before anything is written, downloaded or computed."""
    _changes(config, workdir)
    if config.train.wandb and not importlib.util.find_spec("wandb"):
        raise UserError("train.wandb needs the package: pip install wandb; or leave it out")
    if not config.evaluate:
        _check_best(config)
    given = {f"data.{split}": config.data[split] for split in data.SPLITS}
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
    before: str
    """The stage that it starts from, if any."""


def planned(config: Any, workdir: epath.Path) -> dict[str, Stage]:
    """The stages of a configuration, each the whole one with what the stage changes.

    In the order written (a plain `ConfigDict` sorts: `sort_keys=False`), but a stage that
    `init_from` names comes before. Stages of one "arm" (default: the stage's name) are a group.
    """
    stages = {}
    for name, given in config.stages.items():
        changes = given.to_dict()
        arm = changes.pop("arm", name)
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
        own.name = f"{config.name}/{name}"
        before = own.init_from if own.init_from in config.stages else ""
        if before:
            own.init_from = str(workdir / before)
        stages[name] = Stage(_counted(own), arm, before)
    ordered: dict[str, Stage] = {}
    for name in stages:
        chain: list[str] = []
        while name and name not in ordered:
            if name in chain:
                raise UserError(f"stages start from each other: {' <- '.join([*chain, name])}")
            chain.append(name)
            name = stages[name].before
        ordered |= {one: stages[one] for one in reversed(chain)}
    return ordered


def _run_stages(config: Any, workdir: epath.Path) -> None:
    """A finished stage is not run again, an unfinished one resumes."""
    stages = planned(config, workdir)
    finals: dict[str, dict[str, float]] = {}
    for name, stage in stages.items():  # All of them, before the first is run.
        _changes(stage.config, workdir / name)
    for name, stage in stages.items():
        own = _split(stage.config, workdir, (workdir / runs.SPLIT).exists())  # One for all.
        own, done = located(own, workdir / "data"), workdir / name / "final.json"
        if done.exists() and not _changes(own, workdir / name):
            log.info("stage %s is finished", name)
            finals[name] = json.loads(done.read_text())
            continue
        log.info("stage %s", name)
        finals[name] = run(own, workdir / name)
        if jax.process_index() == 0:
            metrics.replace_text(done, json.dumps(finals[name]) + "\n")
    if jax.process_index() == 0:
        for line in _summarise(workdir, stages, finals):
            log.info("%s", line)


def _summarise(
    workdir: epath.Path, stages: Mapping[str, Stage], finals: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """Writes a report that compares the stages; returns its table and the means of the arms."""
    arms: dict[str, list[float]] = {}
    for name, stage in stages.items():
        if "test_top1" in finals[name]:
            arms.setdefault(stage.arm, []).append(finals[name]["test_top1"])
    means = []
    for arm, values in arms.items():
        spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        means.append(f"{arm} {statistics.mean(values):.1f}{spread} %")
    said = [f"test accuracy: {', '.join(means)}"] if means else []
    found, page = compare.read([workdir / name for name in stages]), workdir / "report.html"
    gallery.attempt(lambda: report.write(workdir, {"Runs": compare.html(found, page, said)}))
    return [*compare.lines(found), *said]
