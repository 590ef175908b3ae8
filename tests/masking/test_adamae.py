"""AdaMAE's draw and sampling loss: closed forms, and the released implementation's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvm import masking
from mvm.masking import adamae
from mvm.types import Grid, Mask

CLIPS, TOKENS, SHOWN = 3, 10, 4


def case(seed=0):
    """Logits, errors of the targets and a mask."""
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.normal(size=(CLIPS, TOKENS)), axis=1)
    visible, target = np.sort(order[:, :SHOWN]), np.sort(order[:, SHOWN:])
    mask = Mask(jnp.asarray(visible), jnp.asarray(target), jnp.ones(target.shape))
    logits = jnp.asarray(rng.normal(size=(CLIPS, TOKENS)), jnp.float32)
    return logits, jnp.asarray(rng.uniform(0.1, 2, size=target.shape), jnp.float32), mask


STRATEGY = masking.build("adamae", Grid(1, 1, TOKENS), mask_ratio=0.59)
WEIGHT = 1e-4


def gradient(logits, error, mask):
    value = lambda logits: STRATEGY.loss(jax.nn.log_softmax(logits), error, mask)  # noqa: E731
    return np.asarray(jax.grad(value)(logits)) / WEIGHT


def test_masked_loss_is_a_cross_entropy_with_the_error_map():
    logits, error, mask = case()
    p, num_target = np.asarray(jax.nn.softmax(logits)), TOKENS - SHOWN
    spread = np.zeros((CLIPS, TOKENS))
    np.put_along_axis(spread, np.asarray(mask.target), np.asarray(error), axis=1)
    expected = (p * spread.sum(axis=1, keepdims=True) - spread) / num_target / CLIPS
    np.testing.assert_allclose(gradient(logits, error, mask), expected, atol=1e-7)
    value = STRATEGY.loss(jnp.log(p), error, mask)
    np.testing.assert_allclose(
        value, -1e-4 * (np.log(p) * spread).sum() / num_target / CLIPS, rtol=1e-6
    )


def test_impossible_tokens_cost_a_finite_amount_and_have_no_gradient():
    logits, error, mask = case()
    logits = logits.at[0, mask.target[0, 0]].set(-200.0)
    error = jnp.zeros_like(error).at[0, 0].set(1.0)
    value = STRATEGY.loss(jax.nn.log_softmax(logits), error, mask) / WEIGHT
    # The smallest log-probability a released categorical distribution knows is log 2^-23.
    np.testing.assert_allclose(value, 23 * np.log(2) / (TOKENS - SHOWN) / CLIPS, rtol=1e-6)
    np.testing.assert_array_equal(gradient(logits, error, mask), 0)


@pytest.fixture
def golden(shared):
    return np.load(shared / "golden" / "adamae_pretrain.npz")


def released(golden, prefix=""):
    """The released mask as ours."""
    hidden = golden[prefix + "mask"]
    index = [[np.flatnonzero(row) for row in rows] for rows in (~hidden, hidden)]
    visible, target = (jnp.asarray(np.stack(rows)) for rows in index)
    return Mask(visible, target, jnp.ones(target.shape))


def test_counts_are_the_released_ones(golden):
    for n, ratio, visible in zip(
        *(golden[f"counts/{k}"].tolist() for k in ("N", "ratio", "visible"))
    ):
        counts = adamae.AdaMae(Grid(1, 1, n), mask_ratio=ratio).counts()
        assert counts == (visible, n - visible)


@pytest.mark.parametrize("prefix", ["", "drop/"])
def test_the_released_noise_draws_the_released_mask(golden, prefix):
    scores, gumbel = (jnp.asarray(np.log(golden[prefix + k])) for k in ("p_x", "exp_noise"))
    mask, expected = adamae.draw(scores, -gumbel, 12), released(golden, prefix)
    jax.tree.map(np.testing.assert_array_equal, mask, expected)
    np.testing.assert_array_equal(mask.visible, np.sort(golden[prefix + "vis_idx"], axis=1))


def test_the_loss_is_the_released_one(golden):
    scores = jax.nn.log_softmax(golden["act/encoder.get_token_probs.logits"])
    np.testing.assert_allclose(scores, golden["log_probs"], atol=2e-6)
    error, mask = jnp.asarray(golden["mask_l_r"]), released(golden)
    np.testing.assert_allclose(STRATEGY.loss(scores, error, mask), golden["m_l_s"], rtol=1e-5)
    rows = jax.tree.map(lambda x: x[:, None], (scores, error, mask))
    np.testing.assert_allclose(jax.vmap(STRATEGY.loss)(*rows) / WEIGHT, golden["l_s"], rtol=1e-5)
