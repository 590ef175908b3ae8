"""Hugging Face's VideoMAE: its names, its config.json and, if it is installed, its outputs."""

import json
import logging
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import close
from param_shapes import autoencoder, classifier, like, random_params, sampler, task_of

import mvm
from mvm import convert as command
from mvm import runs, tasks
from mvm.models import tubelets
from mvm.types import Mask
from mvm.weights import convert, files, huggingface
from mvm.weights.describe import describe
from mvm.weights.torch_reader import ConvertError

HEADS = {"model.heads": 4, "model.decoder_heads": 2}


def same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(actual) == set(expected)
    for key, array in expected.items():
        assert actual[key].tobytes() == np.ascontiguousarray(array).tobytes(), key
        assert actual[key].shape == array.shape, key


@pytest.mark.parametrize("name", ["hf_pretrain", "hf_classification"])
def test_nothing_of_a_published_model_is_lost(shared: pathlib.Path, name: str) -> None:
    rest = dict(np.load(shared / "golden" / f"{name}.npz"))
    weights = {key[3:]: rest.pop(key) for key in list(rest) if key.startswith("sd/")}
    config = json.loads(str(rest["config"]))
    official = huggingface.to_official(weights)
    # The map was made from the official code; qkv are three keys there.
    keymap = json.loads(str(rest["keymap"]))
    assert set(official) == set(keymap)
    for key, theirs in keymap.items():
        assert np.array_equal(official[key], np.concatenate([weights[k] for k in theirs])), key
    same(huggingface.from_official(official)[0], weights)
    # What transformers 5 calls the biases.
    fifth = {"q": ".query.bias", "v": ".value.bias"}
    renamed = {re.sub(r"\.([qv])_bias$", lambda m: fifth[m[1]], k): w for k, w in weights.items()}
    assert set(renamed) == set(map(str, rest["keys_transformers5"]))
    same(huggingface.to_official(renamed), official)

    found = describe(official, huggingface.known(config))
    assert (found["model.epsilon"], found["model.head_epsilon"]) == (1e-12, 1e-5)
    assert (found["data.num_frames"], found["data.image_size"]) == (16, 32)
    written = huggingface.config_of(official, found)
    both = set(config) & set(written)
    assert {key: written[key] for key in both} == {key: config[key] for key in both}
    assert len(both) >= 13
    assert written["architectures"] == [config["model"]]


def official_of(shapes: dict[str, Any]) -> dict[str, np.ndarray]:
    return convert.from_params(random_params(shapes), (2, 8, 8))


def folder_of(path: pathlib.Path, official: dict[str, np.ndarray], **config: Any) -> pathlib.Path:
    """A folder as transformers writes it, with `config` changed."""
    weights, _ = huggingface.from_official(official)
    path.mkdir(exist_ok=True)
    files.write(path / "model.safetensors", weights)
    written = huggingface.config_of(official, describe(official, HEADS))
    (path / "config.json").write_text(json.dumps(written | config))
    return path


def test_a_folder_and_the_file_in_it_are_read_alike(tmp_path: pathlib.Path) -> None:
    official = official_of(classifier())
    labels = {str(i): name for i, name in enumerate("abcdefg")}
    folder = folder_of(tmp_path / "model", official, id2label=labels, layer_norm_eps=1e-8)
    for path in (folder, folder / "model.safetensors"):
        source = runs.Source(path)
        same(source.file.weights, official)
        assert source.classes()[:2] == (tuple("abcdefg"), 7)
        config = source.config()
        assert (config.model.heads, config.model.epsilon) == (4, 1e-8)
        assert (config.task, config.data.num_classes) == ("finetune", 7)
    for text in ("{", None):
        (folder / "config.json").write_text(text) if text else (folder / "config.json").unlink()
        with pytest.raises(ConvertError, match=r"config\.json .* number of attention heads"):
            files.read(folder)


