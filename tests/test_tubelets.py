"""Cutting clips into tubelets, putting them together, and what the decoder has to predict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvm.models import tubelets
from mvm.types import Tubelet, UserError

SIZES = [
    (Tubelet(2, 16, 16), (2, 4, 32, 48)),
    (Tubelet(1, 4, 8), (1, 3, 12, 16)),
    (Tubelet(3, 2, 2), (2, 6, 4, 10)),
]


def painted(shape):
    """A clip `[B, T, H, W, 3]` in which every value is its own index."""
    return np.arange(np.prod(shape) * 3, dtype=np.int32).reshape(*shape, 3)


@pytest.mark.parametrize(("tubelet", "shape"), SIZES)
def test_every_value_lands_in_its_token_and_place_and_comes_back(tubelet, shape):
    for dtype in (np.uint8, np.float32, np.int32):
        video = painted(shape).astype(dtype)
        pixels, grid = tubelets.split(jnp.asarray(video), tubelet)
        assert pixels.shape == (shape[0], grid.n, tubelet.pixels)
        assert pixels.dtype == dtype
        clip, frame, row, column, channel = np.indices(video.shape)
        token = (frame // tubelet.t * grid.h + row // tubelet.h) * grid.w + column // tubelet.w
        place = (frame % tubelet.t * tubelet.h + row % tubelet.h) * tubelet.w + column % tubelet.w
        np.testing.assert_array_equal(np.asarray(pixels)[clip, token, place * 3 + channel], video)
        np.testing.assert_array_equal(tubelets.join(pixels, grid, tubelet), video)


def test_an_indivisible_clip_is_one_line_with_both_sizes():
    for frames, height, width in ((15, 224, 224), (16, 225, 224), (16, 224, 100), (0, 224, 224)):
        said = rf"{frames} frames of {height}x{width} px .* 2x16x16; change .*data.image_size"
        with pytest.raises(UserError, match=said):
            Tubelet(2, 16, 16).grid(frames, height, width)


def test_bytes_and_floats_are_the_same_pixels():
    video = np.random.default_rng(0).integers(0, 256, (2, 3, 12), dtype=np.uint8)
    as_floats = jnp.asarray(video.astype(np.float32) / 255)
    for function in (tubelets.unit, tubelets.standardise, tubelets.targets):
        np.testing.assert_allclose(function(jnp.asarray(video)), function(as_floats), atol=1e-5)


def test_standardise_takes_out_each_channel():
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = np.random.default_rng(1).integers(0, 256, (2, 5, 24), dtype=np.uint8)
    expected = (pixels.reshape(2, 5, 8, 3) / 255 - mean) / std
    actual = tubelets.standardise(jnp.asarray(pixels))
    np.testing.assert_allclose(actual, expected.reshape(2, 5, 24), atol=2e-6)


def test_targets_against_float64():
    pixels = np.random.default_rng(2).integers(0, 256, (2, 5, 2 * 4 * 4 * 3), dtype=np.uint8)
    x = pixels.reshape(2, 5, 32, 3).astype(np.float64) / 255
    mean, std = x.mean(axis=2, keepdims=True), x.std(axis=2, ddof=1, keepdims=True)
    expected = ((x - mean) / (std + 1e-6)).reshape(pixels.shape)
    np.testing.assert_allclose(tubelets.targets(jnp.asarray(pixels)), expected, atol=1e-5)
    plain = tubelets.targets(jnp.asarray(pixels), tubelets.Targets("pixels"))
    np.testing.assert_allclose(plain, pixels / 255.0, atol=1e-7)


def test_targets_carry_no_gradient():
    pixels = jax.random.uniform(jax.random.key(0), (1, 2, 24))
    grads = jax.grad(lambda x: jnp.sum(tubelets.targets(x) ** 2))(pixels)
    np.testing.assert_array_equal(grads, np.zeros_like(pixels))
