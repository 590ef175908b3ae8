"""Several runs in one command: each stage of a configuration in a sub-directory of its own."""

import json
import logging
import re
import statistics
import time
from functools import partial
from typing import Any, NamedTuple

import jax
from etils import epath

from mvm import config as keys
from mvm import (
    data,
    evaluate,
    tasks,
)
from mvm import (
    figures as visualize,
)
from mvm import (
    runs as workdirs,
)
from mvm import (
    train as trainer,
)
from mvm.figures import gallery, report
from mvm.runtime import checkpoint
from mvm.runtime import flops as cost
from mvm.runtime import metrics as telemetry
from mvm.types import UserError

log = logging.getLogger(__name__)


def run_task(config: Any, workdir: epath.PathLike) -> dict[str, float]:
    """Trains or evaluates, alone in `workdir`."""
    keys.validate(config)
    workdir = epath.Path(workdir)
    with workdirs.only_writer(workdir):
        _check(config, workdir)
        config = located(config, workdir / "data")
        return (evaluate.evaluate if config.evaluate else trainer.train)(config, workdir)


def _check(config: Any, workdir: epath.Path) -> None:
    """What is cheap to know, before anything is written, downloaded or computed."""
    workdirs.check_config(workdirs.as_begun(config, workdir), workdir)
    for split in ("train", "val", "test"):
        path = config.data[split]
        if path and not re.search(r":|\?| \+ ", path) and not epath.Path(path).exists():
            raise UserError(f"data.{split}={path} does not exist")
    if config.init_from and not checkpoint.steps_in(workdir):
        workdirs.check_exists(config.init_from)


def located(config: Any, folder: epath.Path) -> Any:
    """The configuration with its own videos there and its lists pointing at them.

    It is returned as it is if data is given, or if it neither fetches a data set (`data.fetch`)
    nor has videos written (`synthetic.num_pretrain`). Written videos go to `folder`, a data set to
    TFDS's folder, for all runs.
    """
    d, labels = config.data, tasks.spec(config.task).labels
    if d.train or d.val or d.test or not (config.synthetic.num_pretrain or d.fetch):
        return config
    config = config.copy_and_resolve_references()
    if config.synthetic.num_pretrain:
        lists = data.moving_shapes(folder, config.synthetic.to_dict())
        config.data.train = str(lists.train if labels else lists.pretrain)
        if labels:
            config.data.val, config.data.test = str(lists.val), str(lists.test)
    else:
        config.data.train = data.fetch(d.fetch, d.root)
        if labels:
            config.data.val = config.data.test = config.data.train
    return config


def configs(config: Any, workdir: epath.Path) -> dict[str, Any]:
    """The configuration of every stage: the whole one, with what the stage changes.

    A stage's `init_from` may name another stage, which then comes right before it.

    Raises:
        UserError: if a stage sets a key that does not exist.
    """
    stages, after = {}, {}
    for name, changes in config.stages.items():
        stage = config.copy_and_resolve_references()
        try:
            stage.update(changes.to_dict())
        except (KeyError, AttributeError, TypeError) as error:
            raise UserError(f"stages.{name}: {str(error).splitlines()[0]}") from error
        keys.validate(stage)
        stage.name = f"{config.name}/{name}"
        after[name] = stage.init_from if stage.init_from in config.stages else ""
        if after[name]:
            stage.init_from = str(workdir / stage.init_from)
        stages[name] = stage
    ordered: dict[str, Any] = {}
    for name in sorted(stages, key=lambda name: name in after.values()):
        chain = [name]
        while before := after[chain[-1]]:
            if before in chain:
                raise UserError(f"stages.{name}: init_from goes round in a circle ({chain})")
            chain.append(before)
        ordered |= {link: stages[link] for link in reversed(chain) if link not in ordered}
    return ordered


class Done(NamedTuple):
    """A finished stage."""

    config: Any
    final: dict[str, float]
    """Its last metrics, its scores if it has any, and its seconds."""


def run(config: Any, workdir: epath.PathLike) -> None:
    """Runs all stages in order, then compares the scores of those that have any.

    A finished stage is not run again, an unfinished one goes on. Stages whose names differ only in
    a `_seed<n>` at the end are repetitions of one arm; arms whose names differ only in an `_at<n>`
    at the end have different budgets, n in percent, of one strategy.
    """
    with workdirs.only_writer(workdir):
        _run(config, epath.Path(workdir))


