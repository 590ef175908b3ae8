"""What the figures claim, pixel by pixel, and that every figure is a readable, light PNG."""

import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image

from mvm import visualize

GRID = (2, 2, 3)
SIZE = (4, 8, 12)  # tubelets of 2 x 4 x 4


@pytest.fixture
def video():
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def region(token):
    """Pixels of a token written out by hand from n = (t * h + y) * w + x."""
    t, y, x = token // 6, token // 3 % 2, token % 3
    return (slice(2 * t, 2 * t + 2), slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4))


def png(path):
    assert path.stat().st_size < 500_000
    return np.asarray(Image.open(path))


def test_tubelets_are_counted_time_first_and_flattened_t_h_w_c(video):
    tubelets = visualize.split(video, GRID)
    assert tubelets.shape == (12, 32, 3)
    for token in range(12):
        np.testing.assert_array_equal(tubelets[token], video[region(token)].reshape(32, 3))
    np.testing.assert_array_equal(visualize.join(tubelets, GRID, SIZE), video)


def test_overlay_keeps_visible_tints_targets_and_fades_the_rest(video):
    drawn = visualize.overlay(video, [0, 7], [1, 11], GRID)
    for token in (0, 7):
        np.testing.assert_array_equal(drawn[region(token)], video[region(token)])
    for token in (1, 11):
        red, green, blue = drawn[region(token)].astype(int).reshape(-1, 3).T
        assert (red > green).all()
        assert (green > blue).all()
    for token in (2, 3, 4, 5, 6, 8, 9, 10):
        faded = drawn[region(token)].astype(int)
        assert faded.min() >= 200
        assert np.ptp(faded) < np.ptp(video[region(token)].astype(int)) / 5


def test_a_visible_target_is_drawn_as_visible(video):
    drawn = visualize.overlay(video, [4], [4, 5], GRID)
    np.testing.assert_array_equal(drawn[region(4)], video[region(4)])


def test_seen_shows_nothing_but_the_visible_tokens(video):
    drawn = visualize.seen(video, [3], GRID)
    other = visualize.seen(255 - video, [], GRID)
    np.testing.assert_array_equal(drawn[region(3)], video[region(3)])
    drawn[region(3)] = other[region(3)]
    np.testing.assert_array_equal(drawn, other)


@pytest.mark.parametrize("kind", ["normalised", "joint", "pixels"])
def test_true_targets_paste_back_the_true_pixels(video, kind):
    target, visible = np.array([2, 5, 9]), np.array([0, 1])
    tubelets = visualize.split(video, GRID)[target]
    true = visualize.normalise(tubelets, kind)
    true = true.reshape(3, -1)
    drawn = visualize.paste(video, true, target, visible, GRID, kind)
    for token in (0, 1, 2, 5, 9):
        np.testing.assert_array_equal(drawn[region(token)], video[region(token)])
    hidden = drawn[region(10)].reshape(-1, 3)
    assert (hidden == hidden[0]).all()
    errors = visualize.token_errors(video, true, target, GRID, kind)
    np.testing.assert_allclose(errors[target], 0, atol=1e-12)
    assert np.isnan(np.delete(errors, target)).all()


def test_normalise_is_per_channel_with_the_unbiased_variance():
    # One channel holds 0, 0, 1, 1: mean 1/2, unbiased variance 1/3.
    tubelet = np.zeros((1, 4, 3), np.uint8)
    tubelet[0, 2:, 1] = 255
    x = visualize.normalise(tubelet)
    expected = 0.5 / (np.sqrt(1 / 3) + 1e-6)
    np.testing.assert_allclose(x[0, :, 1], [-expected, -expected, expected, expected])
    np.testing.assert_array_equal(x[0, :, [0, 2]], 0)
    np.testing.assert_allclose(visualize.unnormalise(x, tubelet) * 255, tubelet, atol=1e-9)


def test_a_flat_guess_scores_almost_one_as_the_caption_says(video):
    errors = visualize.token_errors(video, np.zeros((2, 96)), [0, 1], GRID)
    np.testing.assert_allclose(errors[:2], 31 / 32, rtol=1e-4)


def test_heat_darkens_with_the_value_and_is_grey_without_one():
    grey = np.full((*SIZE, 3), 128, np.uint8)
    values = np.arange(12.0)
    values[5] = np.nan
    drawn = visualize.heat(grey, values, GRID, 0, 11)
    light = np.array([drawn[region(n)].astype(int).sum() for n in range(12)])
    assert (np.diff(np.delete(light, 5)) < 0).all()
    assert np.ptp(visualize.heat(grey, np.full(12, np.nan), GRID, 0, 1), axis=(0, 1, 2)).max() == 0


def test_borders_surround_a_cell_once_and_not_its_inside():
    one = np.zeros((2, 3), bool)
    one[1, 2] = True
    found = {tuple(map(tuple, segment)) for segment in visualize.borders(one)}
    assert found == {((2, 1), (2, 2)), ((3, 1), (3, 2)), ((2, 1), (3, 1)), ((2, 2), (3, 2))}
    one[1, 1] = True  # two neighbours: six sides, none between them
    assert len(visualize.borders(one)) == 6


