"""The figures of a run directory, drawn when a run ends, and its report."""

import csv
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array

from mvm import data, figures, samples, tasks
from mvm.figures import report
from mvm.figures.sheets import Seen
from mvm.masking import everest
from mvm.masking import frames as selection
from mvm.models import tubelets
from mvm.runtime import metrics
from mvm.types import Grid, Params, first_line

log = logging.getLogger(__name__)

_CLIPS = 4


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
    seed: int = 0,
) -> None:
    """Draws curves, classes, frames, masks and reconstructions, if there are any; and a report.

    `params` are whole and on the host of process 0; a few clips are taken from `found`.
    """
    if jax.process_index() == 0:
        task = dataclasses.replace(task, run=task.run._replace(gather=None))  # They are whole.
        numbers, clips = partial(draw_numbers, workdir), partial(draw_clips, workdir / "figures")
        attempt(numbers, partial(clips, task, params, found, seed), partial(report.write, workdir))


def draw_numbers(workdir: epath.Path) -> None:
    """Curves of `metrics.jsonl` and bars of `per_class.csv`, as far as there are such files."""
    rows = metrics.read_rows(workdir / "metrics.jsonl")
    if rows:
        keys = ("loss", "accuracy", "val_top1", "learning_rate")
        figures.curves(workdir / "figures" / "curves.png", rows, keys)
    if (table := workdir / "per_class.csv").exists():
        classes = list(csv.DictReader(table.read_text().splitlines()))
        accuracy = [float(row["accuracy"] or "nan") for row in classes]
        names, counts = ([row[key] for row in classes] for key in ("class", "videos"))
        figures.per_class(workdir / "figures" / "per_class.png", names, accuracy, counts)


def look(task: tasks.Task, params: Params, videos: np.ndarray, seed: int = 0) -> Seen:
    """Draws masks for clips, the same ones for the same seed, and reconstructs their targets."""
    strategy = task.strategy
    assert strategy is not None
    pretraining = strategy.num_target > 0

    @jax.jit
    def run(params: Params, videos: Array) -> tuple[Any, ...]:
        model = task.model(params, {})
        pixels, grid = tubelets.split(videos, model.tubelet)
        pixels, grid = model.encoder.keep_frames(None, pixels, grid)
        found = model.score(None, pixels) if pretraining else None
        mask = model.encoder.select(jax.random.key(seed), pixels, grid, strategy, found)
        if found is not None:
            scores = (found + jnp.log(grid.n)) / jnp.log(2)
        else:
            scores = everest.motion(model.encoder.tokens(pixels), grid)
        predicted = model.reconstruct(pixels, grid, mask) if pretraining else None
        kept = tubelets.join(pixels, grid, model.tubelet)
        return kept, grid, mask.visible, mask.target, scores, predicted

    kept, grid, visible, target, scores, predicted = jax.device_get(run(params, videos))
    sampler = strategy.network is not None
    return Seen(
        kept,
        Grid(*map(int, grid)),
        visible,
        target,
        scores if strategy.needs_tokens or sampler else None,
        predicted,
        sampler,
        task.targets.kind,
    )


def draw_clips(
    folder: epath.Path,
    task: tasks.Task,
    params: Params,
    found: Sequence[data.Record],
    seed: int = 0,
) -> None:
    """What a model is shown of clips and, in pre-training, what it predicts; else the clips."""
    videos, positions = samples.take(found, task.clips["val"], _CLIPS, seed)
    if task.layout.frames is not None:
        busy = samples.eventful(found, task.clips["val"], positions)
        draw_frames(folder / "frames.png", task, params, videos, busy)
    if task.strategy is None:
        figures.clips(folder / "clips.png", videos)
        return
    seen = look(task, params, videos, seed)
    figures.masks(folder / "masks.png", seen)
    if seen.predicted is not None:
        if task.targets.frames:  # One frame of each tubelet is predicted.
            told = np.arange(task.grid.t) * task.tubelet.t
            told += tubelets.one_frame(task.grid, task.tubelet)
            seen = seen._replace(videos=seen.videos[:, told])
        figures.reconstruction(folder / "reconstruction.png", seen)
        figures.reconstruction(folder / "overview.png", seen, count=1)


def draw_frames(
    path: epath.Path,
    task: tasks.Task,
    params: Params,
    videos: np.ndarray,
    busy: np.ndarray | None = None,
) -> None:
    """Which slots frame selection keeps of all candidates `[B, T, H, W, 3]`, without chance."""
    select = task.layout.frames
    assert isinstance(select, partial)
    keep_ratio = select.keywords["keep_ratio"]

    @jax.jit
    def run(params: Params, videos: Array) -> tuple[Array, Array]:
        model = task.model(params, {})
        pixels, grid = tubelets.split(videos, model.tubelet)
        tokens = model.encoder.tokens(pixels)
        return selection.informative(tokens, grid, keep_ratio), select(None, tokens, grid)

    counts, slots = jax.device_get(run(params, videos))
    figures.frames(path, videos, counts, slots, busy)


def draw_strategies(
    path: epath.PathLike,
    trained: Mapping[str, tuple[tasks.Task, Params]],
    found: Sequence[data.Record],
    seed: int = 0,
) -> None:
    """Draws what the masks of several pre-trained models choose of the same two clips."""
    if jax.process_index() == 0:
        spec = next(iter(trained.values()))[0].clips["val"]
        videos, _ = samples.take(found, spec, 2, seed)
        figures.strategies(path, {k: look(*v, videos, seed) for k, v in trained.items()})