def test_names_of_classes() -> None:
    for given, found in (
        ({"1": "run", "0": "walk"}, ("walk", "run")),
        ({"0": "LABEL_0", "1": "LABEL_1"}, ()),
        (None, ()),
    ):
        assert huggingface.classes({"id2label": given}) == (found, len(given or ())), given


def test_what_differs_from_videomae_is_refused(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    official = official_of(autoencoder())
    folder = folder_of(tmp_path / "model", official, model_type="vit")
    with pytest.raises(ConvertError, match="model_type='vit'"):
        files.read(folder)
    # What has no place in the encoder is never dropped.
    weights, _ = huggingface.from_official(official)
    at = "videomae.encoder.layer.1.attention.attention"
    biased = {**weights, f"{at}.key.bias": np.ones(48, np.float32)}
    partial = {key: array for key, array in weights.items() if key != f"{at}.value.weight"}
    for given, said in ((biased, r"1\.attn\.key\.bias is"), (partial, r"1\.attn\.qkv.* is absent")):
        with pytest.raises(ConvertError, match=said):
            convert.to_params(huggingface.to_official(given), like(autoencoder()))
    # ViT-S is computed with the heads that its file says, loudly.
    for heads in (16, 6):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = huggingface.known({"hidden_size": 384, "num_attention_heads": heads})
        assert found["model.heads"] == heads
        assert ("set num_attention_heads to 6" in caplog.text) == (heads == 16)


def test_what_has_no_place_there() -> None:
    with pytest.raises(ConvertError, match=r"blocks\.0\.attn\.scale"):
        huggingface.from_official(official_of(classifier(heads=4)))
    adamae = official_of({**autoencoder(), "sampler": sampler()})
    weights, left_out = huggingface.from_official(adamae)
    same(huggingface.to_official(weights), {k: adamae[k] for k in adamae if "prob" not in k})
    assert set(left_out) == {k for k in adamae if "prob" in k}
    pretrain = official_of(autoencoder())
    found = describe(pretrain, HEADS)
    for key, value in (("targets", "joint"), ("target_frames", 1), ("position_grid", (8, 7, 7))):
        with pytest.raises(ConvertError, match=f"model.{key}="):
            huggingface.config_of(pretrain, found | {f"model.{key}": value})


# From here on against transformers itself.

SMALL = dict(image_size=32, patch_size=8, num_frames=8, tubelet_size=2)
SMALL |= dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192)
SMALL |= dict(decoder_hidden_size=32, decoder_num_hidden_layers=2, decoder_num_attention_heads=2)
SMALL |= dict(decoder_intermediate_size=128, use_mean_pooling=False)
NAMED: dict[str, Any] = dict(
    image_size=32, patch_size=16, num_frames=8, tubelet_size=4, layer_norm_eps=1e-6
)
NAMED |= dict(hidden_size=60, num_hidden_layers=3, num_attention_heads=5, intermediate_size=100)
NAMED |= dict(id2label={0: "jump", 1: "run", 2: "drink a cup of tea"})
MODELS: dict[str, dict[str, Any]] = {"pretraining": SMALL, "classification": NAMED}


