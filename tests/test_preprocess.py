"""Pixels on the device: mixed and erased."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mvm import preprocess
from mvm.models import tubelets

NOT_CUT = np.zeros(4, np.int32)


@pytest.mark.parametrize("name", ["mixup_videomae.npz", "mixup_videomaev2.npz"])
def test_mixup_and_cutmix_are_the_released_ones(shared, name):
    """The released code mixes `[B, 3, T, H, W]`; the one rounding apart is its double lambda."""
    golden = np.load(shared / "golden" / name)
    clips = jnp.asarray(golden["x"].transpose(0, 2, 3, 4, 1))
    labels = optax.smooth_labels(jax.nn.one_hot(golden["y"], 7), 0.1)
    for case in ("mixup0", "mixup1", "cutmix0", "cutmix1", "cutmix2"):
        cut = case.startswith("cutmix")
        lam = jnp.float32(golden[f"{case}/lam_corrected" if cut else f"{case}/lam"])
        box = golden[f"{case}/box_yl_yh_xl_xh"] if cut else NOT_CUT
        video, mixed = preprocess.mix(clips, clips[::-1], labels, lam, jnp.asarray(box))
        expected = golden[f"{case}/x"].transpose(0, 2, 3, 4, 1)
        if cut:  # Pixels are moved, never computed.
            np.testing.assert_array_equal(video, expected)
        np.testing.assert_allclose(video, expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(mixed, golden[f"{case}/y"], rtol=1e-6, atol=1e-7)


def test_erasing_writes_in_the_box_only_and_differs_per_frame():
    levels = np.random.default_rng(1).integers(0, 256, (2, 3, 10, 12, 3), np.uint8)
    clips = jnp.asarray(levels)
    # (y, x, h, w): rows 2 to 4 and columns 5 to 11 of the first clip, nothing of the second.
    boxes = jnp.array([[2, 5, 3, 7], [0, 0, 0, 0]])
    video = np.asarray(preprocess.erase(jax.random.key(0), clips, boxes))
    plain = np.asarray(tubelets.unit(clips))
    np.testing.assert_allclose(plain, levels / 255.0, rtol=1e-6)
    erased = np.zeros(clips.shape, bool)
    erased[0, :, 2:5, 5:12] = True
    np.testing.assert_array_equal(video != plain, erased)
    noise = video[0, :, 2:5, 5:12]
    assert len(np.unique(noise)) == noise.size  # no pixel, channel or frame repeats another


def test_erasing_noise_is_standard_normal_for_the_model():
    clips = jnp.zeros((2, 4, 32, 32, 3), jnp.uint8)
    whole = jnp.array([[0, 0, 32, 32]] * 2)
    video = preprocess.erase(jax.random.key(1), clips, whole)
    seen = np.asarray(tubelets.standardise(video))
    # 8192 numbers per channel: standard errors of .011 and .008.
    np.testing.assert_allclose(seen.mean(axis=(0, 1, 2, 3)), 0, atol=0.05)
    np.testing.assert_allclose(seen.std(axis=(0, 1, 2, 3)), 1, atol=0.04)
    assert np.abs(np.corrcoef(seen.reshape(-1, 3).T) - np.eye(3)).max() < 0.05
