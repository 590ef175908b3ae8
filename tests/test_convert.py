"""The layout of official weights against ours."""

import pathlib
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from param_shapes import autoencoder, classifier, like, random_params, sampler, with_positions
from torch_writer import dense, save

from mvm import convert as convert_main
from mvm.models import positions
from mvm.weights import convert
from mvm.weights import files as weight_files
from mvm.weights import torch_reader as torch_files

MODELS = {
    "autoencoder": (autoencoder(), (2, 8, 8)),
    "autoencoder with one decoder block": (autoencoder(6, 3, 24, 4, 1), (1, 2, 4)),
    "classifier": (classifier(), (2, 8, 8)),
    "small classifier": (classifier(6, 1, 96, 2), (4, 4, 2)),
    "cosine attention and layer scale": (classifier(heads=4), (2, 8, 8)),
    "AdaMAE's sampler": ({**autoencoder(), "sampler": sampler()}, (2, 8, 8)),
    "an encoder of pre-training": ({"encoder": autoencoder()["encoder"]}, (2, 8, 8)),
    "learned positions": (with_positions(autoencoder()), (2, 8, 8)),
}


def same_weights(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(actual) == set(expected)
    for key, array in expected.items():
        assert actual[key].shape == array.shape, key
        assert actual[key].dtype == array.dtype, key
        assert actual[key].tobytes() == array.tobytes(), key


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_bitwise_from_both_ends(name: str) -> None:
    shapes, tubelet = MODELS[name]
    params = random_params(shapes)
    weights = convert.from_params(params, tubelet)
    back, report = convert.to_params(weights, like(shapes))
    assert report == convert.Report(report.matched, (), ())
    jax.tree.map(np.testing.assert_array_equal, back, params)
    again = convert.from_params(back, tubelet)
    same_weights(again, weights)
    without_a_model, report = convert_main.all_params(weights)
    assert report == convert.Report(report.matched, (), ())
    jax.tree.map(np.testing.assert_array_equal, without_a_model, params)


def test_key_counts_and_sizes_of_the_released_vit_b() -> None:
    def numbers(shapes: dict[str, Any]) -> tuple[int, int, dict[str, np.ndarray]]:
        params = jax.tree.map(lambda leaf: np.broadcast_to(np.int8(0), leaf.shape), like(shapes))
        weights = convert.from_params(params)
        return len(weights), sum(array.size for array in weights.values()), weights

    count, size, weights = numbers(autoencoder(768, 12, 1536, 384, 4))
    assert (count, size) == (218, 94_210_944)
    assert weights["encoder.patch_embed.proj.weight"].shape == (768, 3, 2, 16, 16)
    assert weights["encoder.blocks.11.attn.qkv.weight"].shape == (2304, 768)
    assert weights["decoder.blocks.3.mlp.fc2.weight"].shape == (384, 1536)
    assert weights["mask_token"].shape == (1, 1, 384)
    # 162 with the head; 86,227,200 in the body and 768 * 101 + 101 in the head.
    assert numbers(classifier(768, 12, 1536, 101))[:2] == (162, 86_304_869)


def check_embedding_and_attention(
    official: dict[str, np.ndarray], params: dict[str, Any], prefix: str
) -> None:
    rng = np.random.default_rng(0)
    # The embedding against the convolution it was, at one place, summed term by term.
    tubelet = rng.normal(size=(2, 8, 8, 3))
    kernel = official[f"{prefix}patch_embed.proj.weight"].astype("f8")
    summed = np.zeros(48)
    for t, h, w, c in np.ndindex(2, 8, 8, 3):
        summed += tubelet[t, h, w, c] * kernel[:, c, t, h, w]
    ours = tubelet.reshape(-1) @ params["encoder"]["embed"]["kernel"].astype("f8")
    np.testing.assert_allclose(ours, summed, rtol=1e-10, atol=1e-12)
    # Queries, keys and values are the first, second and third 48 rows.
    attention = params["encoder"]["blocks"]["attention"]
    fused = official[f"{prefix}blocks.1.attn.qkv.weight"]
    for part in range(3):
        columns = attention["qkv"]["kernel"][1][:, 48 * part : 48 * (part + 1)]
        assert np.array_equal(columns[5, 7], fused[48 * part + 7, 5])
        assert np.array_equal(columns.T, fused[48 * part : 48 * (part + 1)])
    assert np.array_equal(attention["v_bias"][0], official[f"{prefix}blocks.0.attn.v_bias"])
    scale = params["encoder"]["blocks"]["norm2"]["scale"]
    assert np.array_equal(scale[1], official[f"{prefix}blocks.1.norm2.weight"])


def test_the_embedding_is_the_convolution_it_was_and_qkv_stay_apart() -> None:
    official = convert.from_params(random_params(classifier()), (2, 8, 8))
    params, _ = convert.to_params(official, like(classifier()))
    check_embedding_and_attention(official, params, "")


def golden_weights(shared: pathlib.Path, name: str) -> dict[str, np.ndarray]:
    arrays = np.load(shared / "golden" / f"{name}.npz")
    return {key.removeprefix("sd/"): arrays[key] for key in arrays.files if key.startswith("sd/")}


GOLDEN = {
    "videomae_pretrain": autoencoder(),
    "everest_pretrain": autoencoder(),
    "videomae_finetune": classifier(),
    "everest_finetune": classifier(),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_official_weights_find_their_places(shared: pathlib.Path, name: str) -> None:
    official = golden_weights(shared, name)
    pretrain = name.endswith("pretrain")
    prefix = "encoder." if pretrain else ""
    depth = {len([key for key in official if key.startswith(f"{prefix}blocks.")]) // 13}
    shapes = autoencoder(depth=depth.pop()) if pretrain else classifier(depth=depth.pop())
    params, report = convert.to_params(official, like(shapes))
    assert set(report.matched) == set(official)
    assert report.missing == report.unused == ()
    back = convert.from_params(params, (2, 8, 8))
    assert set(back) == set(official)
    assert all(np.array_equal(back[key], official[key]) for key in official)

    check_embedding_and_attention(official, params, prefix)
    if pretrain:
        last = params["decoder"]["last"]["mlp"]["fc1"]["kernel"]
        assert np.array_equal(last.T, official["decoder.blocks.1.mlp.fc1.weight"])
        first = params["decoder"]["blocks"]["mlp"]["fc1"]["kernel"]
        assert first.shape == (1, 32, 128)
        assert np.array_equal(first[0].T, official["decoder.blocks.0.mlp.fc1.weight"])
        assert np.array_equal(params["mask_token"], official["mask_token"][0, 0])
    else:
        assert np.array_equal(params["head"]["kernel"].T, official["head.weight"])


RELEASED = [
    *("adamae_pretrain", "videomaev2_pretrain", "videomaev2_pretrain_giant_cos"),
    *("videomaev2_finetune", *GOLDEN),
]


@pytest.mark.parametrize("name", RELEASED)
def test_nothing_of_a_released_model_is_lost(shared: pathlib.Path, name: str) -> None:
    official = golden_weights(shared, name)
    params, report = convert_main.all_params(official)
    assert set(report.matched) == set(official)
    assert report.missing == report.unused == ()
    kernel = next(array for key, array in official.items() if "patch_embed.proj.w" in key)
    same_weights(convert.from_params(params, kernel.shape[2:]), official)
    if name == "adamae_pretrain":
        assert params["sampler"]["positions"].shape == (128, 48)
        key = "encoder.get_token_probs.0.attn.qkv.weight"
        qkv = params["sampler"]["blocks"]["attention"]["qkv"]["kernel"]
        assert np.array_equal(qkv[0].T, official[key])
        head = params["sampler"]["head"]["kernel"]
        assert np.array_equal(head[:, 0], official["encoder.get_token_probs.1.weight"][0])
    if name == "videomaev2_pretrain_giant_cos":
        scale = params["encoder"]["blocks"]["attention"]["scale"]
        assert np.array_equal(scale[1], official["encoder.blocks.1.attn.scale"][:, 0, 0])
        assert params["decoder"]["last"]["attention"]["scale"].shape == (2,)
    if name == "videomaev2_finetune":
        gamma = params["encoder"]["blocks"]["gamma2"]
        assert np.array_equal(gamma[2], official["blocks.2.gamma_2"])
        # The same weights with cosine attention, as the released model has them.
        scales = np.load(shared / "golden" / f"{name}.npz")["cos_attn_scale_per_block"]
        cosine = {**official, **{f"blocks.{i}.attn.scale": s for i, s in enumerate(scales)}}
        params, report = convert_main.all_params(cosine)
        assert report.missing == report.unused == ()
        same_weights(convert.from_params(params, kernel.shape[2:]), cosine)


def pretrain_file(**sizes: int) -> dict[str, np.ndarray]:
    return convert.from_params(random_params(autoencoder(**sizes)), (2, 8, 8))


def test_a_pretrain_file_fills_the_encoder_of_a_classifier() -> None:
    official = pretrain_file()
    params, report = convert.to_params(official, like(classifier(depth=2)))
    assert list(params) == ["encoder"]
    assert report.missing == ("fc_norm/scale", "fc_norm/bias", "head/kernel", "head/bias")
    encoder = {key for key in official if key.startswith("encoder.")}
    unread = {"encoder.norm.weight", "encoder.norm.bias"}
    assert set(report.matched) == encoder - unread
    assert set(report.unused) == set(official) - set(report.matched)
    assert str(report).startswith(f"{len(encoder) - 2} keys read; 4 missing: fc_norm/scale, ")
    assert "\n" not in str(report)


def test_an_adamae_file_fills_classifiers_and_models_without_a_sampler() -> None:
    shapes = {**autoencoder(), "sampler": sampler()}
    official = convert.from_params(random_params(shapes), (2, 8, 8))
    params, report = convert.to_params(official, like(classifier(depth=2)))
    assert list(params) == ["encoder"]
    assert len([key for key in report.unused if "prob" in key]) == 14
    params, report = convert.to_params(official, like(autoencoder()))
    assert len(report.unused) == 14
    assert report.missing == ()
    # The other way round the sampler is new, but half a sampler is a mistake.
    params, report = convert.to_params(pretrain_file(), like(shapes))
    assert "sampler" not in params
    assert len(report.missing) == 14
    del official["encoder.get_token_probs.1.bias"]
    assert "encoder.get_token_probs.1.bias is absent" in misfit(official, shapes)


def test_options_of_the_network_must_agree() -> None:
    plain = convert.from_params(random_params(classifier()), (2, 8, 8))
    options = convert.from_params(random_params(classifier(heads=4)), (2, 8, 8))
    assert "blocks.0.gamma_1 is (48,) in the file, wanted nothing" in misfit(options, classifier())
    del options["blocks.0.gamma_1"]
    line = misfit({**plain, "blocks.2.attn.scale": np.ones((4, 1, 1))}, classifier())
    assert "blocks.2.attn.scale is (4, 1, 1) in the file, wanted nothing" in line
    assert "gamma_1 is absent" in misfit(plain, classifier(heads=4))
    learned = convert.from_params(random_params(with_positions(autoencoder())), (2, 8, 8))
    assert "encoder.pos_embed_temporal is (1, 8, 48)" in misfit(learned, autoencoder())
    assert "encoder.pos_embed_temporal is absent" in misfit(
        pretrain_file(), with_positions(autoencoder())
    )


def test_functions_that_no_model_here_has() -> None:
    official = convert.from_params(random_params(classifier()), (2, 8, 8))
    fixed = np.sin(np.arange(128) / 10000 ** (10 / 48))  # column 10 of the fixed table
    table = positions.sinusoid(128, 48)
    np.testing.assert_allclose(table[:, 10], fixed, atol=1e-6)
    _, report = convert.to_params({**official, "pos_embed": table[None]}, like(classifier()))
    assert report.unused == ("pos_embed",)
    line = misfit({**official, "pos_embed": table[None] + 0.01}, classifier())
    assert "pos_embed (1, 128, 48) is a learned table of positions" in line

    first = {key.replace("fc_norm", "norm"): array for key, array in official.items()}
    assert "a head on the first token" in misfit(first, classifier())
    params, _ = convert.to_params(first, like(classifier(classes=3)))
    assert list(params) == ["encoder"]


def test_a_head_for_other_classes_is_left_out_and_listed() -> None:
    official = convert.from_params(random_params(classifier(classes=5)), (2, 8, 8))
    params, report = convert.to_params(official, like(classifier(classes=7)))
    assert "head" not in params
    assert "fc_norm" in params
    reason = "(has 5 classes, 7 wanted)"
    assert set(report.missing) == {f"head/kernel {reason}", f"head/bias {reason}"}
    assert set(report.unused) == {"head.weight", "head.bias"}


def test_the_model_decides_the_dtype_and_gets_copies() -> None:
    official = convert.from_params(random_params(classifier()), (2, 8, 8))
    params, _ = convert.to_params(official, like(classifier(), ml_dtypes.bfloat16))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    params, _ = convert.to_params(official, like(classifier()))
    params["fc_norm"]["scale"][:] = 0
    assert official["fc_norm.weight"].all()


def test_samplers_that_were_never_released_have_no_official_names() -> None:
    for options in (dict(kind="mlp"), dict(depth=2), dict(own=24)):
        params = random_params({**autoencoder(), "sampler": sampler(**options)})
        with pytest.raises(torch_files.ConvertError, match=r"sampler/.* has no official name"):
            convert.from_params(params, (2, 8, 8))


def test_leaves_without_an_official_name() -> None:
    shapes = {**classifier(), "probe": {"head": {"bias": (1,)}}}
    official = convert.from_params(random_params(classifier()), (2, 8, 8))
    _, report = convert.to_params(official, like(shapes))
    assert report.missing == ("probe/head/bias",)
    with pytest.raises(torch_files.ConvertError, match="probe/head/bias has no official name"):
        convert.from_params(random_params(shapes), (2, 8, 8))


def misfit(official: dict[str, np.ndarray], shapes: dict[str, Any]) -> str:
    with pytest.raises(torch_files.ConvertError) as caught:
        convert.to_params(official, like(shapes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_misfits_name_the_key_both_shapes_and_the_sizes() -> None:
    official = pretrain_file(width=384, depth=1)
    line = misfit(official, autoencoder(768, 2))
    assert "encoder.patch_embed.proj.weight is (384, 3, 2, 8, 8) in the file" in line
    assert "wanted (768, 3, 2, 8, 8)" in line
    assert "the file is of another model; see model.size" in line

    line = misfit(official, autoencoder(384, 1, pixels=1536))
    assert "(384, 3, 2, 8, 8) in the file, wanted (384, 3, 2, 16, 16)" in line
    line = misfit(official, autoencoder(384, 2))
    assert "encoder.blocks.1.norm1.weight is absent in the file, wanted (384,)" in line
    line = misfit(official, autoencoder(384, 1, d=16))
    assert "encoder_to_decoder.weight is (32, 384) in the file, wanted (16, 384)" in line


def test_every_block_must_be_used() -> None:
    official = pretrain_file(depth=3)
    assert "encoder.blocks.2.norm1.weight is (48,) in the file" in misfit(official, autoencoder())
    assert "encoder.blocks.2." in misfit(official, classifier(depth=2))
    official = pretrain_file(decoder_depth=3)
    line = misfit(official, autoencoder(decoder_depth=2))
    assert "decoder.blocks.2.norm1.weight is (32,) in the file, wanted nothing" in line
    line = misfit(pretrain_file(decoder_depth=1), autoencoder(decoder_depth=2))
    assert "decoder.blocks.1.norm1.weight is absent in the file" in line
    official = pretrain_file()
    official["encoder.blocks.1.gamma_1"] = np.ones(48, np.float32)
    assert "encoder.blocks.1.gamma_1 is (48,)" in misfit(official, autoencoder())
    del official["encoder.blocks.1.gamma_1"], official["encoder.blocks.0.attn.q_bias"]
    assert "encoder.blocks.0.attn.q_bias is absent" in misfit(official, autoencoder())


def test_a_whole_file_is_whole() -> None:
    official = pretrain_file()
    for key in ("decoder.blocks.0.attn.q_bias", "mask_token"):
        part = {k: array for k, array in official.items() if k != key}
        with pytest.raises(torch_files.ConvertError, match=f"{key} is absent in the file"):
            convert_main.all_params(part)
    # Hugging Face drops this norm if told to pool.
    part = {k: array for k, array in official.items() if not k.startswith("encoder.norm.")}
    _, report = convert.to_params(part, like(autoencoder()))
    assert report.missing == ("encoder/norm/scale", "encoder/norm/bias")
    params, report = convert_main.all_params(part)
    assert set(params["encoder"]) == {"embed", "blocks"}
    assert report.missing == ()
    part = {k: array for k, array in part.items() if k.startswith("encoder.")}
    _, report = convert_main.all_params(part)
    assert report.missing == ("fc_norm/scale", "fc_norm/bias", "head/kernel", "head/bias")


def test_files_of_the_wrong_kind() -> None:
    finetune = convert.from_params(random_params(classifier()), (2, 8, 8))
    assert "cannot fill an autoencoder" in misfit(finetune, autoencoder(depth=3))
    assert "(conv1.weight)" in misfit({"conv1.weight": np.ones(3)}, classifier())
    image = {"patch_embed.proj.weight": np.ones((48, 3, 8, 8), np.float32)}
    assert "(48, 3, 8, 8) in the file, wanted (48, 3, 2, 8, 8)" in misfit(image, classifier())
    with pytest.raises(torch_files.ConvertError, match="not 1536 rows: pass the tubelet size"):
        convert.from_params(random_params(classifier()))


def test_an_encoder_alone_fills_the_encoder_of_an_autoencoder() -> None:
    official = {k: v for k, v in pretrain_file().items() if k.startswith("encoder.")}
    params, report = convert.to_params(official, like(autoencoder()))
    assert list(params) == ["encoder"]
    assert "decoder/last/norm1/scale" in report.missing
    assert "mask_token" in report.missing


PLACES = ("model", "module", "state_dict", "model_state", "model_state_dict", "model_ema", "")


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "backbone.", "module.model."])
def test_weights_are_found_wherever_trainers_put_them(prefix: str, tmp_path: pathlib.Path) -> None:
    official = convert.from_params(random_params(classifier()), (2, 8, 8))
    tensors = {prefix + key: dense(array) for key, array in official.items()}
    for place in PLACES:
        tree = {"epoch": 3, "optimizer": {"a": dense(np.ones(3, np.float32))}}
        tree |= {place: tensors, "model_ema": {"a": dense(np.ones(2, np.float32))}}
        tree = tree | {"model_ema": tensors} if place == "model_ema" else tree
        tree = tree | tensors if not place else tree
        same_weights(weight_files.read(save(tmp_path / "a.pth", tree)).weights, official)
    odd = save(tmp_path / "odd.pth", {"net": tensors, "teacher": tensors, "epoch": 3})
    with pytest.raises(torch_files.ConvertError, match=r"but under 'net', 'teacher'; in PyTorch"):
        weight_files.read(odd)


def test_the_names_of_mmaction2(tmp_path: pathlib.Path) -> None:
    """Of `vit_mae.VisionTransformer` and `TimeSformerHead`, whose MLP is mmcv's `FFN`."""
    official = convert.from_params(random_params(classifier()), (2, 8, 8))
    words = {"patch_embed.proj.": "patch_embed.projection.", "mlp.fc1.": "mlp.layers.0.0."}
    words |= {"mlp.fc2.": "mlp.layers.1.", "head.": "cls_head.fc_cls."}
    tensors = {}
    for key, array in official.items():
        name = key if key.startswith("head.") else f"backbone.{key}"
        for ours, theirs in words.items():
            name = name.replace(ours, theirs)
        tensors[name] = dense(array)
    tensors["backbone.pos_embed"] = dense(positions.sinusoid(128, 48)[None].copy())
    source = weight_files.read(save(tmp_path / "a.pth", {"state_dict": tensors, "meta": {}}))
    _, report = convert.to_params(source.weights, like(classifier()))
    assert (report.missing, report.unused) == ((), ("pos_embed",))
    del source.weights["pos_embed"]
    same_weights(source.weights, official)
