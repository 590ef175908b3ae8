"""What the figures claim, pixel by pixel, and that every figure is a readable PNG."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mvm import figures as visualize
from mvm import masking
from mvm.models import tubelets
from mvm.types import Grid, Tubelet

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


PAINTED, BLOCK = Grid(4, 4, 4), Tubelet(2, 4, 4)
LEVELS = np.array([255, 215, 175])  # of the channels, so that their order shows, too


def painted(names):
    """A clip whose tubelet n has `names[n]` written into it: six bits and one for the frame.

    The complement of every bit stands beside it, so all tubelets have the same mean and deviation:
    nothing but its own pixels tells which one it is. Each channel is turned by its number.
    """
    bits = (np.asarray(names)[:, None] >> np.arange(6)) & 1
    rows = []
    for frame in range(BLOCK.t):
        code = np.concatenate([bits, np.full((len(bits), 1), frame)], 1)
        fixed = np.tile([0, 1], (len(bits), 1))
        rows.append(np.concatenate([code, 1 - code, fixed], 1))
    code = np.stack(rows, 1)
    pixels = np.stack([level * np.roll(code, c, -1) for c, level in enumerate(LEVELS)], -1)
    size = tuple(g * p for g, p in zip(PAINTED, BLOCK))
    return visualize.join(pixels.reshape(PAINTED.n, -1, 3), PAINTED, size).astype(np.uint8)


def read(video, frames=BLOCK.t):
    """`(name, frame)` of every frame of every tubelet `[N, frames, 2]`; -1 where none stands."""
    pixels = visualize.split(video, PAINTED).reshape(PAINTED.n, frames, 16, 3)
    pixels = np.stack([np.roll(pixels[..., c], -c, -1) for c in range(3)], -1)
    on = pixels == LEVELS
    valid = (on.all(-1) | (pixels == 0).all(-1)).all(-1) & on[..., 15, 0]
    valid &= (on[..., :7, 0] != on[..., 7:14, 0]).all(-1)
    name = (on[..., :6, 0] << np.arange(6)).sum(-1)
    return np.where(valid[..., None], np.stack([name, on[..., 6, 0]], -1), -1)


@functools.cache
def drawn_masks(name):
    """A mask of three clips, tokens and log-probabilities being noise."""
    rng, strategy = np.random.default_rng(1), masking.build(name, PAINTED)
    tokens = jnp.asarray(rng.normal(size=(3, PAINTED.n, 8)), jnp.float32)
    scores = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(3, PAINTED.n)), jnp.float32))
    draw = jax.jit(lambda key: strategy.sample(key, tokens, scores))
    return jax.device_get(draw(jax.random.key(0)))


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "normalised") for name in masking.names()), ("tube", "joint"), ("tube", "pixels")],
)
def test_a_painted_tubelet_comes_back_in_its_place(name, kind):
    """Through any strategy and kind of target, visible and predicted tokens lie where they were."""
    names = [(np.arange(PAINTED.n) + 7 * clip) % PAINTED.n for clip in range(3)]
    videos = np.stack([painted(row) for row in names])
    mask = drawn_masks(name)
    pixels, grid = tubelets.split(jnp.asarray(videos), BLOCK)
    assert grid == PAINTED
    target = tubelets.targets(tubelets.gather(pixels, mask.target), tubelets.Targets(kind))
    every, whole = np.concatenate([mask.visible, mask.target], 1), np.zeros_like(pixels)
    np.put_along_axis(whole, every[..., None], tubelets.gather(pixels, every), axis=1)
    joined = np.asarray(tubelets.join(whole, grid, BLOCK))
    for b in range(3):
        truth = np.where(np.isin(np.arange(PAINTED.n), mask.visible[b]), names[b], 63 - names[b])
        # What is not visible is another tubelet here: the right name can only be a prediction.
        pasted = visualize.paste(
            painted(truth), target[b], mask.target[b], mask.visible[b], PAINTED, kind
        )
        shown = np.isin(np.arange(PAINTED.n), every[b])
        expected = np.stack([np.stack([names[b], np.full(PAINTED.n, f)], -1) for f in (0, 1)], 1)
        expected[~shown] = -1
        np.testing.assert_array_equal(read(pasted), expected)
        np.testing.assert_array_equal(read(joined[b]), expected)


def test_of_one_predicted_frame_the_right_one_comes_back():
    """MAE-ST's targets: one frame of a tubelet, the second one in the last slot alone."""
    video, mask = painted(np.arange(PAINTED.n)), drawn_masks("uniform")
    pixels, _ = tubelets.split(jnp.asarray(np.stack([video] * 3)), BLOCK)
    what = tubelets.Targets("joint", 1)
    gathered = tubelets.gather(pixels, mask.target)
    target = tubelets.targets(gathered, what, mask.target, PAINTED, BLOCK)
    kept = video[[0, 2, 4, 7]]
    index = np.arange(PAINTED.n)
    pasted = visualize.paste(kept, target[0], mask.target[0], mask.visible[0], PAINTED, "joint")
    expected = np.stack([index, index >= 48], -1)[:, None]
    np.testing.assert_array_equal(read(pasted, frames=1), expected)


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


