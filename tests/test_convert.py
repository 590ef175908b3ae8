"""Official weights against ours: layout, and what shapes tell of a model."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from param_shapes import (
    autoencoder,
    classifier,
    like,
    random_params,
    sampler,
    task_of,
    with_positions,
)

from mvm.models import positions
from mvm.weights import convert, huggingface
from mvm.weights.describe import describe
from mvm.weights.torch_reader import ConvertError

HEADS = {"model.heads": 4, "model.decoder_heads": 2}
ADAMAE = {**autoencoder(), "sampler": sampler()}
COSINE = classifier(heads=4)  # with layer scale
MODELS = {
    "autoencoder": (autoencoder(), (2, 8, 8)),
    "autoencoder with one decoder block": (autoencoder(6, 3, 24, 4, 1), (1, 2, 4)),
    "classifier": (classifier(), (2, 8, 8)),
    "small classifier": (classifier(6, 1, 96, 2), (4, 4, 2)),
    "cosine attention and layer scale": (COSINE, (2, 8, 8)),
    "AdaMAE's sampler": (ADAMAE, (2, 8, 8)),
    "an encoder of pre-training": ({"encoder": autoencoder()["encoder"]}, (2, 8, 8)),
    "learned positions": (with_positions(autoencoder()), (2, 8, 8)),
}


def official(shapes: dict[str, Any]) -> dict[str, np.ndarray]:
    return convert.from_params(random_params(shapes), (2, 8, 8))


def shaped(shapes: dict[str, Any], tubelet: tuple[int, ...] = (2, 16, 16)) -> Any:
    """Official weights of which only the shapes are there."""
    params = jax.tree.map(lambda leaf: np.broadcast_to(np.int8(0), leaf.shape), like(shapes))
    return convert.from_params(params, tubelet)


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for key, array in expected.items():
        assert (found[key].shape, found[key].dtype) == (array.shape, array.dtype), key
        assert found[key].tobytes() == np.asarray(array, order="C").tobytes(), key


def whole(weights: dict[str, np.ndarray], known: dict[str, Any] = HEADS) -> Any:
    """All parameters of the model that is built from what the shapes tell."""
    params, report = convert.to_params(weights, task_of(describe(weights, known)).abstract)
    assert report == convert.Report(report.matched, (), ())
    return params


def misfit(weights: dict[str, np.ndarray], shapes: dict[str, Any]) -> str:
    with pytest.raises(ConvertError) as caught:
        convert.to_params(weights, like(shapes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- Layout


def test_round_trip_is_bitwise_from_both_ends() -> None:
    for name, (shapes, tubelet) in MODELS.items():
        params = random_params(shapes)
        weights = convert.from_params(params, tubelet)
        back, report = convert.to_params(weights, like(shapes))
        assert report == convert.Report(report.matched, (), ()), name
        jax.tree.map(np.testing.assert_array_equal, back, params)
        same(convert.from_params(back, tubelet), weights)


def test_the_embedding_is_the_convolution_it_was_and_qkv_stay_apart() -> None:
    weights = official(classifier())
    params, _ = convert.to_params(weights, like(classifier()))
    # The embedding against the convolution it was, at one place, summed term by term.
    tubelet = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    kernel, summed = weights["patch_embed.proj.weight"].astype("f8"), np.zeros(48)
    for t, h, w, c in np.ndindex(2, 8, 8, 3):
        summed += tubelet[t, h, w, c] * kernel[:, c, t, h, w]
    ours = tubelet.reshape(-1) @ params["encoder"]["embed"]["kernel"].astype("f8")
    np.testing.assert_allclose(ours, summed, rtol=1e-10, atol=1e-12)
    # Queries, keys and values are the first, second and third 48 rows.
    attention, fused = params["encoder"]["blocks"]["attention"], weights["blocks.1.attn.qkv.weight"]
    for rows in np.split(np.arange(144), 3):
        assert np.array_equal(attention["qkv"]["kernel"][1][:, rows].T, fused[rows])
    assert np.array_equal(attention["v_bias"][0], weights["blocks.0.attn.v_bias"])


RELEASED = [
    *("videomae_pretrain", "videomae_finetune", "everest_pretrain", "everest_finetune"),
    *("adamae_pretrain", "videomaev2_pretrain", "videomaev2_pretrain_giant_cos"),
    *("videomaev2_finetune", "hf_pretrain", "hf_classification"),
]


def test_nothing_of_a_released_model_is_lost(shared: pathlib.Path) -> None:
    for name in RELEASED:
        arrays = dict(np.load(shared / "golden" / f"{name}.npz"))
        weights = {key[3:]: array for key, array in arrays.items() if key.startswith("sd/")}
        known: dict[str, Any] = HEADS
        if name.startswith("hf"):
            config = json.loads(str(arrays["config"]))
            weights, known = huggingface.to_official(weights), huggingface.known(config)
        params = whole(weights, known)
        kernel = next(array for key, array in weights.items() if "patch_embed.proj.w" in key)
        same(convert.from_params(params, kernel.shape[2:]), weights)
        found = describe(weights, known)
        assert found["model.cosine_attention"] == name.endswith("cos")
        assert (found["model.layer_scale"] > 0) == (name == "videomaev2_finetune")
        if name == "videomaev2_finetune":
            # The same weights with cosine attention, as the released model has them.
            scales = arrays["cos_attn_scale_per_block"]
            cosine = {**weights, **{f"blocks.{i}.attn.scale": s for i, s in enumerate(scales)}}
            same(convert.from_params(whole(cosine), kernel.shape[2:]), cosine)


def test_pretrain_files_fill_classifiers_and_models_without_a_sampler() -> None:
    weights = official(ADAMAE)
    params, report = convert.to_params(weights, like(classifier(depth=2)))
    assert list(params) == ["encoder"]
    assert report.missing == ("fc_norm/bias", "fc_norm/scale", "head/bias", "head/kernel")
    assert {"encoder.norm.weight", "decoder.norm.weight", "mask_token"} <= set(report.unused)
    assert set(report.unused) == set(weights) - set(report.matched)
    assert "4 missing: fc_norm/bias, " in str(report)
    params, report = convert.to_params(weights, like(autoencoder()))
    assert (len(report.unused), report.missing) == (14, ())
    # The other way round the sampler is new, but half a sampler is a mistake.
    params, report = convert.to_params(official(autoencoder()), like(ADAMAE))
    assert ("sampler" in params, len(report.missing)) == (False, 14)
    del weights["encoder.get_token_probs.1.bias"]
    assert "encoder.get_token_probs.1.bias is absent" in misfit(weights, ADAMAE)


def test_a_head_for_other_classes_is_left_out_and_listed() -> None:
    params, report = convert.to_params(official(classifier(classes=5)), like(classifier(classes=7)))
    assert ("head" in params, "fc_norm" in params) == (False, True)
    reason = "(has 5 classes, 7 wanted)"
    assert set(report.missing) == {f"head/kernel {reason}", f"head/bias {reason}"}
    assert set(report.unused) == {"head.weight", "head.bias"}


def test_a_leaf_without_an_official_name_is_named() -> None:
    shapes = {**classifier(), "probe": {"head": {"bias": (1,)}}}
    _, report = convert.to_params(official(classifier()), like(shapes))
    assert report.missing == ("probe/head/bias",)
    with pytest.raises(ConvertError, match="probe/head/bias"):
        convert.from_params(random_params(shapes), (2, 8, 8))


def test_what_does_not_fit_names_the_key_and_both_shapes() -> None:
    small, deep = official(autoencoder(depth=3)), official(autoencoder(decoder_depth=3))
    plain, options = official(classifier()), official(COSINE)
    no_bias = {
        k: v for k, v in official(autoencoder()).items() if k != "encoder.blocks.0.attn.q_bias"
    }
    table = positions.sinusoid(128, 48)[None]
    learned, wide = with_positions(autoencoder()), autoencoder(96, 3)
    for weights, shapes, *said in (
        (small, wide, "encoder.patch_embed.proj.weight is (48, 3, 2, 8, 8) in the file", "(96, 3"),
        (small, autoencoder(depth=4), "encoder.blocks.3.", "is absent", "(48,)"),
        (small, autoencoder(depth=3, d=16), "decoder.blocks.0.", "is (32,)", "(16,)"),
        (small, autoencoder(), "encoder.blocks.2.", "is (48,) in the file"),
        (deep, autoencoder(decoder_depth=2), "decoder.blocks.2.", "is (32,)", "nothing"),
        (official(autoencoder()), autoencoder(decoder_depth=3), "decoder.blocks.2.", "is absent"),
        (no_bias, autoencoder(), "encoder.blocks.0.attn.q_bias is absent"),
        (options, classifier(), "blocks.0.", "in the file, wanted nothing"),
        (plain, COSINE, "attn.scale is absent"),
        (official(learned), autoencoder(), "pos_embed_temporal is (1, 8, "),
        (official(autoencoder()), learned, "pos_embed_spatial is absent"),
        ({**plain, "pos_embed": table + 0.01}, classifier(), "pos_embed is", "learned"),
        (plain, autoencoder(depth=3), "no decoder"),
        ({"conv1.weight": np.ones(3)}, classifier(), "conv1.weight", "not the names"),
    ):
        line = misfit(weights, shapes)
        assert all(words in line for words in said), line
    # The fixed sinusoid may be there.
    _, report = convert.to_params({**plain, "pos_embed": table}, like(classifier()))
    assert report.unused == ("pos_embed",)


# --- What shapes tell


def test_released_sizes() -> None:
    for sizes, heads in {  # width, depth, pixels, decoder width and depth
        (384, 12, 1536, 192, 4): (6, 3),
        (768, 12, 1536, 384, 4): (12, 6),
        (1024, 2, 1536, 512, 12): (16, 8),  # with fewer blocks than released
        (1280, 1, 1536, 640, 1): (16, 8),
        (1280, 1, 1536, 512, 4): (16, 8),  # of VideoMAE V2
    }.items():
        found = describe(shaped(autoencoder(*sizes)))
        assert (found["model.heads"], found["model.decoder_heads"]) == heads, sizes
        assert found["model.mlp_ratio"] == 4.0
        assert jax.tree.map(jnp.shape, task_of(found).abstract) == autoencoder(*sizes)

    zeros = lambda *shape: np.broadcast_to(np.float32(0), shape)  # noqa: E731
    giant = {"patch_embed.proj.weight": zeros(1408, 3, 2, 14, 14), "head.weight": zeros(710, 1408)}
    giant |= {f"blocks.{i}.mlp.fc1.weight": zeros(6144, 1408) for i in (0, 39)}
    found = describe(giant)
    assert (found["model.size"], found["model.depth"], found["model.heads"]) == ("g", 40, 16)
    assert (found["model.mlp_ratio"], found["model.tubelet"]) == (48 / 11, (2, 14, 14))
    assert (found["task"], found["data.num_classes"]) == ("finetune", 710)


def test_samplers_positions_and_single_frames() -> None:
    found = describe(official(ADAMAE), HEADS)
    assert (found["mask.name"], found["data.num_frames"], found["data.image_size"]) == (
        *("adamae", 16, 32),
    )
    assert jax.tree.map(jnp.shape, task_of(found).abstract) == ADAMAE
    shapes = with_positions(autoencoder())
    shapes["decoder"]["head"] = {"kernel": (32, 192), "bias": (192,)}
    found = describe(shaped(shapes, (2, 8, 8)), HEADS)
    assert (found["model.positions"], found["model.target_frames"]) == ("separable", 1)
    assert (found["data.num_frames"], found["data.image_size"]) == (16, 32)
    assert jax.tree.map(jnp.shape, task_of(found).abstract) == shapes
    found = describe(official(COSINE), {"model.heads": 6, "model.epsilon": 1e-3})
    assert (found["model.heads"], found["model.epsilon"]) == (6, 1e-3)


def test_what_shapes_cannot_tell() -> None:
    weights = official(autoencoder())
    headless = {k: v for k, v in weights.items() if k != "encoder_to_decoder.weight"}
    for given, known, said in (
        (weights, {}, "encoder is 48 wide"),
        (weights, {"model.heads": 4}, "give model.decoder_heads"),
        ({"patch_embed.proj.weight": np.zeros((48, 3, 8, 8))}, HEADS, "RGB video"),
        (headless, HEADS, "encoder_to_decoder.weight is absent"),
    ):
        with pytest.raises(ConvertError, match=said) as caught:
            describe(given, known)
        assert "\n" not in str(caught.value)
