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
from mvm.types import Params, Strategy

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
    def look(params: Params, videos: Array) -> dict[str, Any]:
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
        return {"videos": kept, "mask": mask, "scores": scores, "predicted": predicted}

    seen = jax.device_get(look(params, jnp.asarray(videos)))
    mask, kept = seen["mask"], seen["videos"]
    visualize.masks(
        folder / "masks.png",
        kept,
        mask.visible,
        mask.target,
        task.grid,
        seen["scores"] if strategy.needs_tokens or strategy.network else None,
    )
    if pretraining:
        tubelet = task.tubelet
        if tasks.targets_of(config.model, tubelet).frames:
            first = np.arange(task.grid.t) * tubelet.t
            kept = kept[:, first + tubelets.one_frame(task.grid, tubelet)]
            tubelet = tubelet._replace(t=1)
        visualize.reconstruction(
            folder / "reconstruction.png",
            kept,
            seen["predicted"],
            mask.target,
            mask.visible,
            task.grid,
            tubelet,
            config.model.targets,
        )
