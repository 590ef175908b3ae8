"""Each paper's mask against a few lines of NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvm import masking
from mvm.masking import everest, sampling
from mvm.types import Grid

GRID = Grid(4, 5, 6)
CLIPS = 16


def hidden(strategy, batch, grid):
    """`[B, t, h * w]`, True where a token is not visible."""
    mask = jax.jit(strategy.sample)(jax.random.key(0), jnp.zeros((batch, grid.n, 1)))
    out = np.ones((batch, grid.n), bool)
    np.put_along_axis(out, np.asarray(mask.visible), False, axis=1)
    np.testing.assert_array_equal(
        np.asarray(mask.target), [np.flatnonzero(row) for row in out]
    )  # These strategies reconstruct all that is hidden.
    return out.reshape(batch, grid.t, grid.h * grid.w)


def test_tube_hides_the_same_places_at_all_times():
    rows = hidden(masking.build("tube", GRID, mask_ratio=0.9), CLIPS, GRID)
    np.testing.assert_array_equal(rows, np.repeat(rows[:, :1], GRID.t, axis=1))
    assert (rows[:, 0].sum(axis=1) == 27).all()
    assert len(np.unique(rows[:, 0], axis=0)) > CLIPS // 2


def test_frame_hides_whole_slots():
    rows = hidden(masking.build("frame", GRID, mask_ratio=0.75), CLIPS, GRID)
    np.testing.assert_array_equal(rows.all(axis=2), rows.any(axis=2))
    assert (rows.all(axis=2).sum(axis=1) == 3).all()
    shown = np.argmin(rows.all(axis=2), axis=1)
    assert len(set(shown)) == GRID.t


def test_uniform_hides_every_token_and_every_pair_equally_often():
    draws, grid = 2000, Grid(1, 2, 3)
    rows = hidden(masking.build("uniform", grid, mask_ratio=0.5), draws, grid)[:, 0]

    def spread(p):
        return 5 * np.sqrt(p * (1 - p) / draws)  # Five standard deviations of a frequency.

    np.testing.assert_allclose(rows.mean(axis=0), 0.5, atol=spread(0.5))
    # Both of two tokens are hidden with probability 3/6 * 2/5.
    pairs = [(rows[:, i] & rows[:, j]).mean() for i in range(6) for j in range(i)]
    np.testing.assert_allclose(pairs, 0.2, atol=spread(0.2))


def moving(batch=3, grid=GRID, width=7, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, grid.n, width)).astype(np.float32)


def kept_by(mask):
    return np.sort(np.concatenate([mask.visible, mask.target], axis=1), axis=1)


def motion(tokens, grid):
    """EVEREST's score, token by token."""
    slots = tokens.astype(np.float64).reshape(len(tokens), grid.t, grid.h * grid.w, -1)
    scores = np.zeros(slots.shape[:3])
    for slot in range(grid.t):
        later = max(slot, 1)  # The first slot takes the scores of the second.
        difference = slots[:, later] - slots[:, later - 1]
        scores[:, slot] = np.sqrt((difference**2).sum(axis=-1))
    return scores.reshape(len(tokens), grid.n)


def test_everest_scores():
    tokens = moving()
    np.testing.assert_allclose(
        everest.motion(jnp.asarray(tokens), GRID), motion(tokens, GRID), rtol=1e-5
    )
    # Tokens of two slots with two places: they move by (3, 4) and by nothing.
    pair = jnp.array([[[1.0, 1.0], [5.0, 5.0], [4.0, 5.0], [5.0, 5.0]]])
    assert everest.motion(pair, Grid(2, 1, 2)).tolist() == [[5.0, 0.0, 5.0, 0.0]]


@pytest.mark.parametrize(("keep", "mask"), [(0.3, 0.9), (0.6, 0.4)])
def test_everest_keeps_the_highest_scores(keep, mask):
    tokens = jnp.asarray(moving())
    num_kept = {0.3: 36, 0.6: 72}[keep]
    scores = np.asarray(everest.motion(tokens, GRID))
    expected = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :num_kept], axis=1)
    strategy = masking.build("everest", GRID, keep_ratio=keep, mask_ratio=mask)
    sample = jax.jit(lambda key: strategy.sample(key, tokens))
    for seed in range(3):
        np.testing.assert_array_equal(kept_by(sample(jax.random.key(seed))), expected)


def test_everest_splits_the_kept_tokens_evenly():
    draws, grid = 2000, Grid(1, 2, 6)
    scores = jnp.broadcast_to(jnp.arange(12.0), (draws, 12))
    mask = everest.partition(scores, sampling.uniform(jax.random.key(0), draws, 6), 3)
    often = np.bincount(np.asarray(mask.visible).ravel(), minlength=grid.n) / draws
    np.testing.assert_array_equal(often[:6], 0)
    np.testing.assert_allclose(often[6:], 0.5, atol=5 * np.sqrt(0.25 / draws))


def test_everest_splits_by_the_noise_in_order_of_score():
    scores = jnp.array([[0.0, 9.0, 1.0, 8.0, 2.0, 7.0]])
    noise = jnp.array([[0.9, 0.1, 0.5]])  # of tokens 1, 3, 5
    mask = everest.partition(scores, noise, 2)
    assert mask.visible.tolist() == [[3, 5]]
    assert mask.target.tolist() == [[1]]


def test_binary_rounding_is_that_of_the_released_code():
    assert [sampling.remaining(n, 0.9) for n in (1568, 800, 200)] == [156, 79, 19]
    assert sampling.remaining(1568, 0.7) == 470
