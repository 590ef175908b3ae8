"""The vote of the nearest training videos: what an encoder knows without any training."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jaxtyping import Array

from mvm import frozen, inference, objectives, runs, tasks
from mvm.figures import gallery, report
from mvm.runtime import sharding
from mvm.types import Params

SPEC = tasks.Spec(labels=True, sampling="finetune")


def run(config: Any, workdir: epath.PathLike) -> dict[str, float]:
    """Scores the videos of `data.test` by those of `data.train`; returns the scores.

    The feature of a video is the mean over its views of what `mvm.load(...).embed` gives.
    """
    workdir, start = epath.Path(workdir), frozen.prepare(config, ["train", "test"])
    runs.write_config(start.config, workdir, start.names)
    pooled = partial(inference.pooled, start.encoder.task, start.encoder.config.mask)

    def mean(params: Params, video: Array) -> Array:
        return jax.lax.map(partial(pooled, params), jnp.moveaxis(video, 1, 0)).mean(axis=0)

    embed = sharding.on_devices(mean, start.encoder.params, config.eval.batch_size)
    train, test = (frozen.rows_of(workdir, start, split, embed) for split in ("train", "test"))
    votes = objectives.vote(test.read(), train.read(), train.label, start.config.data.num_classes)
    more = {"selection": "none", "k": objectives.NEIGHBOURS, "temperature": objectives.TEMPERATURE}
    values = frozen.publish(workdir, start, votes, test, more | {"gallery": len(train.label)})
    gallery.attempt(partial(gallery.draw_numbers, workdir), partial(report.write, workdir))
    return values
