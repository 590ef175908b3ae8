"""Tubes that bend towards motion: straight where nothing moves, otherwise where it is."""

import jax
import jax.numpy as jnp
import numpy as np

from mvm import masking
from mvm.masking import motion_tube, sampling
from mvm.types import Grid

GRID = Grid(4, 5, 6)
PLACES = GRID.h * GRID.w
partition = jax.jit(motion_tube.partition, static_argnums=(2, 3))


@jax.jit
def sample(seed, tokens, scores=None):
    return masking.build("motion_tube", GRID).sample(jax.random.key(seed), tokens, scores)


def shown(mask):
    """`[B, t, h * w]`, True where a token is visible."""
    out = np.zeros((len(mask.visible), GRID.n), bool)
    np.put_along_axis(out, np.asarray(mask.visible), True, axis=1)
    assert (~out).sum() == mask.target.size
    np.testing.assert_array_equal(mask.target, [np.flatnonzero(~row) for row in out])
    return out.reshape(len(out), GRID.t, PLACES)


def test_a_still_clip_gets_straight_random_tubes():
    rows = shown(sample(0, jnp.ones((64, GRID.n, 7))))
    np.testing.assert_array_equal(rows, np.repeat(rows[:, :1], GRID.t, axis=1))
    assert (rows.sum(axis=2) == 3).all()
    # 3 of 30 places: five standard deviations of the frequency over 64 clips.
    assert np.abs(rows[:, 0].mean(axis=0) - 0.1).max() < 5 * np.sqrt(0.09 / 64)


def test_visible_tokens_follow_what_moves():
    # In each slot another column of five places moves, and nothing else does.
    scores = np.zeros((16, GRID.t, GRID.h, GRID.w), np.float32)
    for slot in range(GRID.t):
        scores[:, slot, :, slot + 1] = 1.0
    gumbel = sampling.gumbel(jax.random.key(1), 16, PLACES)
    rows = shown(partition(jnp.asarray(scores.reshape(16, -1)), gumbel, GRID, 3))
    assert rows[scores.reshape(rows.shape) == 0].sum() == 0
    assert (rows.sum(axis=2) == 3).all()


def test_the_second_slot_tells_where_the_first_one_looks():
    # A random half of the places jumps from each slot to the next, the others stand still.
    rng = np.random.default_rng(5)
    steps = rng.normal(size=(16, GRID.t, PLACES, 7)) * rng.integers(2, size=(16, GRID.t, PLACES, 1))
    tokens = jnp.asarray(np.cumsum(steps, axis=1).reshape(16, GRID.n, 7), jnp.float32)
    rows = shown(sample(6, tokens))
    np.testing.assert_array_equal(rows[:, 0], rows[:, 1])
    assert (rows[:, 1] != rows[:, 2]).any(axis=1).mean() > 0.5
    # The second slot of tokens is reached by the second step.
    assert steps[:, 1][rows[:, 0]].any(axis=-1).all()