def _run(config: Any, workdir: epath.Path) -> None:
    results: dict[str, Done] = {}
    planned = configs(config, workdir)
    for name, stage in planned.items():
        _check(stage, workdir / name)
    for name, stage in planned.items():
        stage = located(stage, workdir / "data")
        done = workdir / name / "final.json"
        if done.exists() and _unchanged(stage, workdir / name):
            log.info("stage %s is finished", name)
        else:
            log.info("stage %s", name)
            began = time.monotonic()
            final = run_task(stage, workdir / name)
            final["seconds"] = time.monotonic() - began
            if jax.process_index() == 0:
                telemetry.replace_text(done, json.dumps(final) + "\n")
            results[name] = Done(stage, final)
            continue
        results[name] = Done(stage, json.loads(done.read_text()))
    if jax.process_index() == 0:
        for line in _summarise(config, workdir, results):
            log.info("%s", line)


def _unchanged(config: Any, workdir: epath.Path) -> bool:
    path = workdir / "config.json"
    return path.exists() and path.read_text() == workdirs.to_json(
        workdirs.as_begun(config, workdir)
    )


def arm_of(stage: str) -> str:
    """A stage's name without its seed."""
    return re.sub(r"_seed\d+$", "", stage)


def strategy_of(arm: str) -> str:
    """An arm's name without its budget."""
    return re.sub(r"_at\d+$", "", arm)


def tflop(config: Any, steps: float) -> float:
    """Floating-point operations of training, 1e12: of the matrix products that we do."""
    task = tasks.build(config)
    clip = cost.train_flops(task.macs(executed=True), task.untrained)
    return clip * steps * config.train.batch_size * config.data.repeats / 1e12


def _pretraining(stage: Done, results: dict[str, Done]) -> str:
    """The name of the stage that another one starts from; "" if it is no pre-training of ours."""
    before = epath.Path(stage.config.init_from).name if stage.config.init_from else ""
    return (
        before if before in results and not tasks.spec(results[before].config.task).labels else ""
    )


def _summarise(config: Any, workdir: epath.Path, results: dict[str, Done]) -> list[str]:
    accuracies: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    compute: dict[str, float] = {}
    for name, (_, final) in results.items():
        seconds.setdefault(arm_of(name), []).append(final["seconds"])
        if "test_top1" in final:
            accuracies.setdefault(arm_of(name), []).append(final["test_top1"])
            before = _pretraining(results[name], results)
            spent = tflop(results[before].config, results[before].final["step"]) if before else 0.0
            compute[arm_of(name)] = spent
    lines = [f"{arm}: {statistics.mean(s):.0f} s" for arm, s in seconds.items()]
    parts = []
    for arm, values in accuracies.items():
        spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        parts.append(f"{arm} {statistics.mean(values):.1f}{spread} %")
    if parts:
        lines.append("test accuracy: " + ", ".join(parts))
    summary = {
        "title": config.name,
        "lines": lines,
        "accuracies": accuracies,
        "compute": compute,
        "seconds": seconds,
    }
    telemetry.replace_text(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    figures = workdir / "figures"
    path = figures / "accuracies.png"
    chance = 100.0 / config.data.num_classes if config.data.num_classes else None
    gallery.attempt(
        partial(figures.mkdir, parents=True, exist_ok=True),
        lambda: accuracies and visualize.accuracies(path, accuracies, chance),
        partial(_draw_compute, figures / "compute.png", accuracies, compute, chance),
        partial(_draw_strategies, figures / "strategies.png", workdir, results),
        partial(report.write, workdir),
    )
    return lines


def _draw_compute(
    path: epath.Path,
    accuracies: dict[str, list[float]],
    compute: dict[str, float],
    chance: float | None,
) -> None:
    """Accuracy against compute, where two or more arms were pre-trained."""
    points: dict[str, list[tuple[float, float]]] = {}
    scratch: list[float] = []
    for arm, values in accuracies.items():
        if compute[arm]:
            runs = points.setdefault(strategy_of(arm), [])
            runs += [(compute[arm], value) for value in values]
        else:
            scratch += values
    if len({arm for arm in accuracies if compute[arm]}) > 1:
        visualize.compute(path, points, scratch, chance)


def _draw_strategies(path: epath.Path, workdir: epath.Path, results: dict[str, Done]) -> None:
    """What the masks of several strategies choose, each with the most trained of its models."""
    runs: dict[str, tuple[Any, epath.Path]] = {}
    steps: dict[str, float] = {}
    for name, (config, final) in results.items():
        strategy = config.mask.name
        if not tasks.spec(config.task).labels and final["step"] > steps.get(strategy, 0):
            runs[strategy], steps[strategy] = (config, workdir / name), final["step"]
    if len(runs) > 1:
        gallery.draw_strategies(path, runs)
