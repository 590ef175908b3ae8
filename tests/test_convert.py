"""Official weights against ours: layout, and what shapes tell of a model."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from models_on_disk import abstract, configure, official, random_params, refused, same

from configs import common
from mvm.models import positions
from mvm.weights import convert
from mvm.weights.describe import describe

OPTIONS = {"cosine_attention": True, "layer_scale": 0.1}  # of VideoMAE V2
AUTOENCODER = configure("videomae_k400")
CLASSIFIER = configure("videomae_k400", "finetune,smoke")
ADAMAE = configure("adamae_k400")
COSINE = configure("videomae_k400", "finetune,smoke", model=OPTIONS)
LEARNED = configure("mae_st_k400", model={"target_frames": 0})
MODELS = {
    "autoencoder": AUTOENCODER,
    "one decoder block": configure("videomae_k400", model={"decoder_depth": 1}),
    "classifier": CLASSIFIER,
    "odd sizes": configure("videomae_k400", model={"tubelet": (4, 4, 4), "depth": 1}),
    "cosine attention and layer scale": COSINE,
    "AdaMAE's sampler": ADAMAE,
    "learned positions": LEARNED,
}


def model_of(found):
    """Shapes of the model from values by key of `mvm/config.py`, the others at their defaults."""
    config = common.get_config()
    config.update_from_flattened_dict(found)
    return jax.tree.map(jnp.shape, abstract(config))


def without(weights, *prefixes):
    return {key: array for key, array in weights.items() if not key.startswith(prefixes)}


def test_round_trip_is_bitwise_from_both_ends_and_shapes_tell_the_model():
    for name, config in MODELS.items():
        params, tubelet = random_params(abstract(config)), config.model.tubelet
        weights = convert.from_params(params, tubelet)
        back, report = convert.to_params(weights, abstract(config))
        assert report == convert.Report(report.matched, (), ()), name
        jax.tree.map(np.testing.assert_array_equal, back, params)
        same(convert.from_params(back, tubelet), weights)
        assert model_of(describe(weights)) == jax.tree.map(jnp.shape, params), name


def test_key_counts_and_sizes_of_the_released_vit_b():
    for task, keys, numbers in (("pretrain", 218, 94_210_944), ("finetune", 162, 86_534_800)):
        config = common.get_config()
        config.task, config.data.num_classes = task, 400
        config.mask.name = "tube" if task == "pretrain" else ""
        shapes = jax.tree.map(
            lambda leaf: np.broadcast_to(np.int8(0), leaf.shape), abstract(config)
        )
        weights = convert.from_params(shapes)
        assert (len(weights), sum(array.size for array in weights.values())) == (keys, numbers)


def test_the_embedding_is_the_convolution_it_was_and_qkv_stay_apart():
    weights = official(CLASSIFIER)
    params, _ = convert.to_params(weights, abstract(CLASSIFIER))
    tubelet = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    kernel = weights["patch_embed.proj.weight"].astype("f8")
    ours = tubelet.reshape(-1) @ params["encoder"]["embed"]["kernel"].astype("f8")
    np.testing.assert_allclose(ours, np.einsum("thwc,dcthw->d", tubelet, kernel), rtol=1e-9)
    # Queries, keys and values are the first, second and third 64 rows.
    attention, fused = params["encoder"]["blocks"]["attention"], weights["blocks.1.attn.qkv.weight"]
    for rows in np.split(np.arange(192), 3):
        assert np.array_equal(attention["qkv"]["kernel"][1][:, rows].T, fused[rows])
    assert np.array_equal(attention["v_bias"][0], weights["blocks.0.attn.v_bias"])


RELEASED = [
    *("videomae_pretrain", "videomae_finetune", "everest_pretrain", "everest_finetune"),
    *("adamae_pretrain", "videomaev2_pretrain", "videomaev2_pretrain_giant_cos"),
    "videomaev2_finetune",
]


def test_nothing_of_a_released_model_is_lost(shared):
    for name in RELEASED:
        arrays = dict(np.load(shared / "golden" / f"{name}.npz"))
        weights = {key[3:]: array for key, array in arrays.items() if key.startswith("sd/")}
        known = {"model.heads": 4, "model.decoder_heads": 2}
        models = [weights]
        if name == "videomaev2_finetune":  # With cosine attention, as the released model has it.
            scales = enumerate(arrays["cos_attn_scale_per_block"])
            models.append(weights | {f"blocks.{i}.attn.scale": scale for i, scale in scales})
        for each in models:
            found = describe(each, known)
            config = common.get_config()
            config.update_from_flattened_dict(found)
            params, report = convert.to_params(each, abstract(config))
            assert report == convert.Report(report.matched, (), ()), name
            same(convert.from_params(params, found["model.tubelet"]), each)
        assert (found["model.layer_scale"] > 0) == (name == "videomaev2_finetune")
        if name == "adamae_pretrain":
            qkv = params["sampler"]["blocks"]["attention"]["qkv"]["kernel"]
            assert np.array_equal(qkv[0].T, weights["encoder.get_token_probs.0.attn.qkv.weight"])
        if name == "videomae_pretrain":
            last = params["decoder"]["last"]["mlp"]["fc1"]["kernel"]
            assert np.array_equal(last.T, weights["decoder.blocks.1.mlp.fc1.weight"])


def test_files_fill_what_they_can_of_other_models_and_say_the_rest():
    def fill(weights, config):
        params, report = convert.to_params(weights, abstract(config))
        assert set(report.unused) == set(weights) - set(report.matched)
        return params, report

    weights = official(ADAMAE)
    params, report = fill(weights, CLASSIFIER)
    assert list(params) == ["encoder"]
    assert set(report.missing) == {"fc_norm/scale", "fc_norm/bias", "head/kernel", "head/bias"}
    assert {"encoder.norm.weight", "decoder.norm.weight", "mask_token"} <= set(report.unused)
    assert "48 unused: decoder.blocks.*, " in str(report)
    params, report = fill(weights, AUTOENCODER)
    assert (len(report.unused), report.missing) == (14, ())
    params, report = fill(official(AUTOENCODER), ADAMAE)  # A new sampler.
    assert ("sampler" in params, len(report.missing)) == (False, 14)
    # Heads: of other classes, or on the first token, are left out.
    weights = official(CLASSIFIER)
    params, report = fill(
        weights, configure("videomae_k400", "finetune,smoke", data={"num_classes": 7})
    )
    assert ("head" in params, "fc_norm" in params) == (False, True)
    assert "head/bias (has 8 classes, 7 wanted)" in report.missing
    params, _ = fill({k.replace("fc_norm", "norm"): w for k, w in weights.items()}, CLASSIFIER)
    assert list(params) == ["encoder"]
    # The fixed sinusoid may be there.
    _, report = fill({**weights, "pos_embed": positions.sinusoid(128, 64)[None]}, CLASSIFIER)
    assert report.unused == ("pos_embed",)
    # The model decides the dtype, and gets copies.
    like = jax.tree.map(lambda leaf: leaf.update(dtype=ml_dtypes.bfloat16), abstract(CLASSIFIER))
    params, _ = convert.to_params(weights, like)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    params, _ = fill(weights, CLASSIFIER)
    params["fc_norm"]["scale"][:] = 0
    assert weights["fc_norm.weight"].all()
    # What has no official name is named.
    extra = {**params, "probe": {"bias": np.ones(1)}}
    assert convert.to_params(weights, extra)[1].missing == ("probe/bias",)
    refused("probe/bias has no official name", convert.from_params, extra, (2, 8, 8))


def test_what_does_not_fit_names_the_key_and_both_shapes():
    plain, options, whole = official(CLASSIFIER), official(COSINE), official(AUTOENCODER)
    deep = configure("videomae_k400", model={"depth": 3, "decoder_depth": 3})
    wide = configure("videomae_k400", model={"width": 128})
    half = {**plain, "blocks.1.attn.scale": np.ones((4, 1, 1))}
    learned = {**plain, "pos_embed": positions.sinusoid(128, 64)[None] + 0.01}
    for weights, config, said in (
        (whole, wide, r"encoder.patch_embed.proj.weight is \(64, 3, 2, 8, 8\) .* \(128, 3"),
        (whole, MODELS["odd sizes"], "encoder.patch_embed.proj.weight .* 192 numbers"),
        (whole, deep, "coder.blocks.2.attn.* is absent"),
        (official(deep), AUTOENCODER, r"coder.blocks.2.attn.* is \(64,\) in .* nothing"),
        (official(deep), CLASSIFIER, "encoder.blocks.2."),
        (without(whole, "encoder.blocks.0.attn.q_b"), AUTOENCODER, "blocks.0.attn.q_bias is abse"),
        (without(whole, "decoder.norm.b"), AUTOENCODER, "decoder.norm.bias is absent"),
        (without(official(ADAMAE), "encoder.get_token_probs.1.b"), ADAMAE, "probs.1.bias is abs"),
        (options, CLASSIFIER, r"blocks.0.(gamma_1|attn.scale) is .* in the file, wanted nothing"),
        (half, CLASSIFIER, r"blocks.1.attn.scale is \(4, 1, 1\) in the file, wanted nothing"),
        (plain, COSINE, "attn.scale is absent"),
        (official(LEARNED), AUTOENCODER, r"coder.pos_embed_temporal is \(1, 8, 64\)"),
        (whole, LEARNED, r"coder.pos_embed_\w+ is absent"),
        (learned, CLASSIFIER, "pos_embed is a learned table"),
        ({"conv1.weight": np.ones(3)}, CLASSIFIER, "conv1.weight.*not the names"),
    ):
        refused(said, convert.to_params, weights, abstract(config))


def test_released_sizes_and_what_shapes_cannot_tell():
    zeros = lambda *shape: np.broadcast_to(np.float32(0), shape)  # noqa: E731
    for width, decoder, heads in (
        *((384, 192, (6, 3)), (768, 384, (12, 6)), (1024, 512, (16, 8)), (1280, 640, (16, 8))),
        (1280, 512, (16, 8)),  # of VideoMAE V2
    ):
        found = describe(
            {
                "encoder.patch_embed.proj.weight": zeros(width, 3, 2, 16, 16),
                "encoder.blocks.0.mlp.fc1.weight": zeros(4 * width, width),
                "decoder.blocks.3.mlp.fc1.weight": zeros(4 * decoder, decoder),
                "encoder_to_decoder.weight": zeros(decoder, width),
                "decoder.head.weight": zeros(1536, decoder),
            }
        )
        assert (found["model.heads"], found["model.decoder_heads"]) == heads, width
        assert (found["model.mlp_ratio"], found["model.decoder_depth"]) == (4.0, 4)
    giant = {"patch_embed.proj.weight": zeros(1408, 3, 2, 14, 14), "head.weight": zeros(710, 1408)}
    giant |= {f"blocks.{i}.mlp.fc1.weight": zeros(6144, 1408) for i in (0, 39)}
    found = describe(giant)
    assert (found["model.size"], found["model.depth"], found["model.heads"]) == ("g", 40, 16)
    assert (int(1408 * found["model.mlp_ratio"]), found["model.tubelet"]) == (6144, (2, 14, 14))
    assert (found["task"], found["data.num_classes"]) == ("finetune", 710)
    found = describe(official(ADAMAE), {"model.epsilon": 1e-3})
    assert (found["mask.name"], found["data.image_size"]) == ("adamae", 32)  # Of 128 positions.
    assert found["model.epsilon"] == 1e-3
    one_frame = describe(official(configure("mae_st_k400")))
    assert (one_frame["model.target_frames"], one_frame["model.positions"]) == (1, "separable")

    narrow = configure("videomae_k400", model={"width": 48, "decoder_width": 32})
    weights = official(narrow)
    for given, known, said in (
        (weights, {}, "is 48 wide.*--heads"),
        (weights, {"model.heads": 4}, "is 32 wide.*--decoder-heads"),
        ({"patch_embed.proj.weight": np.zeros((48, 3, 8, 8))}, {}, "RGB video"),
        (without(official(AUTOENCODER), "encoder_to"), {}, "encoder_to_decoder.weight is absent"),
    ):
        refused(said, describe, given, known)
