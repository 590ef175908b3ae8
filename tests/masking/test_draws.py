"""Drawing in proportion, without replacement: every strategy's noise against exact chances."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvm.masking import adamae, frames, motion_tube, sampling
from mvm.types import Grid

DRAWS = 4000


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


def noise(n, seed=0):
    return sampling.gumbel(jax.random.key(seed), DRAWS, n)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_adamae_draws_by_probability(k):
    p = np.array([0.02, 0.4, 0.05, 0.23, 0.3])
    scores = jnp.broadcast_to(jnp.log(p), (DRAWS, 5))
    agrees(often(adamae.draw(scores, noise(5), k).visible, 5), inclusion(p, k))


def test_frames_are_drawn_by_their_counts():
    count = np.array([3, 0, 9, 1, 5])
    rows = jnp.broadcast_to(count, (DRAWS, 5))
    agrees(often(frames.draw(rows, noise(5), 2), 5), inclusion(count, 2))
    # All four that have tokens come first, and the one without only when it must.
    agrees(often(frames.draw(rows, noise(5), 4), 5), np.array([1, 0, 1, 1, 1.0]))
    agrees(often(frames.draw(rows, noise(5), 5), 5), np.ones(5))


def test_frames_without_tokens_are_drawn_evenly():
    rows = jnp.broadcast_to(jnp.array([7, 0, 0, 0]), (DRAWS, 4))
    agrees(often(frames.draw(rows, noise(4), 2), 4), np.array([1, 1 / 3, 1 / 3, 1 / 3]))


def test_every_slot_of_motion_tubes_is_a_draw_by_its_motion():
    motion = np.array([[1.0, 2.0, 4.0, 1.0], [8.0, 1.0, 0.5, 0.5]])
    scores = jnp.broadcast_to(motion.ravel(), (DRAWS, 8))
    mask = motion_tube.partition(scores, noise(4), Grid(2, 2, 2), 2)
    frequency = often(mask.visible, 8).reshape(2, 4)
    for slot in range(2):
        agrees(frequency[slot], inclusion(motion[slot], 2))
