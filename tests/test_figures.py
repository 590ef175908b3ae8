"""What the figures claim, pixel by pixel, and that every figure is a readable PNG."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mvm.figures import charts, overlays, sheets
from mvm.figures.sheets import Seen
from mvm.models import tubelets
from mvm.types import Grid, Tubelet

GRID, BLOCK = Grid(2, 2, 3), Tubelet(2, 4, 4)


@pytest.fixture
def video():
    return np.random.default_rng(0).integers(0, 256, (4, 8, 12, 3), dtype=np.uint8)


def region(token):
    """Pixels of a token written out by hand from n = (t * h + y) * w + x."""
    t, y, x = token // 6, token // 3 % 2, token % 3
    return (slice(2 * t, 2 * t + 2), slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4))


def png(path):
    picture = np.asarray(Image.open(path))[..., :3]
    assert 300 < picture.shape[1] < 2000
    assert 100 < picture.shape[0] < 4000
    return picture


def test_overlay_keeps_visible_tints_targets_and_fades_the_rest(video):
    drawn = overlays.overlay(video, [0, 7], [1, 7, 11], GRID)
    for token in (0, 7):
        np.testing.assert_array_equal(drawn[region(token)], video[region(token)])
    for token in (1, 11):
        red, green, blue = drawn[region(token)].astype(int).reshape(-1, 3).T
        assert (red > green).all()
        assert (green > blue).all()
    for token in (2, 3, 4, 5, 6, 8, 9, 10):
        assert drawn[region(token)].min() >= 170


def test_seen_shows_nothing_but_the_visible_tokens(video):
    drawn = overlays.seen(video, [3], GRID)
    np.testing.assert_array_equal(drawn[region(3)], video[region(3)])
    drawn[region(3)] = overlays.GREY
    assert (drawn == overlays.GREY).all()


def test_true_targets_come_back_in_their_place(video):
    """Of every kind: targets as the model has them, pasted as drawn."""
    visible, index = np.array([0, 3, 8]), np.array([1, 3, 7, 11])  # 3 is both, as in VideoMAE V2.
    pixels, grid = tubelets.split(jnp.asarray(video[None]), BLOCK)
    for kind in ("normalised", "joint", "pixels"):
        chosen = tubelets.gather(pixels, jnp.asarray(index[None]))
        target = tubelets.targets(chosen, tubelets.Targets(kind))[0]
        pasted = overlays.paste(video, target, index, visible, grid, kind)
        expected = overlays.seen(video, np.union1d(visible, index), grid)
        np.testing.assert_array_equal(pasted, expected, err_msg=kind)
        errors = overlays.token_errors(video, target, index, grid, kind)
        np.testing.assert_allclose(errors[index], 0, atol=1e-9)
        assert np.isnan(errors).sum() == grid.n - len(index)


def test_of_one_predicted_frame_the_right_one_comes_back(video):
    """MAE-ST's targets: one frame of a tubelet, the second one in the last slot alone."""
    pixels, grid = tubelets.split(jnp.asarray(video[None]), BLOCK)
    index = jnp.asarray([[1, 4, 8]])
    what = tubelets.Targets("joint", 1)
    target = tubelets.targets(tubelets.gather(pixels, index), what, index, grid, BLOCK)
    kept = video[[0, 3]]
    pasted = overlays.paste(kept, target[0], index[0], [0], grid, "joint")
    np.testing.assert_array_equal(pasted, overlays.seen(kept, [0, 1, 4, 8], grid))


def test_a_flat_guess_scores_almost_one_as_the_caption_says(video):
    errors = overlays.token_errors(video, np.zeros((2, 96)), [0, 1], GRID)
    np.testing.assert_allclose(errors[:2], 31 / 32, rtol=1e-4)