def test_wrong_input_is_named(video):
    with pytest.raises(ValueError, match="token 12 is outside grid"):
        visualize.overlay(video, [0], [12], GRID)
    with pytest.raises(ValueError, match=r"does not divide a clip of T, H, W = \(4, 8, 12\)"):
        visualize.seen(video, [0], (2, 2, 5))
    with pytest.raises(ValueError, match=r"uint8 \[B, T, H, W, 3\], got float64"):
        visualize.clips("unused.png", video[None] / 255)
    with pytest.raises(ValueError, match=r"vectors of 96, got .* 95"):
        visualize.reconstruction(
            "unused.png", video[None], np.zeros((1, 1, 95)), [[0]], [[1]], GRID, (2, 4, 4)
        )
    with pytest.raises(ValueError, match="arm 'a' needs accuracies in percent"):
        visualize.accuracies("unused.png", {"a": [101.0]})


def test_masks_shows_visible_pixels_unchanged_in_the_file(tmp_path):
    # Each tubelet has one colour of its own; only those of visible tokens may occur in the file.
    levels = np.arange(12)
    colours = np.stack([20 + 5 * levels, 200 - 9 * levels, 255 - 7 * levels], 1).astype(np.uint8)
    clip = visualize.join(np.repeat(colours[:, None], 32, 1), GRID, SIZE)
    path = tmp_path / "figures" / "masks.png"
    visualize.masks(path, clip[None], [[0, 8]], [[1, 2]], GRID)
    found = {tuple(pixel) for pixel in png(path)[..., :3].reshape(-1, 3)}
    assert {n for n in range(12) if tuple(colours[n]) in found} == {0, 8}


def test_sheets_of_real_video_stay_light(tmp_path, shared):
    with av.open(str(shared / "clips" / "mmaction2_demo.mp4")) as container:
        frames = [f.to_ndarray(format="rgb24") for f, _ in zip(container.decode(video=0), range(8))]
    clips = np.stack([np.stack(frames)[:, 8:232, 8:232]] * 2)
    grid, rng = (4, 14, 14), np.random.default_rng(0)
    order = np.stack([rng.permutation(784) for _ in clips])
    visible, target = np.sort(order[:, :78]), np.sort(order[:, 78:300])
    visualize.masks(tmp_path / "m.png", clips, visible, target, grid, rng.random((2, 784)))
    true = np.stack(
        [visualize.normalise(visualize.split(c, grid))[m] for c, m in zip(clips, target)]
    )
    shape = (2, 222, 1536)
    visualize.reconstruction(
        tmp_path / "r.png", clips, true.reshape(shape), target, visible, grid, (2, 16, 16)
    )
    for name in ("m.png", "r.png"):
        assert png(tmp_path / name).shape[1] > 500


def test_clips_of_any_length_and_shape(tmp_path, video):
    visualize.clips(
        tmp_path / "a.png", video[None], ["a very long name of a class"], [[0, 1, 2, 3]]
    )
    visualize.clips(tmp_path / "b.png", np.zeros((1, 1, 8, 20, 3), np.uint8))
    visualize.clips(tmp_path / "c.png", np.zeros((2, 13, 20, 8, 3), np.uint8))
    assert all(png(tmp_path / f"{name}.png").ndim == 3 for name in "abc")


def test_smooth_is_a_centred_mean_that_ignores_gaps():
    values = np.array([1.0, 2.0, np.nan, 4.0, 8.0])
    np.testing.assert_allclose(visualize.smooth(values, 3), [1.5, 1.5, 3.0, 6.0, 6.0])


def test_curves_leaves_out_what_was_not_logged(tmp_path):
    rows = [{"step": i, "loss": 1 / (i + 1)} for i in range(100)]
    visualize.curves(tmp_path / "one.png", {"run": rows})
    visualize.curves(tmp_path / "loss.png", {"run": rows}, ("loss",))
    np.testing.assert_array_equal(png(tmp_path / "one.png"), png(tmp_path / "loss.png"))
    visualize.curves(tmp_path / "many.png", {str(i): rows[i:] for i in range(8)})
    with pytest.raises(ValueError, match=r"no row of .* has any of"):
        visualize.curves(tmp_path / "none.png", {"run": rows}, ("top1",))


def test_bars_reach_as_far_as_the_accuracy(tmp_path):
    def reach(accuracy):
        visualize.per_class(tmp_path / "bar.png", ["class"], [accuracy], [7])
        blue = np.asarray([int(visualize.style.SOLID[i : i + 2], 16) for i in (1, 3, 5)])
        return (png(tmp_path / "bar.png")[..., :3] == blue).all(-1).any(0).sum()

    assert reach(80) == pytest.approx(2 * reach(40), abs=4)


def test_charts_of_one_and_of_many(tmp_path):
    visualize.accuracies(tmp_path / "one.png", {"only": [50.0]})
    visualize.accuracies(tmp_path / "arms.png", {"a": [50.0, 60.0, 55.0], "b": [90.0]}, chance=12.5)
    names, values = [f"class {i}" for i in range(101)], np.linspace(0, 100, 101)
    values[3] = np.nan
    visualize.per_class(tmp_path / "many.png", names, values, np.ones(101, int))
    high = png(tmp_path / "many.png").shape[0]
    visualize.per_class(tmp_path / "forty.png", names[:40], values[4:44], np.ones(40, int))
    assert high == png(tmp_path / "forty.png").shape[0]
    with pytest.raises(ValueError, match="2 names, 1 accuracies"):
        visualize.per_class(tmp_path / "bad.png", ["a", "b"], [1.0], [1, 1])


def test_importing_it_touches_neither_pyplot_nor_jax():
    code = "import sys, mvm.visualize; print({'jax', 'matplotlib.pyplot'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
