"""AdaMAE's and VideoMAE V2's masks: the released implementations' numbers, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvm import masking
from mvm.masking import adamae, dual
from mvm.types import Grid, Mask, UserError

# --- AdaMAE


def test_counts_and_draws_are_the_released_ones_of_adamae(shared):
    golden = np.load(shared / "golden" / "adamae_pretrain.npz")
    for n, ratio, visible in zip(
        *(golden[f"counts/{k}"].tolist() for k in ("N", "ratio", "visible"))
    ):
        counts = adamae.AdaMae(Grid(1, 1, n), mask_ratio=ratio).counts()
        assert counts == (visible, n - visible)
    for prefix in ("drop/", ""):
        hidden = golden[prefix + "mask"]
        index = [[np.flatnonzero(row) for row in rows] for rows in (~hidden, hidden)]
        visible, target = (jnp.asarray(np.stack(rows)) for rows in index)
        released = Mask(visible, target, jnp.ones(target.shape))
        scores, gumbel = (jnp.asarray(np.log(golden[prefix + k])) for k in ("p_x", "exp_noise"))
        mask = adamae.draw(scores, -gumbel, 12)
        jax.tree.map(np.testing.assert_array_equal, mask, released)
        np.testing.assert_array_equal(mask.visible, np.sort(golden[prefix + "vis_idx"], axis=1))


# --- VideoMAE V2's dual masking

PAPER, GIANT = Grid(8, 14, 14), Grid(8, 16, 16)
RATIOS = (0.25, 0.5, 0.75)
cells = jax.jit(dual.running_cell, static_argnums=(1, 2))


def sample(seed, clips, grid, **hparams):
    strategy = masking.build("dual", grid, **hparams)
    return jax.jit(strategy.sample)(jax.random.key(seed), jnp.zeros((clips, grid.n, 1)))


def maps(grid, ratio):
    """The four maps of `running_cell`, `[4, t, h * w]` boolean."""
    target = np.asarray(cells(jnp.arange(4), grid, ratio))
    assert (np.diff(target, axis=1) > 0).all()
    out = np.zeros((4, grid.n), bool)
    np.put_along_axis(out, target, True, axis=1)
    assert out.sum() == target.size
    return out.reshape(4, grid.t, -1)


def test_the_four_maps_are_the_released_ones(shared):
    golden = np.load(shared / "golden" / "masks.npz")
    for grid in (PAPER, Grid(8, 4, 4), GIANT):
        for ratio in RATIOS:
            left_out = golden[f"run_cell/{grid.t}x{grid.h}x{grid.w}/r{ratio}/all_mask_maps"]
            ours = {row.tobytes() for row in ~maps(grid, ratio)}
            assert ours == {row.tobytes() for row in left_out}, (grid, ratio)
            assert len(ours) == 4


def test_released_pairs_of_masks_have_our_counts(shared):
    golden = np.load(shared / "golden" / "masks.npz")
    index = lambda hidden: np.stack([np.flatnonzero(~row.ravel()) for row in hidden])  # noqa: E731
    visible, target = index(golden["joint/encoder_mask"]), index(golden["joint/decoder_mask"])
    mask = dual.join(jnp.asarray(visible), jnp.asarray(target), PAPER)
    assert dual.Dual(PAPER).counts() == (mask.visible.shape[1], mask.target.shape[1])
    for name, count in {
        "encoder_visible": visible.shape[1],
        "decoder_tokens": target.shape[1],
        "in_loss": mask.weight.sum(axis=1),
        "visible_and_decoded": (1 - mask.weight).sum(axis=1),
    }.items():
        np.testing.assert_array_equal(golden[f"joint/count_{name}"], count, name)
    # A released decoder mask is the one we draw for one of the phases.
    released = {row.tobytes() for row in ~golden["joint/decoder_mask"]}
    assert released <= {row.tobytes() for row in maps(PAPER, 0.5)}


def test_each_clip_draws_one_of_four_phases_evenly_and_the_tubes_of_tube_masking():
    grid, clips = Grid(4, 2, 2), 2000
    mask = sample(0, clips, grid, mask_ratio=0.5)
    shown = np.zeros((clips, grid.n), bool)
    np.put_along_axis(shown, np.asarray(mask.target), True, axis=1)
    same = (shown[:, None] == maps(grid, 0.5).reshape(4, -1)).all(axis=-1)
    np.testing.assert_array_equal(same.sum(axis=1), 1)
    np.testing.assert_allclose(same.mean(axis=0), 0.25, atol=5 * np.sqrt(3 / 16 / clips))
    # The phase says nothing about the tube: each meets each of the first slot's places alike.
    first = np.asarray(mask.visible)[:, 0] == 0
    np.testing.assert_allclose(same[first].mean(axis=0), 0.25, atol=5 * np.sqrt(3 / 8 / clips))
    tubes = masking.build("tube", grid, mask_ratio=0.5).sample
    tubes = tubes(jax.random.key(0), jnp.zeros((clips, grid.n, 1)))
    np.testing.assert_array_equal(mask.visible, tubes.visible)


def test_what_does_not_fit_is_refused_with_one_line():
    with pytest.raises(UserError, match=r"7x4 tokens .* cells of 2x2; change data.image_size"):
        masking.build("dual", Grid(4, 7, 4))
    with pytest.raises(UserError, match=r"decoder_ratio=0.4 .* choose 0.25, 0.5 or 0.75"):
        masking.build("dual", PAPER, decoder_ratio=0.4)