def test_heat_darkens_with_the_value_and_is_grey_without_one():
    grey = np.full((4, 8, 12, 3), 128, np.uint8)
    values = np.arange(12.0)
    values[5] = np.nan
    drawn = overlays.heat(grey, values, GRID, 0, 11)
    light = np.array([drawn[region(n)].astype(int).sum() for n in range(12)])
    assert (np.diff(np.delete(light, 5)) < 0).all()
    assert (drawn[region(5)] == overlays.GREY).all()


def coloured():
    """A clip whose tubelets have one colour each, and those colours."""
    levels = np.arange(12)
    colours = np.stack([20 + 5 * levels, 200 - 9 * levels, 255 - 7 * levels], 1).astype(np.uint8)
    clip = np.zeros((4, 8, 12, 3), np.uint8)
    for n, colour in enumerate(colours):
        clip[region(n)] = colour
    return clip, colours


def found(path, colours):
    """Those of the colours that a picture has."""
    pixels = np.unique(png(path).reshape(-1, 3), axis=0)
    return {n for n, colour in enumerate(colours) if (pixels == colour).all(1).any()}


def test_sheets_show_visible_pixels_unchanged_and_no_others(tmp_path):
    clip, colours = coloured()
    seen = Seen(clip[None], GRID, np.array([[0, 8]]), np.array([[1, 2]]))
    sheets.masks(tmp_path / "figures" / "masks.png", seen)
    assert found(tmp_path / "figures" / "masks.png", colours) == {0, 8}
    other = seen._replace(visible=np.array([[3, 5]]))
    sheets.strategies(tmp_path / "s.png", {"a": seen, "b": other})
    assert found(tmp_path / "s.png", colours) == set(range(12))  # The clip stands above.
    told = seen._replace(predicted=np.zeros((1, 2, 96)), scores=np.arange(12.0)[None])
    sheets.reconstruction(tmp_path / "r.png", told)
    assert found(tmp_path / "r.png", colours) == set(range(12))


def test_frames_shows_what_was_chosen_as_it_is(tmp_path):
    colours = np.array([[20, 200, 255], [60, 120, 200], [90, 40, 10], [130, 90, 160]], np.uint8)
    videos = np.broadcast_to(np.repeat(colours, 2, 0)[:, None, None], (8, 16, 16, 3))[None]
    sheets.frames(tmp_path / "f.png", videos, np.array([[1, 3]]), every=2)
    assert found(tmp_path / "f.png", colours) == {1, 3}


def test_clips_of_any_length_and_shape(tmp_path):
    sheets.clips(tmp_path / "a.png", np.zeros((1, 3, 8, 20, 3), np.uint8))
    sheets.clips(tmp_path / "b.png", np.zeros((2, 13, 20, 8, 3), np.uint8))
    assert all(png(tmp_path / f"{name}.png").ndim == 3 for name in "ab")


def test_charts_of_one_and_of_many(tmp_path):
    rows = [{"step": i, "loss": 1 / (i + 1)} for i in range(100)]
    charts.curves(tmp_path / "1.png", rows, ("loss", "top1"))
    charts.curves(tmp_path / "2.png", [*rows, {"step": 100, "top1": 3.0}], ("loss", "top1"))
    charts.compute(tmp_path / "3.png", {"a": [(2.0, 20.0)], "b": [(8.0, 50.0)]}, [12.0], 12.5)
    charts.accuracies(tmp_path / "4.png", {"a": [50.0, 60.0], "$b$": [90.0]}, chance=12.5)
    rows = [{"class": f"class {i}", "accuracy": f"{i}", "videos": "1"} for i in range(101)]
    rows[3]["accuracy"] = ""
    charts.per_class(tmp_path / "5.png", rows)
    charts.per_class(tmp_path / "6.png", rows[4:44])
    pictures = [png(tmp_path / f"{n}.png") for n in range(1, 7)]
    assert pictures[0].shape[1] < pictures[1].shape[1]  # One key, two.
    assert pictures[4].shape[0] == pictures[5].shape[0]  # Of many classes 40 are drawn.
