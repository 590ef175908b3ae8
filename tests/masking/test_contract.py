"""What every masking strategy promises; a new file in mvm/masking is found by itself."""

import functools
import importlib

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvm import masking
from mvm.types import Grid, UserError

NAMES = masking.names()
GRID = Grid(4, 6, 6)
PAPER = Grid(8, 14, 14)


def tokens_of(strategy, batch, grid, seed=0):
    """Embeddings, or what serves for the batch size where nobody looks at them."""
    shape = (batch, grid.n, 8 if strategy.needs_tokens else 1)
    return jax.random.normal(jax.random.key(seed), shape)


@functools.cache
def jitted(name):
    """A strategy at its defaults, its compiled `sample` and a list that grows with every trace."""
    strategy, traces = masking.build(name, GRID), []

    def sample(key, tokens):
        traces.append(tokens.shape)
        return strategy.sample(key, tokens, GRID)

    return strategy, jax.jit(sample), traces


def drawn(name, seed=0):
    strategy, sample, _ = jitted(name)
    return jax.tree.map(np.asarray, sample(jax.random.key(seed), tokens_of(strategy, 8, GRID)))


def check(strategy, mask, batch, grid):
    assert mask.visible.shape == (batch, strategy.num_visible)
    assert mask.target.shape == mask.weight.shape == (batch, strategy.num_target)
    assert mask.visible.dtype == mask.target.dtype == np.int32
    assert mask.weight.dtype == np.float32
    assert np.isin(mask.weight, (0, 1)).all()
    for index in (mask.visible, mask.target):
        assert (np.diff(index, axis=1) > 0).all()
        assert index.size == 0 or (index.min() >= 0 and index.max() < grid.n)
    for row in range(batch):
        shared = np.isin(mask.target[row], mask.visible[row])
        np.testing.assert_array_equal(mask.weight[row], ~shared)


@pytest.mark.parametrize("name", NAMES)
def test_counts_order_range_and_weights(name):
    check(masking.build(name, GRID), drawn(name), 8, GRID)


@pytest.mark.parametrize("name", ["everest", "frame", "tube", "uniform"])
def test_visible_and_target_are_disjoint(name):
    mask = drawn(name)
    for visible, target in zip(mask.visible, mask.target):
        assert not set(visible) & set(target)


@pytest.mark.parametrize("name", NAMES)
def test_the_key_decides(name):
    first, again, other = (drawn(name, seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first.visible != other.visible).any()
    assert (first.visible[0] != first.visible[1:]).any()


@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_its_batch(name):
    strategy, sample, _ = jitted(name)
    tokens = tokens_of(strategy, 8, GRID)
    large = sample(jax.random.key(3), tokens)
    small = sample(jax.random.key(3), tokens[:4])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:4], b), large, small)
    changed = sample(jax.random.key(3), tokens.at[5:].multiply(-2.0))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:5], b[:5]), large, changed)


@pytest.mark.parametrize("name", NAMES)
def test_one_compilation_serves_every_key(name):
    for seed in range(3):
        drawn(name, seed)
    _, _, traces = jitted(name)
    assert len(traces) == len(set(traces))  # One per batch size that was asked for.


def test_the_compiled_mask_is_the_eager_one():
    strategy, *_ = jitted("tube")
    eager = strategy.sample(jax.random.key(0), tokens_of(strategy, 8, GRID), GRID)
    jax.tree.map(np.testing.assert_array_equal, drawn("tube"), eager)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(NAMES),
    grid=st.builds(Grid, st.integers(2, 3), st.integers(1, 4), st.integers(1, 4)),
    ratio=st.floats(0.0, 1.0),
)
def test_any_small_grid_and_ratio_gives_a_valid_mask_or_one_line(name, grid, ratio):
    # Everything but the impossible is built; that is refused with one line.
    module = importlib.import_module(f"mvm.masking.{name}")
    visible, target = module.counts(grid, mask_ratio=ratio)
    if visible < 1 or target < 0:
        with pytest.raises(UserError, match=f"of {grid.n}; change its ratios"):
            masking.build(name, grid, mask_ratio=ratio)
        return
    strategy = masking.build(name, grid, mask_ratio=ratio)
    assert 1 <= strategy.num_visible <= grid.n
    assert 0 <= strategy.num_target <= grid.n
    sample = jax.jit(lambda key, tokens: strategy.sample(key, tokens, grid))
    mask = sample(jax.random.key(0), tokens_of(strategy, 2, grid))
    check(strategy, jax.tree.map(np.asarray, mask), 2, grid)


@pytest.mark.parametrize(
    ("name", "hparams", "visible", "target"),
    [
        ("everest", {}, 156, 314),
        ("everest", {"keep_ratio": 0.3, "mask_ratio": 0.9}, 156, 314),
        ("everest", {"keep_ratio": 0.6, "mask_ratio": 0.4}, 940, 0),
        ("tube", {"mask_ratio": 0.9}, 160, 1408),
        ("tube", {"mask_ratio": 0.75}, 392, 1176),
        ("uniform", {"mask_ratio": 0.9}, 157, 1411),
        ("frame", {"mask_ratio": 0.875}, 196, 1372),
    ],
)
def test_counts_of_the_papers(name, hparams, visible, target):
    strategy = masking.build(name, PAPER, **hparams)
    assert (strategy.num_visible, strategy.num_target) == (visible, target)
    tokens = jax.eval_shape(lambda: tokens_of(strategy, 2, PAPER))
    mask = jax.eval_shape(lambda x: strategy.sample(jax.random.key(0), x, PAPER), tokens)
    assert (mask.visible.shape, mask.target.shape) == ((2, visible), (2, target))


def test_an_unknown_name_tells_the_nearest():
    with pytest.raises(UserError, match=r"'everset' is unknown; did you mean 'everest'\?") as e:
        masking.build("everset", GRID)
    assert all(name in str(e.value) for name in NAMES)
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="known: "):
        masking.hparams("sampling")


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_hyper_parameter_tells_the_known_ones(name):
    with pytest.raises(UserError, match="not \\['mask_ration'\\]") as caught:
        masking.build(name, GRID, mask_ration=0.9)
    assert "'mask_ratio'" in str(caught.value)


@pytest.mark.parametrize("ratios", [{"mask_ratio": 1.0}, {"keep_ratio": 0.2, "mask_ratio": 0.5}])
def test_impossible_ratios_are_refused(ratios):
    # No visible token; more visible tokens than are kept.
    with pytest.raises(UserError, match="change its ratios"):
        masking.build("everest", GRID, **ratios)
