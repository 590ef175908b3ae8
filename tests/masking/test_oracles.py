"""Each mask against NumPy or released numbers, and every draw against its exact chances."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import mask_of
from hypothesis import given, settings
from hypothesis import strategies as st

from mvm import masking
from mvm.masking import adamae, dual, everest, frames, motion_tube, sampling
from mvm.types import Grid

GRID, DRAWS = Grid(4, 5, 6), 4000
bend = jax.jit(motion_tube.partition, static_argnums=(2, 3))


def of_index(index, n):
    """`[B, n]`, True at the given places."""
    out = np.zeros((len(index), n), bool)
    np.put_along_axis(out, np.asarray(index), True, axis=1)
    return out


def shown(mask, grid=GRID):
    """`[B, t, h * w]`, True where a token is visible; all others are targets."""
    out = of_index(mask.visible, grid.n)
    np.testing.assert_array_equal(mask.target, [np.flatnonzero(~row) for row in out])
    return out.reshape(len(out), grid.t, grid.h * grid.w)


def sampled(name, batch, grid=GRID, tokens=None, **hparams):
    tokens = jnp.zeros((batch, grid.n, 1)) if tokens is None else tokens
    sample = jax.jit(masking.build(name, grid, **hparams).sample)
    return shown(sample(jax.random.key(0), tokens), grid)


@pytest.mark.parametrize("name", ["tube", "motion_tube"])
def test_tubes_of_a_still_clip_show_the_same_random_places_at_all_times(name):
    rows = sampled(name, 64, tokens=jnp.ones((64, GRID.n, 7)), mask_ratio=0.9)
    np.testing.assert_array_equal(rows, np.repeat(rows[:, :1], GRID.t, axis=1))
    assert (rows.sum(axis=2) == 3).all()
    # 3 of 30 places: five standard deviations of the frequency over 64 clips.
    assert np.abs(rows[:, 0].mean(axis=0) - 0.1).max() < 5 * np.sqrt(0.09 / 64)


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


def motion(tokens, grid):
    """EVEREST's score, token by token."""
    slots = tokens.astype(np.float64).reshape(len(tokens), grid.t, grid.h * grid.w, -1)
    scores = np.zeros(slots.shape[:3])
    for slot in range(grid.t):
        later = max(slot, 1)  # The first slot takes the scores of the second.
        difference = slots[:, later] - slots[:, later - 1]
        scores[:, slot] = np.sqrt((difference**2).sum(axis=-1))
    return scores.reshape(len(tokens), grid.n)


def test_everest_keeps_the_highest_scores_and_splits_them_evenly():
    tokens = np.random.default_rng(0).normal(size=(3, GRID.n, 7)).astype(np.float32)
    scores = motion(tokens, GRID)
    for keep, ratio, num_kept in ((0.3, 0.9, 36), (0.6, 0.4, 72)):
        expected = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :num_kept], axis=1)
        strategy = masking.build("everest", GRID, keep_ratio=keep, mask_ratio=ratio)
        mask = jax.jit(strategy.sample)(jax.random.key(0), jnp.asarray(tokens))
        kept = np.sort(np.concatenate([mask.visible, mask.target], axis=1), axis=1)
        np.testing.assert_array_equal(kept, expected)
    scores = jnp.broadcast_to(jnp.arange(12.0), (DRAWS, 12))
    mask = everest.partition(scores, sampling.uniform(jax.random.key(0), DRAWS, 6), 3)
    agrees(often(mask.visible, 12), np.repeat([0, 0.5], 6))


