"""Frame selection: informative tokens counted in NumPy, and what every selection promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvm.masking import frames
from mvm.types import Grid

GRID = Grid(12, 3, 4)


jitted = jax.jit(frames.select, static_argnums=(2, 3, 4))


def select(seed, tokens, grid, num_slots, keep_ratio=0.3):
    key = None if seed is None else jax.random.key(seed)
    return np.asarray(jitted(key, tokens, grid, num_slots, keep_ratio))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def everything(tokens, grid, num_slots, keep_ratio):
    """Counts, the best slots and drawn ones, in one compilation."""
    pick = functools.partial(frames.select, num_slots=num_slots, keep_ratio=keep_ratio)
    count = frames.informative(tokens, grid, keep_ratio)
    return count, pick(None, tokens, grid), pick(jax.random.key(0), tokens, grid)


def eventful(batch, grid, seed=0, events=(3, 4, 9)):
    """Tokens that drift a little all the time and jump a lot in some slots."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(batch, grid.t, grid.h * grid.w, 5)) * 0.1
    for slot in events:
        steps[:, slot] *= 50
    tokens = np.cumsum(steps, axis=1).reshape(batch, grid.n, 5)
    return jnp.asarray(tokens, jnp.float32)


def counted(tokens, grid, keep_ratio):
    """Informative tokens per slot, clip by clip."""
    slots = np.asarray(tokens, np.float64).reshape(len(tokens), grid.t, grid.h * grid.w, -1)
    out = np.zeros((len(tokens), grid.t), int)
    for row, clip in enumerate(slots):
        scores = np.linalg.norm(clip[1:] - clip[:-1], axis=-1)
        scores = np.concatenate([scores[:1], scores]).ravel()
        kept = np.argsort(-scores, kind="stable")[: int((1 - (1 - keep_ratio)) * grid.n)]
        np.add.at(out[row], kept // (grid.h * grid.w), 1)
    return out


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    grid=st.builds(Grid, st.integers(2, 5), st.integers(1, 3), st.integers(1, 3)),
    keep_ratio=st.sampled_from([0.1, 0.3, 0.6]),
    data=st.data(),
)
def test_selection_on_any_grid(grid, keep_ratio, data):
    num_slots = data.draw(st.integers(1, grid.t))
    tokens = eventful(3, grid, events=(1,))
    count = counted(tokens, grid, keep_ratio)
    found, best, drawn = map(np.asarray, everything(tokens, grid, num_slots, keep_ratio))
    np.testing.assert_array_equal(found, count)
    expected = np.sort(np.argsort(-count, axis=1, kind="stable")[:, :num_slots], axis=1)
    np.testing.assert_array_equal(best, expected)
    assert drawn.shape == (3, num_slots)
    assert drawn.dtype == np.int32
    assert (np.diff(drawn, axis=1) > 0).all()
    assert drawn.min() >= 0
    assert drawn.max() < grid.t


def test_events_are_kept():
    tokens = eventful(64, GRID)
    # 144 tokens, of which 43 are kept; 36 of them lie in the three eventful slots.
    best = select(None, tokens, GRID, 4)
    drawn = select(0, tokens, GRID, 4)
    kept = lambda slots: np.isin([3, 4, 9], slots).mean()  # noqa: E731
    assert all(kept(row) == 1 for row in best)
    assert np.mean([kept(row) for row in drawn]) > 0.8  # 1/3 of all slots by chance
    assert len(np.unique(drawn, axis=0)) > 8


def test_the_key_decides_and_no_key_is_no_chance():
    tokens = eventful(8, GRID, events=())
    first, again, other = (np.asarray(select(seed, tokens, GRID, 5)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    same = jnp.broadcast_to(tokens[:1], tokens.shape)
    by_row = select(0, same, GRID, 5)
    assert len(np.unique(by_row, axis=0)) > 1
    assert len(np.unique(select(None, same, GRID, 5), axis=0)) == 1


@pytest.mark.parametrize("seed", [None, 3])
def test_a_row_does_not_depend_on_its_batch(seed):
    tokens = eventful(8, GRID)
    large = select(seed, tokens, GRID, 5)
    np.testing.assert_array_equal(large[:3], select(seed, tokens[:3], GRID, 5))
    changed = select(seed, tokens.at[4:].multiply(-3.0), GRID, 5)
    np.testing.assert_array_equal(large[:4], changed[:4])
