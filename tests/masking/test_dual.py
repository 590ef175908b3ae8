"""VideoMAE V2's dual masking against a loop over tokens and the released masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvm import masking
from mvm.masking import dual
from mvm.types import Grid, UserError

PAPER, GIANT = Grid(8, 14, 14), Grid(8, 16, 16)
RATIOS = (0.25, 0.5, 0.75)
cells = jax.jit(dual.running_cell, static_argnums=(1, 2))


def sample(seed, clips, grid, **hparams):
    strategy = masking.build("dual", grid, **hparams)
    return jax.jit(strategy.sample)(jax.random.key(seed), jnp.zeros((clips, grid.n, 1)))


def decoded(grid, ratio, phase):
    """Which tokens the decoder answers for, `[t, h, w]`, one by one."""
    out = np.zeros(grid, bool)
    for f, y, x in np.ndindex(*grid):
        queue = [1] * int(4 * ratio) + [0] * (4 - int(4 * ratio))
        out[f, y, x] = not queue[(2 * (y % 2) + x % 2 + phase + f + 1) % 4]
    return out


@functools.cache
def maps(grid, ratio):
    """The four maps of `running_cell`, `[4, t, h * w]` boolean."""
    target = np.asarray(cells(jnp.arange(4), grid, ratio))
    assert (np.diff(target, axis=1) > 0).all()
    out = np.zeros((4, grid.n), bool)
    np.put_along_axis(out, target, True, axis=1)
    assert out.sum() == target.size
    return out.reshape(4, grid.t, -1)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("grid", [Grid(1, 2, 2), Grid(5, 4, 6), Grid(8, 6, 4)])
def test_running_cells_are_those_of_a_loop(grid, ratio):
    for phase, row in enumerate(maps(grid, ratio)):
        np.testing.assert_array_equal(row.reshape(grid), decoded(grid, ratio, phase))


@pytest.mark.parametrize(
    ("grid", "ratio", "expected"),
    [
        (PAPER, 0.25, (160, 1176, 1056)),
        (PAPER, 0.5, (160, 784, 704)),
        (PAPER, 0.75, (160, 392, 352)),
        (GIANT, 0.25, (208, 1536, 1380)),
        (GIANT, 0.5, (208, 1024, 920)),
        (GIANT, 0.75, (208, 512, 460)),
    ],
)
def test_counts_of_the_paper_in_every_draw(grid, ratio, expected):
    mask = sample(1, 8, grid, decoder_ratio=ratio)
    assert (mask.visible.shape[1], mask.target.shape[1]) == expected[:2]
    np.testing.assert_array_equal(np.asarray(mask.weight).sum(axis=1), expected[2])


def test_each_clip_draws_one_of_four_phases_evenly():
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


def test_the_encoder_sees_the_tubes_of_tube_masking():
    grid = Grid(4, 6, 6)
    tubes = masking.build("tube", grid).sample(jax.random.key(7), jnp.zeros((5, grid.n, 1)))
    np.testing.assert_array_equal(sample(7, 5, grid).visible, tubes.visible)


def test_what_does_not_fit_is_refused_with_one_line():
    with pytest.raises(UserError, match=r"7x4 tokens .* cells of 2x2; change data.image_size"):
        masking.build("dual", Grid(4, 7, 4))
    with pytest.raises(UserError, match=r"decoder_ratio=0.4 .* choose 0.25, 0.5 or 0.75"):
        masking.build("dual", PAPER, decoder_ratio=0.4)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("grid", [PAPER, Grid(8, 4, 4), GIANT])
def test_the_four_maps_are_the_released_ones(shared, grid, ratio):
    golden = np.load(shared / "golden" / "masks.npz")
    left_out = golden[f"run_cell/{grid.t}x{grid.h}x{grid.w}/r{ratio}/all_mask_maps"]
    ours = {row.tobytes() for row in ~maps(grid, ratio)}
    assert ours == {row.tobytes() for row in left_out}
    assert len(ours) == 4


def test_released_pairs_of_masks_have_our_counts(shared):
    golden = np.load(shared / "golden" / "masks.npz")
    index = lambda hidden: np.stack([np.flatnonzero(~row.ravel()) for row in hidden])  # noqa: E731
    visible, target = index(golden["joint/encoder_mask"]), index(golden["joint/decoder_mask"])
    mask = dual.join(jnp.asarray(visible), jnp.asarray(target), PAPER)
    assert dual.Dual(PAPER).counts() == (mask.visible.shape[1], mask.target.shape[1])
    np.testing.assert_array_equal(golden["joint/count_encoder_visible"], visible.shape[1])
    np.testing.assert_array_equal(golden["joint/count_decoder_tokens"], target.shape[1])
    np.testing.assert_array_equal(golden["joint/count_in_loss"], mask.weight.sum(axis=1))
    np.testing.assert_array_equal(
        golden["joint/count_visible_and_decoded"], (1 - mask.weight).sum(axis=1)
    )
    # A released decoder mask is the one we draw for one of the phases.
    assert {row.tobytes() for row in ~golden["joint/decoder_mask"]} <= {
        row.tobytes() for row in maps(PAPER, 0.5)
    }
