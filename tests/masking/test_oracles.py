"""Each mask against a few lines of NumPy, and every draw against its exact chances."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mvm import masking
from mvm.masking import adamae, everest, frames, motion_tube, sampling
from mvm.types import Grid

GRID, DRAWS = Grid(4, 5, 6), 4000
PLACES = GRID.h * GRID.w


def shown(mask, grid=GRID):
    """`[B, t, h * w]`, True where a token is visible; all others are targets."""
    out = np.zeros((len(mask.visible), grid.n), bool)
    np.put_along_axis(out, np.asarray(mask.visible), True, axis=1)
    np.testing.assert_array_equal(mask.target, [np.flatnonzero(~row) for row in out])
    return out.reshape(len(out), grid.t, grid.h * grid.w)


def sampled(name, batch, grid=GRID, tokens=None, **hparams):
    tokens = jnp.zeros((batch, grid.n, 1)) if tokens is None else tokens
    sample = jax.jit(masking.build(name, grid, **hparams).sample)
    return shown(sample(jax.random.key(0), tokens), grid)


def test_tube_shows_the_same_places_at_all_times():
    rows = sampled("tube", 16, mask_ratio=0.9)
    np.testing.assert_array_equal(rows, np.repeat(rows[:, :1], GRID.t, axis=1))
    assert (rows[:, 0].sum(axis=1) == 3).all()
    assert len(np.unique(rows[:, 0], axis=0)) > 8


def test_frame_shows_whole_slots():
    rows = sampled("frame", 16, mask_ratio=0.75)
    np.testing.assert_array_equal(rows.all(axis=2), rows.any(axis=2))
    assert (rows.all(axis=2).sum(axis=1) == 1).all()
    assert len(set(np.argmax(rows.all(axis=2), axis=1))) == GRID.t


def test_uniform_shows_every_token_and_every_pair_equally_often():
    rows = sampled("uniform", DRAWS, Grid(1, 2, 3), mask_ratio=0.5)[:, 0]
    agrees(rows.mean(axis=0), np.full(6, 0.5))
    # Both of two tokens are shown with probability 3/6 * 2/5.
    pairs = [(rows[:, i] & rows[:, j]).mean() for i in range(6) for j in range(i)]
    agrees(np.array(pairs), np.full(15, 0.2))


# --- EVEREST


def moving(batch=3, grid=GRID, width=7, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, grid.n, width)).astype(np.float32)


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
    found = everest.motion(jnp.asarray(tokens), GRID)
    np.testing.assert_allclose(found, motion(tokens, GRID), rtol=1e-5)
    # Tokens of two slots with two places: they move by (3, 4) and by nothing.
    pair = jnp.array([[[1.0, 1.0], [5.0, 5.0], [4.0, 5.0], [5.0, 5.0]]])
    assert everest.motion(pair, Grid(2, 1, 2)).tolist() == [[5.0, 0.0, 5.0, 0.0]]


def test_everest_keeps_the_highest_scores_and_splits_them_evenly():
    tokens = jnp.asarray(moving())
    scores = np.asarray(everest.motion(tokens, GRID))
    for keep, ratio, num_kept in ((0.3, 0.9, 36), (0.6, 0.4, 72)):
        expected = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :num_kept], axis=1)
        strategy = masking.build("everest", GRID, keep_ratio=keep, mask_ratio=ratio)
        mask = jax.jit(strategy.sample)(jax.random.key(0), tokens)
        kept = np.sort(np.concatenate([mask.visible, mask.target], axis=1), axis=1)
        np.testing.assert_array_equal(kept, expected)
    scores = jnp.broadcast_to(jnp.arange(12.0), (DRAWS, 12))
    mask = everest.partition(scores, sampling.uniform(jax.random.key(0), DRAWS, 6), 3)
    agrees(often(mask.visible, 12), np.repeat([0, 0.5], 6))


# --- EVEREST's frame selection


def eventful(batch, grid, seed=0, events=(3, 4, 9)):
    """Tokens that drift a little all the time and jump a lot in some slots."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(batch, grid.t, grid.h * grid.w, 5)) * 0.1
    steps[:, list(events)] *= 50
    tokens = np.cumsum(steps, axis=1).reshape(batch, grid.n, 5)
    return jnp.asarray(tokens, jnp.float32)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def everything(tokens, grid, num_slots, keep_ratio):
    """Counts, the best slots and drawn ones, in one compilation."""
    pick = functools.partial(frames.select, num_slots=num_slots, keep_ratio=keep_ratio)
    count = frames.informative(tokens, grid, keep_ratio)
    return count, pick(None, tokens, grid), pick(jax.random.key(0), tokens, grid)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    grid=st.builds(Grid, st.integers(2, 5), st.integers(1, 3), st.integers(1, 3)),
    keep_ratio=st.sampled_from([0.1, 0.3, 0.6]),
    data=st.data(),
)
def test_selected_frames_are_those_of_most_informative_tokens(grid, keep_ratio, data):
    num_slots = data.draw(st.integers(1, grid.t))
    tokens = eventful(3, grid, events=(1,))
    count = np.zeros((3, grid.t), int)  # Informative tokens per slot, clip by clip.
    for row, scores in enumerate(motion(np.asarray(tokens), grid)):
        kept = np.argsort(-scores, kind="stable")[: int((1 - (1 - keep_ratio)) * grid.n)]
        np.add.at(count[row], kept // (grid.h * grid.w), 1)
    found, best, drawn = map(np.asarray, everything(tokens, grid, num_slots, keep_ratio))
    np.testing.assert_array_equal(found, count)
    expected = np.sort(np.argsort(-count, axis=1, kind="stable")[:, :num_slots], axis=1)
    np.testing.assert_array_equal(best, expected)
    assert (drawn.shape, drawn.dtype) == ((3, num_slots), np.int32)
    assert (np.diff(drawn, axis=1) > 0).all()
    assert 0 <= drawn.min() <= drawn.max() < grid.t


# --- tubes that bend towards motion


def bent(scores, seed):
    gumbel = sampling.gumbel(jax.random.key(seed), len(scores), PLACES)
    divide = jax.jit(motion_tube.partition, static_argnums=(2, 3))
    return shown(divide(jnp.asarray(scores), gumbel, GRID, 3))


def test_a_still_clip_gets_straight_random_tubes():
    rows = sampled("motion_tube", 64, tokens=jnp.ones((64, GRID.n, 7)))
    np.testing.assert_array_equal(rows, np.repeat(rows[:, :1], GRID.t, axis=1))
    assert (rows.sum(axis=2) == 3).all()
    # 3 of 30 places: five standard deviations of the frequency over 64 clips.
    assert np.abs(rows[:, 0].mean(axis=0) - 0.1).max() < 5 * np.sqrt(0.09 / 64)


def test_motion_tubes_follow_what_moves():
    # In each slot another column of five places moves, and nothing else does.
    scores = np.zeros((16, GRID.t, GRID.h, GRID.w), np.float32)
    for slot in range(GRID.t):
        scores[:, slot, :, slot + 1] = 1.0
    rows = bent(scores.reshape(16, -1), 1)
    assert rows[scores.reshape(rows.shape) == 0].sum() == 0
    assert (rows.sum(axis=2) == 3).all()


# --- draws in proportion, without replacement


def inclusion(weights, k):
    """Chance of each entry to be among k sequential draws in proportion to what is left."""
    weights = np.asarray(weights, float)
    chance = np.zeros(len(weights))
    for order in itertools.permutations(range(len(weights)), k):
        taken, p = 0.0, 1.0
        for i in order:
            p *= weights[i] / (weights.sum() - taken)
            taken += weights[i]
        chance[list(order)] += p
    return chance


def often(index, n):
    """How often each of n entries is drawn, per row."""
    return np.bincount(np.asarray(index).ravel(), minlength=n) / len(index)


def agrees(frequency, chance):
    # Five standard deviations of a frequency, and none where nothing is left to chance.
    deviation = np.sqrt(np.clip(chance * (1 - chance), 0, None) / DRAWS)
    assert (np.abs(frequency - chance) <= 5 * deviation + 1e-9).all(), (frequency, chance)


def test_draws_are_in_proportion():
    noise = lambda n: sampling.gumbel(jax.random.key(0), DRAWS, n)  # noqa: E731
    rows = lambda values: jnp.broadcast_to(jnp.asarray(values), (DRAWS, len(values)))  # noqa: E731
    of_scores, of_frames = (jax.jit(f.draw, static_argnums=2) for f in (adamae, frames))
    p = np.array([0.02, 0.4, 0.05, 0.23, 0.3])
    for k in (1, 2, 4):
        agrees(often(of_scores(rows(np.log(p)), noise(5), k).visible, 5), inclusion(p, k))
    for count, k, chance in (
        ([3, 0, 9, 1, 5], 2, inclusion([3, 0, 9, 1, 5], 2)),
        # All four that have tokens come first, and the one without only when it must.
        ([3, 0, 9, 1, 5], 4, np.array([1, 0, 1, 1, 1.0])),
        ([3, 0, 9, 1, 5], 5, np.ones(5)),
        ([7, 0, 0, 0], 2, np.array([1, 1 / 3, 1 / 3, 1 / 3])),
    ):
        n = len(count)
        agrees(often(of_frames(rows(count), noise(n), k), n), chance)
    motion = np.array([[1.0, 2.0, 4.0, 1.0], [8.0, 1.0, 0.5, 0.5]])
    divide = jax.jit(motion_tube.partition, static_argnums=(2, 3))
    mask = divide(rows(motion.ravel()), noise(4), Grid(2, 2, 2), 2)
    for frequency, weights in zip(often(mask.visible, 8).reshape(2, 4), motion):
        agrees(frequency, inclusion(weights, 2))