# --- EVEREST's frame selection


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    grid=st.builds(Grid, st.integers(2, 5), st.integers(1, 3), st.integers(1, 3)),
    keep_ratio=st.sampled_from([0.1, 0.3, 0.6]),
    data=st.data(),
)
def test_selected_frames_are_those_of_most_informative_tokens(grid, keep_ratio, data):
    num_slots = data.draw(st.integers(1, grid.t))
    # Tokens that drift a little all the time and jump a lot in one slot.
    steps = 0.1 * np.random.default_rng(0).normal(size=(3, grid.t, grid.h * grid.w, 5))
    steps[:, 1] *= 50
    tokens = np.cumsum(steps, axis=1, dtype=np.float32).reshape(3, grid.n, 5)
    count = np.zeros((3, grid.t), int)  # Informative tokens per slot, clip by clip.
    for row, scores in enumerate(motion(tokens, grid)):
        kept = np.argsort(-scores, kind="stable")[: int((1 - (1 - keep_ratio)) * grid.n)]
        np.add.at(count[row], kept // (grid.h * grid.w), 1)

    @jax.jit
    def all_of(tokens):
        pick = partial(frames.select, num_slots=num_slots, keep_ratio=keep_ratio)
        count = frames.informative(tokens, grid, keep_ratio)
        return count, pick(None, tokens, grid), pick(jax.random.key(0), tokens, grid)

    found, best, drawn = map(np.asarray, all_of(tokens))
    np.testing.assert_array_equal(found, count)
    expected = np.sort(np.argsort(-count, axis=1, kind="stable")[:, :num_slots], axis=1)
    np.testing.assert_array_equal(best, expected)
    assert (drawn.shape, drawn.dtype) == ((3, num_slots), np.int32)
    assert (np.diff(drawn, axis=1) > 0).all()
    assert 0 <= drawn.min() <= drawn.max() < grid.t


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
    mask = bend(rows(motion.ravel()), noise(4), Grid(2, 2, 2), 2)
    for frequency, weights in zip(often(mask.visible, 8).reshape(2, 4), motion):
        agrees(frequency, inclusion(weights, 2))


# --- AdaMAE


def test_counts_and_draws_are_the_released_ones(shared):
    golden = np.load(shared / "golden" / "everest_pretrain.npz")
    kept = [sampling.remaining(n, r) for n, r in zip(golden["counts/N"], golden["counts/ratio"])]
    np.testing.assert_array_equal(kept, golden["counts/kept"])
    golden = np.load(shared / "golden" / "adamae_pretrain.npz")
    for n, ratio, visible in zip(*(golden[f"counts/{k}"] for k in ("N", "ratio", "visible"))):
        counts = adamae.AdaMae(Grid(1, 1, int(n)), mask_ratio=float(ratio)).counts()
        assert counts == (visible, n - visible)
    for prefix in ("drop/", ""):
        scores, gumbel = (jnp.asarray(np.log(golden[prefix + k])) for k in ("p_x", "exp_noise"))
        mask = adamae.draw(scores, -gumbel, 12)
        jax.tree.map(np.testing.assert_array_equal, mask, mask_of(golden[prefix + "mask"]))


# --- VideoMAE V2's dual masking

PAPER = Grid(8, 14, 14)


def maps(grid, ratio):
    """The four maps of `running_cell`, `[4, t, h * w]` boolean."""
    cells = jax.jit(dual.running_cell, static_argnums=(1, 2))
    return of_index(cells(jnp.arange(4), grid, ratio), grid.n).reshape(4, grid.t, -1)


def test_the_four_maps_are_the_released_ones(shared):
    golden = np.load(shared / "golden" / "masks.npz")
    for grid in (PAPER, Grid(8, 4, 4), Grid(8, 16, 16)):
        for ratio in (0.25, 0.5, 0.75):
            left_out = golden[f"run_cell/{grid.t}x{grid.h}x{grid.w}/r{ratio}/all_mask_maps"]
            ours = {row.tobytes() for row in ~maps(grid, ratio)}
            assert ours == {row.tobytes() for row in left_out}, (grid, ratio)
            assert len(ours) == 4


def test_released_pairs_of_masks_have_our_counts(shared):
    golden = np.load(shared / "golden" / "masks.npz")
    hidden, left_out = (golden[f"joint/{k}_mask"] for k in ("encoder", "decoder"))
    released = mask_of(*(x.reshape(len(x), -1) for x in (hidden, ~left_out)))
    mask = dual.join(jnp.asarray(released.visible), jnp.asarray(released.target), PAPER)
    jax.tree.map(np.testing.assert_array_equal, mask, released)
    assert dual.Dual(PAPER).counts() == (mask.visible.shape[1], mask.target.shape[1])
    np.testing.assert_array_equal(golden["joint/count_in_loss"], mask.weight.sum(axis=1))


def test_each_clip_draws_one_of_four_phases_evenly_and_the_tubes_of_tube_masking():
    grid, clips = Grid(4, 2, 2), 2000
    sample = jax.jit(masking.build("dual", grid, mask_ratio=0.5).sample)
    mask = sample(jax.random.key(0), jnp.zeros((clips, grid.n, 1)))
    answered = of_index(mask.target, grid.n)
    same = (answered[:, None] == maps(grid, 0.5).reshape(4, -1)).all(axis=-1)
    np.testing.assert_array_equal(same.sum(axis=1), 1)
    np.testing.assert_allclose(same.mean(axis=0), 0.25, atol=5 * np.sqrt(3 / 16 / clips))
    # The phase says nothing about the tube: each meets each of the first slot's places alike.
    first = np.asarray(mask.visible)[:, 0] == 0
    np.testing.assert_allclose(same[first].mean(axis=0), 0.25, atol=5 * np.sqrt(3 / 8 / clips))
    tubes = sampled("tube", clips, grid, mask_ratio=0.5)
    np.testing.assert_array_equal(of_index(mask.visible, grid.n).reshape(tubes.shape), tubes)
