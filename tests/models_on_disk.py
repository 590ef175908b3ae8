"""Runs of random weights, and videos, for the tests of the API."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from mvm import runs, tasks
from mvm.runtime.checkpoint import Checkpoints, Place
from mvm.types import UserError


def configure(leaf: Any, argument: str, **groups: dict[str, Any]) -> Any:
    """A tiny variant of a recipe whose number of heads its width tells."""
    config = leaf.get_config(argument)
    config.model.update(width=64, heads=1, decoder_depth=1)
    for group, values in groups.items():
        config[group].update(values)
    return config


def random_params(abstract: Any) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype("f4"), abstract)


def write_run(folder: pathlib.Path, config: Any) -> Any:
    """A run directory of random weights; returns them."""
    params = random_params(tasks.build(config).abstract)
    checkpoints = Checkpoints(folder, 1)
    values = json.loads(config.to_json_best_effort())
    checkpoints.save(Place(2, 16, 0), {"params": params}, values)
    checkpoints.close()
    runs.write_config(config, checkpoints.workdir)
    return params


def video(*size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def refused(said: str, call: Any, *args: Any, **options: Any) -> None:
    with pytest.raises(UserError, match=said) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
