"""The figures of a run directory, drawn when a task ends, and its report."""

import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import Array

from mvm import data, samples, tasks
from mvm import figures as visualize
from mvm import runs as workdirs
from mvm.figures import report
from mvm.masking import everest, frames
from mvm.models import tubelets
from mvm.runtime import metrics as telemetry
from mvm.types import Params, Strategy, first_line

log = logging.getLogger(__name__)

_CLIPS, _COUNTED = 4, 64
"""Clips of a figure, and those counted where it is known what is in them."""

_PROBABILITY = (
    "Score: a token's probability to be the first one drawn, in units of a uniform choice: pale is "
    "1/4 or less, the middle blue 1, dark 4 or more, in every clip."
)


def draw(config: Any, workdir: epath.Path, params: Params, found: Sequence[data.Record]) -> None:
    """Draws curves, classes, frames, masks and reconstructions, if there are any; and a report.

    `params` are whole and on the host of process 0; a few clips are taken from `found`.
    """
    if jax.process_index() != 0:
        return
    attempt(partial(_draw, config, workdir, params, found), partial(report.write, workdir))


def attempt(*parts: Callable[[], object]) -> None:
    """Calls each in turn; one that fails is a warning."""
    for part in parts:
        try:
            part()
        except Exception as error:  # The run is done: no font, disk or video may make it fail.
            log.warning("figures are not complete (%s)", first_line(error))


def _draw(config: Any, workdir: epath.Path, params: Params, found: Sequence[data.Record]) -> None:
    task = tasks.build(config)
    folder = workdir / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    rows = telemetry.read_rows(workdir / "metrics.jsonl")
    if rows:
        keys = ("loss", "accuracy", "val_top1", "learning_rate")
        present = tuple(k for k in keys if any(k in row for row in rows))
        visualize.curves(folder / "curves.png", {config.name: rows}, present)
    if (workdir / "per_class.csv").exists():
        _draw_classes(folder / "per_class.png", workdir / "per_class.csv")
    videos = samples.take(config, found, _CLIPS)
    if config.data.num_candidates:
        eventful = samples.eventful(config, found, _COUNTED) or (videos, None)
        _draw_frames(folder / "frames.png", config, task, params, *eventful)
    if task.strategy is not None:
        seen = look(config, task, task.strategy, params, videos)
        _draw_masks(folder, config, task, task.strategy, seen)
    else:
        visualize.clips(folder / "clips.png", videos)


def _draw_classes(path: epath.Path, table: epath.Path) -> None:
    rows = list(csv.DictReader(table.read_text().splitlines()))
    visualize.per_class(
        path,
        [r["class"] for r in rows],
        [float(r["accuracy"] or "nan") for r in rows],
        [int(r["videos"]) for r in rows],
    )


class Seen(NamedTuple):
    """What a model does with a few clips, on the host."""

    videos: np.ndarray
    """Of the frames that it kept, `[B, T, H, W, 3]`."""
    visible: np.ndarray
    """`[B, V]`"""
    target: np.ndarray
    """`[B, M]`"""
    scores: np.ndarray
    """`[B, N]`: of a sampler, a token's probability in units of 1 / N; else its motion."""
    predicted: np.ndarray | None
    """Of the targets, in pre-training."""


def look(
    config: Any, task: tasks.Task, strategy: Strategy, params: Params, videos: np.ndarray
) -> Seen:
    """Draws masks for clips, the same ones for the same seed, and reconstructs them."""
    pretraining = config.task == "pretrain"

    @jax.jit
    def run(params: Params, videos: Array) -> tuple[Any, ...]:
        model = nnx.merge(task.graphdef, params)
        pixels, grid = tubelets.split(videos, task.tubelet)
        pixels, grid = model.encoder.keep_frames(None, pixels, grid)
        found = model.score(None, pixels) if pretraining else None
        mask = model.encoder.select(jax.random.key(config.seed), pixels, grid, strategy, found)
        if found is not None:
            scores = jnp.exp(found) * grid.n  # 1 is a uniform choice.
        else:
            scores = everest.motion(model.encoder.tokens(pixels), grid)
        predicted = model.reconstruct(pixels, grid, mask) if pretraining else None
        kept = tubelets.join(pixels, grid, task.tubelet)
        return kept, mask.visible, mask.target, scores, predicted

    return Seen(*jax.device_get(run(params, jnp.asarray(videos))))


def _draw_masks(
    folder: epath.Path, config: Any, task: tasks.Task, strategy: Strategy, seen: Seen
) -> None:
    kept, visible, target, scores, predicted = seen
    shown: dict[str, Any] = {"scores": scores} if strategy.needs_tokens else {}
    if strategy.network is not None:
        shown = {"scores": np.log2(scores), "scale": (-2.0, 2.0), "meaning": _PROBABILITY}
    visualize.masks(folder / "masks.png", kept, visible, target, task.grid, **shown)
    if predicted is not None:
        tubelet = task.tubelet
        if tasks.targets_of(config.model, tubelet).frames:
            first = np.arange(task.grid.t) * tubelet.t
            kept = kept[:, first + tubelets.one_frame(task.grid, tubelet)]
            tubelet = tubelet._replace(t=1)
        drawn = partial(
            visualize.reconstruction, grid=task.grid, tubelet=tubelet, kind=config.model.targets
        )
        drawn(folder / "reconstruction.png", kept, predicted, target, visible)
        one = (kept[:1], predicted[:1], target[:1], visible[:1])
        drawn(folder / "overview.png", *one, scores=scores[:1] if shown else None)


def _draw_frames(
    path: epath.Path,
    config: Any,
    task: tasks.Task,
    params: Params,
    videos: np.ndarray,
    busy: np.ndarray | None,
) -> None:
    """Which slots frame selection keeps of all candidates, without chance."""

    @jax.jit
    def run(params: Params, videos: Array) -> tuple[Array, Array]:
        model = nnx.merge(task.graphdef, params)
        pixels, grid = tubelets.split(videos, task.tubelet)
        count = frames.informative(model.encoder.tokens(pixels), grid, config.data.keep_ratio)
        return count, frames.draw(count, None, task.grid.t)

    count, slots = jax.device_get(run(params, jnp.asarray(videos)))
    visualize.frames(path, videos, count, slots, busy)


def draw_strategies(
    path: epath.PathLike, runs: Mapping[str, tuple[Any, epath.Path]], count: int = 2
) -> None:
    """Draws what every strategy of several pre-trainings chooses of the same clips.

    `runs` are configuration and run directory by name of the strategy; clips are the first one's.
    """
    if jax.process_index() != 0:
        return
    first = next(iter(runs.values()))[0]
    videos = samples.take(first, data.records(first, "train"), count)
    found = {}
    for name, (config, workdir) in runs.items():
        task = tasks.build(config)
        assert task.strategy is not None
        params = workdirs.initial_params(str(workdir), task.abstract)
        found[name] = look(config, task, task.strategy, params, videos)
    chosen = {name: (seen.visible, seen.target) for name, seen in found.items()}
    visualize.strategies(path, next(iter(found.values())).videos, chosen, tasks.build(first).grid)
