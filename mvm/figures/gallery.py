"""The figures of a run directory, drawn when a run ends, and its report."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Array

from mvm import data, samples, tasks
from mvm.figures import charts, report, sheets
from mvm.masking import everest
from mvm.models import tubelets
from mvm.runtime import metrics, sharding
from mvm.types import Params, Strategy, first_line

log = logging.getLogger(__name__)


def attempt(*parts: Callable[[], object]) -> None:
    """Calls each in turn; one that fails is a warning."""
    for part in parts:
        try:
            part()
        except Exception as error:  # The run is done: no font, disk or video may make it fail.
            log.warning("figures are not complete (%s)", first_line(error))


def draw(
    task: tasks.Task,
    workdir: epath.Path,
    params: Params,
    found: Sequence[data.Record],
    seed: int,
    count: int,
) -> None:
    """Draws curves, frames, masks and reconstructions, if there are any; and a report.

    `params` are whole and on the host of process 0; `count` clips are taken from `found`.
    """
    if jax.process_index() == 0:
        if task.run.gather:  # They are whole.
            task = dataclasses.replace(task, run=task.run._replace(gather=None))
        attempt(partial(draw_numbers, workdir))
        if count and isinstance(task, tasks.ClipTask):
            attempt(partial(draw_clips, workdir / "figures", task, params, found, seed, count))
        attempt(partial(report.write, workdir))


def draw_numbers(workdir: epath.Path) -> None:
    """Curves of `metrics.jsonl`, where something was logged twice."""
    if rows := metrics.read_rows(workdir / "metrics.jsonl"):
        charts.curves(workdir / "figures" / "curves.png", {"": rows})


def draw_errors(
    workdir: epath.Path, found: Sequence[data.Record], position: Any, spec: Any
) -> None:
    """Confusion, confidence and the classes most confused, of a classifier's `predictions.csv`.

    `position` is that of each of its rows in `found`.
    """
    rows, folder = report.answers(workdir), workdir / "figures"
    if jax.process_index() or not rows:
        return
    classes = [row["class"] for row in report.read_csv(workdir / "per_class.csv")]
    number = {name: n for n, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, tuple([number[row[k]] for row in rows] for k in ("label", "top1")), 1)
    sure = np.array([100 * float(row["probability1"]) for row in rows])
    hits = np.array([row["label"] == row["top1"] for row in rows])

    def confused() -> None:  # The four most confused pairs, the two surest of each.
        where, shown = {row["video"]: p for row, p in zip(rows, position)}, {}
        for label, best, videos in report.confused(rows)[:4]:
            for name in [row["video"] for row in videos[:2]]:
                said = f"{label} taken for {best} ({len(videos)}): {_short(name)}"
                shown[said] = where[name]
        if shown:
            records = [found[p] for p in shown.values()]
            pictures, kept = samples.take(records, spec, len(records), 0)
            sheets.clips(folder / "confused.png", pictures, [list(shown)[k] for k in kept])

    attempt(
        partial(charts.confusion, folder / "confusion.png", counts, classes),
        partial(charts.confidence, folder / "confidence.png", sure, hits),
        confused,
    )


def _short(name: str) -> str:
    """The end of a path, folder and file."""
    return "/".join(name.split("/")[-2:])[-60:]


def chosen(model: Any, strategy: Strategy, videos: Array, key: Array) -> tuple[Any, ...]:
    """The kept frames, the mask, and, if there are any, what it is drawn by and predictions."""
    pixels, grid = model.encoder.split(videos)
    scores = model.score(None, pixels) if strategy.network else None
    mask = model.encoder.select(key, pixels, grid, strategy, scores)
    if scores is None and strategy.needs_tokens:
        scores = everest.motion(model.encoder.tokens(pixels), grid)
    decodes = getattr(model, "decoder", None) is not None
    predicted = model.reconstruct(pixels, grid, mask) if decodes else None
    return tubelets.join(pixels, grid, model.encoder.tubelet), mask, scores, predicted


def draw_clips(
    folder: epath.Path,
    task: tasks.ClipTask,
    params: Params,
    found: Sequence[data.Record],
    seed: int,
    count: int,
) -> None:
    """What a model is shown of clips and, in pre-training, what it predicts; else the clips."""
    videos, taken = samples.take(found, task.clips["val"], count, seed)
    names = [_short(found[p].id) for p in taken]
    if task.layout.frames is not None:
        choose = jax.jit(lambda params, videos: task.model(params, {}).encoder.slots(videos))
        slots = np.asarray(choose(params, videos))
        sheets.frames(folder / "frames.png", videos, slots, task.tubelet.t, names)
    if (strategy := task.strategy) is None:
        sheets.clips(folder / "clips.png", videos, names)
        return

    @sharding.jit_once
    def run(params: Params, videos: Array) -> tuple[Any, ...]:
        return chosen(task.model(params, {}), strategy, videos, jax.random.key(seed))

    kept, mask, scores, predicted = jax.device_get(run(params, videos))
    told = mask.visible, mask.target, scores, predicted, task.targets.kind, names
    seen = sheets.Seen(kept, task.grid, *told)
    seen.draw(folder / "masks.png")
    if seen.predicted is not None:
        if task.targets.frames:  # One frame of each tubelet is predicted.
            first = tubelets.one_frame(task.grid, task.tubelet)
            seen = seen._replace(videos=seen.videos[:, first])
        sheets.reconstruction(folder / "reconstruction.png", seen)
        sheets.reconstruction(folder / "overview.png", seen, count=1)
