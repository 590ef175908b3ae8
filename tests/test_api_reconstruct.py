"""Autoencoders in the API: their masks, predictions and embeddings."""

import jax
import numpy as np
import pytest
from models_on_disk import configure, official, refused, video, write_run

import mvm
from mvm import inference, objectives, tasks
from mvm.models import tubelets
from mvm.types import Grid, Mask
from mvm.weights import files


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """EVEREST's, which selects 16 frames of those it is given, and its weights."""
    folder = tmp_path_factory.mktemp("autoencoder")
    params = write_run(folder, configure("everest_ucf101", "smoke", data={"num_candidates": 24}))
    return mvm.load(folder), params


def test_a_reconstruction_is_that_of_the_model(autoencoder):
    (loaded, params), clip = autoencoder, video(24, 32, 32)
    task = loaded.network.task
    model = task.model(params, {})
    clip[3:11] = clip[2]  # Slots 2 to 4 do not move, so they are left out, one of them not.

    @jax.jit
    def forward(clip):
        out = model(jax.random.key(5), clip, task.strategy, train=False)
        return out, objectives.token_error(out.predicted, out.target)

    out, error = forward(clip[None])
    found, seen = loaded.reconstruct(clip, key=5), loaded.mask(clip, key=5)
    np.testing.assert_array_equal(seen.visible, out.mask.visible)
    np.testing.assert_array_equal(seen.videos[0], clip[found.frames])
    assert found.frames.shape == (16,)
    assert (np.diff(found.frames) > 0).all()
    assert not {4, 5, 6, 7, 8, 9} <= set(found.frames.tolist())
    assert found.error.shape == (8, 4, 4)
    np.testing.assert_array_equal(np.flatnonzero(found.visible), out.mask.visible[0])
    np.testing.assert_array_equal(np.flatnonzero(found.target), out.mask.target[0])
    np.testing.assert_array_equal(np.isfinite(found.error), found.target)
    np.testing.assert_allclose(found.error[found.target], error[0], rtol=1e-3)


def test_the_key_draws_the_mask_and_the_encoder_embeds_unmasked(autoencoder):
    model, clip = autoencoder[0], video(24, 32, 32)
    first, second = model.reconstruct([clip, clip], key=1)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    other = model.reconstruct(clip, key=2)
    assert (other.visible != first.visible).any()
    clip = video(32, 32, 16)
    tokens = model.embed(clip, tokens=True)
    assert tokens.shape == (8, 4, 2, 64)  # of the kept frames
    np.testing.assert_allclose(model.embed(clip), tokens.mean(axis=(0, 1, 2)), atol=1e-5)


@pytest.mark.parametrize("model", [{}, {"targets": "joint", "target_frames": 1}])
def test_true_predictions_paint_the_clip(model):
    task = tasks.build(configure("everest_ucf101", "smoke", model=model))
    grid, tubelet, what = Grid(3, 2, 4), task.tubelet, task.targets
    clip, order = video(6, 16, 32), np.random.default_rng(1).permutation(24)
    # Two targets are visible, too, as in VideoMAE V2: decoded, but of no weight.
    visible, target = np.sort(order[:5]), np.sort(order[3:14])
    weight = 1.0 - np.isin(target, visible)

    @jax.jit
    def true(clip):
        pixels, _ = tubelets.split(clip, tubelet)
        index = target[None]
        return tubelets.targets(tubelets.gather(pixels, index), what, index, grid, tubelet)[0]

    predicted = np.asarray(true(clip[None])) + 9.0 * (weight == 0)[:, None]
    out = inference.paint(task, clip, np.arange(3), predicted, Mask(visible, target, weight))
    assert np.flatnonzero(out.visible).tolist() == visible.tolist()
    assert np.flatnonzero(out.target).tolist() == target[weight > 0].tolist()
    np.testing.assert_allclose(out.error[out.target], 0, atol=1e-6)
    assert np.isnan(out.error[~out.target]).all()
    for t, h, w in np.ndindex(grid):
        for frame in (0, 1):
            place = np.s_[2 * t + frame, 8 * h : 8 * h + 8, 8 * w : 8 * w + 8]
            # Of six frames mae_st predicts 0, 2 and 5.
            told = not what.frames or frame == (0, 0, 1)[t]
            if out.visible[t, h, w] or (out.target[t, h, w] and told):
                np.testing.assert_array_equal(out.pixels[place], clip[place])
            else:
                assert len(np.unique(out.pixels[place].reshape(-1, 3), axis=0)) == 1


def test_learned_positions_one_frame_and_another_mask_on_another_grid(tmp_path):
    config = configure("mae_st_k400")
    params = write_run(tmp_path, config)
    assert params["encoder"]["positions"]["time"].shape == (8, 64)
    model = mvm.load(tmp_path, mask={"name": "tube", "mask_ratio": 0.75})
    found = model.reconstruct(video(12, 24, 40))
    assert found.pixels.shape == (12, 24, 40, 3)
    assert (found.visible ^ found.target).all()
    assert (found.visible == found.visible[:1]).all()
    assert found.visible[0].sum() == 15 - int(0.75 * 15)
    refused("^positions='rebuilt' is for .*leave posit", mvm.load, tmp_path, positions="rebuilt")


def test_a_file_of_adamae_has_a_mask_that_stays_on_its_grid(tmp_path):
    weights = official(configure("adamae_k400"))
    files.write(tmp_path / "a.safetensors", weights)
    model = mvm.load(tmp_path / "a.safetensors")
    assert model.config.mask.name == "adamae"
    refused(r"'adamae'.*\(8, 4, 4\), .*\(4, 4, 4\); ", model.reconstruct, video(8, 32, 32))
    own = ("encoder.pos_embed_probs", "encoder.get_token_probs.")
    rest = {key: array for key, array in weights.items() if not key.startswith(own)}
    files.write(tmp_path / "b.safetensors", rest)
    assert mvm.load(tmp_path / "b.safetensors").config.mask.name == "tube"
    lacks = "lacks sampler/.* others .*mask.name='adamae'"
    refused(lacks, mvm.load, tmp_path / "b.safetensors", mask="adamae")
