"""What every masking strategy promises; a new file in mvm/masking is found by itself."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mvm import masking
from mvm.types import Grid, UserError

NAMES = masking.names()
GRID = Grid(4, 6, 6)
PAPER = Grid(8, 14, 14)
# Every strategy takes scores; only one that learns, and so has a loss, cannot do without them.
LEARNT = {name for name in NAMES if masking.build(name, GRID).loss is not None}
CASES = [(name, True) for name in NAMES] + [(name, False) for name in NAMES if name not in LEARNT]


def scores_of(batch, grid, seed=5):
    """Random log-probabilities."""
    logits = 2 * np.random.default_rng(seed).normal(size=(batch, grid.n))
    scores = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return jnp.asarray(scores, jnp.float32)


def tokens_of(strategy, batch, grid, seed=0):
    """Embeddings, or what serves for the batch size where nobody looks at them."""
    shape = (batch, grid.n, 8 if strategy.needs_tokens else 1)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.cache
def jitted(name):
    """A strategy at its defaults, its compiled `sample` and a list that grows with every trace."""
    strategy, traces = masking.build(name, GRID), []

    def sample(key, tokens, scores):
        traces.append((tokens.shape, scores is None))
        return strategy.sample(key, tokens, GRID, scores)

    return strategy, jax.jit(sample), traces


def drawn(name, scored=True, seed=0):
    strategy, sample, _ = jitted(name)
    scores = scores_of(8, GRID) if scored else None
    mask = sample(jax.random.key(seed), tokens_of(strategy, 8, GRID), scores)
    return jax.tree.map(np.asarray, mask)


def inputs(strategy):
    return tokens_of(strategy, 8, GRID), scores_of(8, GRID)


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


@pytest.mark.parametrize(("name", "scored"), CASES)
def test_counts_order_range_and_weights(name, scored):
    check(masking.build(name, GRID), drawn(name, scored), 8, GRID)


@pytest.mark.parametrize("name", [n for n in NAMES if "decoder_mask" not in masking.hparams(n)])
def test_visible_and_target_are_disjoint(name):
    # Where no second mask chooses the targets, none is visible and all of them count.
    mask = drawn(name)
    for visible, target in zip(mask.visible, mask.target):
        assert not set(visible) & set(target)
    assert (mask.weight == 1).all()


@pytest.mark.parametrize(("name", "scored"), CASES)
def test_the_key_decides(name, scored):
    first, again, other = (drawn(name, scored, seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first.visible != other.visible).any()
    assert (first.visible[0] != first.visible[1:]).any()


@pytest.mark.parametrize("name", NAMES)
def test_two_clips_alike_are_masked_differently(name):
    strategy, sample, _ = jitted(name)
    tokens, scores = (jnp.repeat(x[:1], 8, axis=0) for x in inputs(strategy))
    mask = sample(jax.random.key(0), tokens, scores)
    assert len(np.unique(mask.visible, axis=0)) > 1


@pytest.mark.parametrize(("name", "scored"), CASES)
def test_a_row_does_not_depend_on_its_batch(name, scored):
    strategy, sample, _ = jitted(name)
    tokens, scores = inputs(strategy)
    few = lambda x, keep: x[:keep] if scored else None  # noqa: E731
    large = sample(jax.random.key(3), tokens, few(scores, 8))
    small = sample(jax.random.key(3), tokens[:4], few(scores, 4))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:4], b), large, small)
    other = few(scores.at[5:].multiply(0.5), 8)
    changed = sample(jax.random.key(3), tokens.at[5:].multiply(-2.0), other)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:5], b[:5]), large, changed)


@pytest.mark.parametrize(("name", "scored"), CASES)
def test_one_compilation_serves_every_key(name, scored):
    for seed in range(3):
        drawn(name, scored, seed)
    _, _, traces = jitted(name)
    assert len(traces) == len(set(traces))  # One per kind of input that was asked for.


def test_the_compiled_mask_is_the_eager_one():
    strategy, *_ = jitted("tube")
    eager = strategy.sample(jax.random.key(0), tokens_of(strategy, 8, GRID), GRID)
    jax.tree.map(np.testing.assert_array_equal, drawn("tube", scored=False), eager)


@pytest.mark.parametrize("name", sorted(LEARNT))
def test_what_a_network_learns_is_finite_and_does_not_reach_the_errors(name):
    strategy, mask = masking.build(name, GRID), drawn(name)
    error = np.random.default_rng(6).uniform(size=mask.target.shape).astype(np.float32)
    value = lambda scores, error: strategy.loss(scores, error, mask)  # noqa: E731
    loss, slopes = jax.jit(jax.value_and_grad(value, (0, 1)))(scores_of(8, GRID), error)
    assert loss.shape == ()
    assert np.isfinite(loss)
    assert np.isfinite(slopes[0]).all()
    assert np.abs(slopes[0]).max() > 0
    np.testing.assert_array_equal(slopes[1], 0)


def outcome(call):
    """What a call returns and the line it is refused with; one of them is None."""
    try:
        return call(), None
    except UserError as error:
        return None, str(error)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=2, deadline=None, derandomize=True)
@given(
    grid=st.builds(Grid, st.integers(2, 3), st.integers(1, 4), st.integers(1, 4)),
    ratio=st.floats(0.0, 1.0),
)
@example(grid=Grid(2, 2, 4), ratio=0.5)
@example(grid=Grid(3, 2, 2), ratio=0.0)
def test_any_small_grid_and_ratio_gives_a_valid_mask_or_one_line(name, grid, ratio):
    # Everything but the impossible is built; that is refused with one line.
    module = importlib.import_module(f"mvm.masking.{name}")
    counted, refusal = outcome(lambda: module.counts(grid, mask_ratio=ratio))
    if refusal:
        assert grid.h % 2 or grid.w % 2  # Nothing but cells of 2x2 tokens is refused here.
        assert f"{grid.h}x{grid.w}" in refusal
        assert "\n" not in refusal
        return
    visible, target = counted
    if visible < 1 or target < 0:
        with pytest.raises(UserError, match=f"of {grid.n}; change its ratios"):
            masking.build(name, grid, mask_ratio=ratio)
        return
    strategy = masking.build(name, grid, mask_ratio=ratio)
    assert 1 <= strategy.num_visible <= grid.n
    assert 0 <= strategy.num_target <= grid.n
    sample = jax.jit(lambda key, *given: strategy.sample(key, given[0], grid, given[1]))
    mask = sample(jax.random.key(0), tokens_of(strategy, 2, grid), scores_of(2, grid))
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
        ("adamae", {}, 78, 1490),
        ("adamae", {"mask_ratio": 0.9}, 156, 1412),
        ("motion_tube", {}, 160, 1408),
        ("dual", {}, 160, 784),
        ("dual", {"decoder_ratio": 0.75}, 160, 392),
        ("dual", {"decoder_mask": "none"}, 160, 1408),
        ("dual", {"decoder_mask": "frame"}, 160, 784),
        ("dual", {"decoder_mask": "random", "decoder_ratio": 0.25}, 160, 1176),
    ],
)
def test_counts_of_the_papers(name, hparams, visible, target):
    strategy = masking.build(name, PAPER, **hparams)
    assert (strategy.num_visible, strategy.num_target) == (visible, target)
    given = tokens_of(strategy, 2, PAPER), scores_of(2, PAPER)
    draw = lambda x, scores: strategy.sample(jax.random.key(0), x, PAPER, scores)  # noqa: E731
    mask = jax.eval_shape(draw, *given)
    assert (mask.visible.shape, mask.target.shape) == ((2, visible), (2, target))


def test_an_unknown_name_tells_the_nearest():
    with pytest.raises(UserError, match=r"'everset' is unknown; did you mean 'everest'\?") as e:
        masking.build("everset", GRID)
    assert all(name in str(e.value) for name in NAMES)
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="known: "):
        masking.hparams("sampling")
    with pytest.raises(UserError, match="'frames' is unknown"):
        masking.hparams("frames")


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
