"""The figures of a run directory, drawn when a run ends, and its report."""

import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import Array

from mvm import data, figures, runs, samples, tasks
from mvm.figures import report
from mvm.figures.sheets import Seen
from mvm.masking import everest
from mvm.masking import frames as selection
from mvm.models import tubelets
from mvm.runtime import metrics, peers
from mvm.types import Grid, Params, Strategy

log = logging.getLogger(__name__)

_CLIPS = 4


def attempt(*parts: Callable[[], object]) -> None:
    """Calls each in turn; one that fails is a warning."""
    for part in parts:
        try:
            part()
        except Exception as error:  # The run is done: no font, disk or video may make it fail.
            log.warning("figures are not complete (%s)", peers.first_line(error))


def draw(config: Any, workdir: epath.Path, params: Params, found: Sequence[data.Record]) -> None:
    """Draws curves, classes, frames, masks and reconstructions, if there are any; and a report.

    `params` are whole and on the host of process 0; a few clips are taken from `found`.
    """
    if jax.process_index() == 0:
        attempt(partial(_draw, config, workdir, params, found), partial(report.write, workdir))


def _draw(config: Any, workdir: epath.Path, params: Params, found: Sequence[data.Record]) -> None:
    task, folder = tasks.build(config), workdir / "figures"
    draw_numbers(workdir)
    videos = samples.take(config, found, _CLIPS)
    if config.data.num_candidates:
        shown, busy = samples.eventful(config, found, _CLIPS) or (videos, None)
        keep = config.data.keep_ratio
        draw_frames(folder / "frames.png", task.graphdef, params, shown, keep, busy)
    draw_clips(folder, task.graphdef, params, task.strategy, videos, config.seed)


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


def look(
    graphdef: Any, params: Params, strategy: Strategy, videos: np.ndarray, seed: int = 0
) -> Seen:
    """Draws masks for clips, the same ones for the same seed, and reconstructs their targets."""
    pretraining = strategy.num_target > 0

    @jax.jit
    def run(params: Params, videos: Array) -> tuple[Any, ...]:
        model = nnx.merge(graphdef, params)
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
        nnx.merge(graphdef, params).targets.kind if pretraining else "",
    )


def draw_clips(
    folder: epath.Path,
    graphdef: Any,
    params: Params,
    strategy: Strategy | None,
    videos: np.ndarray,
    seed: int = 0,
) -> None:
    """What a model is shown of clips and, in pre-training, what it predicts; else the clips."""
    if strategy is None:
        figures.clips(folder / "clips.png", videos)
        return
    seen = look(graphdef, params, strategy, videos, seed)
    figures.masks(folder / "masks.png", seen)
    if seen.predicted is not None:
        model, grid = nnx.merge(graphdef, params), seen.grid
        if model.targets.frames:  # One frame of each tubelet is predicted.
            told = np.arange(grid.t) * model.tubelet.t + tubelets.one_frame(grid, model.tubelet)
            seen = seen._replace(videos=seen.videos[:, told])
        figures.reconstruction(folder / "reconstruction.png", seen)
        figures.reconstruction(folder / "overview.png", seen, count=1)


def draw_frames(
    path: epath.Path,
    graphdef: Any,
    params: Params,
    videos: np.ndarray,
    keep_ratio: float,
    busy: np.ndarray | None = None,
) -> None:
    """Which slots frame selection keeps of all candidates `[B, T, H, W, 3]`, without chance."""

    @jax.jit
    def run(params: Params, videos: Array) -> tuple[Array, Array]:
        model = nnx.merge(graphdef, params)
        pixels, grid = tubelets.split(videos, model.tubelet)
        tokens = model.encoder.tokens(pixels)
        count = selection.informative(tokens, grid, keep_ratio)
        return count, model.encoder.layout.frames(None, tokens, grid)

    counts, slots = jax.device_get(run(params, videos))
    figures.frames(path, videos, counts, slots, busy)


def draw_strategies(
    path: epath.PathLike, trained: Mapping[str, tuple[Any, epath.Path]], count: int = 2
) -> None:
    """Draws what every strategy of several pre-trainings chooses of the same clips.

    `trained` are configuration and run directory by name; the clips are those of the first.
    """
    if jax.process_index() != 0:
        return
    first = next(iter(trained.values()))[0]
    videos = samples.take(
        first, data.records(first.data.train, first.data.root, first.data.template), count
    )
    seen = {}
    for name, (config, workdir) in trained.items():
        task = tasks.build(config)
        assert task.strategy is not None
        params = runs.initial_params(str(workdir), task.abstract)
        seen[name] = look(task.graphdef, params, task.strategy, videos, config.seed)
    figures.strategies(path, seen)
