"""Tiny models of random weights, in memory and on disk, and videos for them."""

import importlib
import json

import jax
import numpy as np
import pytest

from mvm import runs, tasks
from mvm.runtime.checkpoint import Checkpoints, Progress
from mvm.types import UserError
from mvm.weights import convert


def configure(recipe, argument="smoke", **groups):
    """A tiny variant of a recipe whose numbers of heads its widths tell."""
    config = importlib.import_module(f"configs.{recipe}").get_config(argument)
    config.model.update(width=64, heads=1, decoder_width=64, decoder_heads=1)
    for group, values in groups.items():
        config[group].update(values)
    return config


_BUILT = {}


def abstract(config):
    """Shapes of the parameters."""
    text = config.to_json_best_effort(sort_keys=True)
    if text not in _BUILT:
        _BUILT[text] = tasks.build(config).abstract
    return _BUILT[text]


def random_params(like, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype("f4"), like)


def official(config):
    """Random weights under the official names."""
    return convert.from_params(random_params(abstract(config)), config.model.tubelet)


def write_run(folder, config, state=None):
    """A run directory of a state, by default of random weights; returns these."""
    state = state or {"params": random_params(abstract(config))}
    checkpoints = Checkpoints(folder, 1)
    values = json.loads(config.to_json_best_effort())
    checkpoints.save(Progress(2, 16, 0), state, values)
    checkpoints.close()
    runs.write_config(config, checkpoints.workdir)
    return state["params"]


def video(*size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def same(found, expected):
    """Asserts that two dicts of arrays agree in keys, shapes, dtypes and every bit."""
    assert set(found) == set(expected)
    for key, array in expected.items():
        assert (found[key].shape, found[key].dtype) == (array.shape, array.dtype), key
        assert found[key].tobytes() == np.asarray(array, order="C").tobytes(), key


def refused(said, call, *args, kind=UserError, **options):
    with pytest.raises(kind, match=said) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