def test_clips_of_any_length_and_shape(tmp_path, video):
    visualize.clips(
        tmp_path / "a.png", video[None], ["a very long name of a class"], [[0, 1, 2, 3]]
    )
    visualize.clips(tmp_path / "b.png", np.zeros((1, 1, 8, 20, 3), np.uint8))
    visualize.clips(tmp_path / "c.png", np.zeros((2, 13, 20, 8, 3), np.uint8))
    assert all(png(tmp_path / f"{name}.png").ndim == 3 for name in "abc")


def test_curves_leaves_out_what_was_not_logged(tmp_path):
    rows = [{"step": i, "loss": 1 / (i + 1)} for i in range(100)]
    visualize.curves(tmp_path / "one.png", {"run": rows})
    visualize.curves(tmp_path / "loss.png", {"run": rows}, ("loss",))
    np.testing.assert_array_equal(png(tmp_path / "one.png"), png(tmp_path / "loss.png"))
    visualize.curves(tmp_path / "many.png", {str(i): rows[i:] for i in range(8)})
    with pytest.raises(ValueError, match=r"no row of .* has any of"):
        visualize.curves(tmp_path / "none.png", {"run": rows}, ("top1",))


def test_charts_of_one_and_of_many(tmp_path):
    visualize.compute(tmp_path / "c.png", {"a": [(2.0, 20.0)], "b": [(8.0, 50.0)]}, [12.0], 12.5)
    with pytest.raises(ValueError, match="points is empty"):
        visualize.compute(tmp_path / "none.png", {"a": []})
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


def test_shares_by_hand():
    chosen = np.array([[1, 1, 0, 0], [1, 0, 0, 1]], bool)
    busy = np.array([[1, 0, 0, 0], [1, 0, 1, 0]], bool)
    found = visualize.shares(chosen, busy)
    assert found == (2 / 4, 3 / 8, 2 / 3, 4 / 8)
    assert np.isnan(visualize.shares(chosen, busy & False).found)


def test_frames_shows_what_was_chosen_as_it_is(tmp_path):
    colours = np.array([[20, 200, 255], [60, 120, 200], [90, 40, 10], [130, 90, 160]], np.uint8)
    videos = np.broadcast_to(np.repeat(colours, 2, 0)[:, None, None], (8, 16, 16, 3))[None]
    busy = np.array([[0, 0, 1, 1, 1, 0, 0, 0]], bool)
    counts = [[0, 3, 1, 2]]
    visualize.frames(tmp_path / "f.png", videos, counts, [[1, 3]], busy)
    picture = png(tmp_path / "f.png")
    shown = [(picture == colour).all(-1).sum() for colour in colours]
    assert [count > 100 for count in shown] == [False, True, False, True]
    visualize.frames(tmp_path / "g.png", videos, counts, [[1, 3]])
    with pytest.raises(ValueError, match="3 slots do not divide 8 frames"):
        visualize.frames(tmp_path / "h.png", videos, [[0, 1, 2]], [[1]])
