"""The figures of a run directory, drawn when a task ends, and its report."""

import csv
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import Array

from mvm import data, report, tasks, telemetry, tubelets, visualize
from mvm.masking import everest
from mvm.types import Mask, Params, Strategy

_CLIPS = 4


def draw(config: Any, workdir: epath.Path, params: Params, found: list[data.Record]) -> None:
    """Draws curves, classes, masks and reconstructions, where there are any; writes a report.

    Args:
        config: the configuration.
        workdir: the run directory; figures go to `figures/`.
        params: the model's weights, whole and on the host.
        found: records to take a few clips from.
    """
    if jax.process_index() != 0:
        return
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
    videos = data.samples(config, found, _CLIPS)
    if task.strategy is not None:
        _draw_masks(folder, task, task.strategy, params, videos, config)
    else:
        visualize.clips(folder / "clips.png", videos)
    report.write(workdir)


def _draw_classes(path: epath.Path, table: epath.Path) -> None:
    rows = list(csv.DictReader(table.read_text().splitlines()))
    visualize.per_class(
        path,
        [r["class"] for r in rows],
        [float(r["accuracy"] or "nan") for r in rows],
        [int(r["videos"]) for r in rows],
    )


def _draw_masks(
    folder: epath.Path,
    task: tasks.Task,
    strategy: Strategy,
    params: Params,
    videos: np.ndarray,
    config: Any,
) -> None:
    pretraining = config.task == "pretrain"

    @jax.jit
    def look(params: Params, videos: Array) -> tuple[Mask, Array, Array | None]:
        model = nnx.merge(task.graphdef, params)
        pixels, grid = tubelets.split(videos, task.tubelet)
        mask = model.encoder.select(jax.random.key(config.seed), pixels, grid, strategy)
        scores = everest.motion(model.encoder.tokens(pixels), grid)
        return mask, scores, model.reconstruct(pixels, grid, mask) if pretraining else None

    mask, scores, predicted = jax.device_get(look(params, jnp.asarray(videos)))
    visualize.masks(
        folder / "masks.png",
        videos,
        mask.visible,
        mask.target,
        task.grid,
        scores if strategy.needs_tokens else None,
    )
    if pretraining:
        visualize.reconstruction(
            folder / "reconstruction.png",
            videos,
            predicted,
            mask.target,
            mask.visible,
            task.grid,
            task.tubelet,
            config.model.normalise_targets,
        )