def peer(config: dict[str, Any], kind: str = "") -> Any:
    """A model of transformers whose every parameter is random."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kind = kind or ("ForVideoClassification" if "id2label" in config else "ForPreTraining")
    model = getattr(transformers, f"VideoMAE{kind}")(transformers.VideoMAEConfig(**config))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    return model.eval()


def clips(config: Any) -> np.ndarray:
    shape = (2, config.num_frames, config.image_size, config.image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def hidden(config: Any) -> np.ndarray:
    """Which tokens are masked: two thirds, others in each clip."""
    n = config.num_frames // config.tubelet_size * (config.image_size // config.patch_size) ** 2
    rng = np.random.default_rng(1)
    return np.stack([rng.permutation(n) >= n // 3 for _ in range(2)])


def their_logits(model: Any) -> np.ndarray:
    import torch

    config = model.config
    video = (clips(config) / 255.0 - tubelets.IMAGENET_MEAN) / tubelets.IMAGENET_STD
    video = torch.tensor(video.transpose(0, 1, 4, 2, 3), dtype=torch.float32)
    given = {}
    if type(model).__name__.endswith("PreTraining"):
        given = {"bool_masked_pos": torch.from_numpy(hidden(config))}
    with torch.no_grad():
        return model(video, **given).logits.numpy()


def our_logits(task: tasks.Task, params: Any, config: Any) -> Any:
    video = jnp.asarray(clips(config))
    rows = [np.stack([np.flatnonzero(row) for row in m]) for m in (~hidden(config), hidden(config))]
    visible, target = map(jnp.asarray, rows)

    @jax.jit
    def run(params: Any) -> Any:
        model = nnx.merge(task.graphdef, params)
        if task.spec.labels:
            return model(video)
        pixels, grid = tubelets.split(video, task.tubelet)
        return model.reconstruct(pixels, grid, Mask(visible, target, jnp.ones(target.shape)))

    return run(params)


@pytest.mark.parametrize("name", MODELS)
def test_transformers_models_compute_the_same_here(name: str, tmp_path: pathlib.Path) -> None:
    model = peer(MODELS[name])
    model.save_pretrained(tmp_path / "theirs")
    source = files.read(tmp_path / "theirs")
    found = describe(source.weights, source.known)
    task = task_of(found)
    params, report = convert.to_params(source.weights, task.abstract)
    assert report.missing == report.unused == ()
    close(our_logits(task, params, model.config), their_logits(model))
    labels = runs.Source(tmp_path / "theirs").classes()[0]
    assert labels == ("jump", "run", "drink a cup of tea") or name != "classification"

    # And back: every bit, under the names that this release of transformers reads.
    command.translate(tmp_path / "theirs", tmp_path / "run")
    command.translate(tmp_path / "run", tmp_path / "back", "huggingface")
    again, info = type(model).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for key, tensor in model.state_dict().items():
        assert np.array_equal(again.state_dict()[key].numpy(), tensor.numpy()), key
    for key in MODELS[name]:
        assert getattr(again.config, key) == getattr(model.config, key), key


@pytest.mark.parametrize("pools", [False, True])
def test_models_without_a_head_a_decoder_or_a_norm(pools: bool, tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch")
    config = {**SMALL, "use_mean_pooling": pools}
    encoder, autoencoder = peer(config, "Model"), peer(config)
    encoder.save_pretrained(tmp_path / "hub")
    video = clips(encoder.config)
    normalised = (video / 255.0 - tubelets.IMAGENET_MEAN) / tubelets.IMAGENET_STD
    given = torch.tensor(normalised.transpose(0, 1, 4, 2, 3), dtype=torch.float32)
    with torch.no_grad():
        theirs = encoder(given).last_hidden_state.numpy()
    for source, target in (("hub", "run"), ("run", "again.safetensors"), ("run", "back")):
        to = "huggingface" if target == "back" else None
        command.translate(tmp_path / source, tmp_path / target, to)
    for name in ("hub", "run", "back"):
        model = mvm.load(tmp_path / name)
        close(model.embed(video, tokens=True).reshape(theirs.shape), theirs)
        close(model.embed(video), theirs.mean(axis=1))
        with pytest.raises(mvm.UserError, match="no head"):
            model.classify(video)
        with pytest.raises(mvm.UserError, match="no decoder"):
            model.reconstruct(video)
    read = files.read(tmp_path / "hub").weights
    # What ends without a norm has the names of a classifier.
    read = {k.removeprefix("encoder.") if pools else k: array for k, array in read.items()}
    same(files.read(tmp_path / "again.safetensors").weights, read)

    autoencoder.save_pretrained(tmp_path / "whole")
    found = mvm.load(tmp_path / "whole")
    assert ("norm" in found._params["encoder"]) != pools
    config = autoencoder.config
    close(our_logits(found.task, found._params, config), their_logits(autoencoder))
