"""Hugging Face's VideoMAE: names, config.json, the hub and, if it is installed, its outputs."""

import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import close, mask_of
from models_on_disk import configure, official, refused, same

import mvm
from mvm import config as schema
from mvm import convert as command
from mvm import runs, tasks
from mvm.models import tubelets
from mvm.weights import convert, files, hub, huggingface
from mvm.weights.describe import describe


def test_nothing_of_a_published_model_is_lost(shared):
    for name in ("hf_pretrain", "hf_classification"):
        rest = dict(np.load(shared / "golden" / f"{name}.npz"))
        weights = {key[3:]: rest.pop(key) for key in list(rest) if key.startswith("sd/")}
        config = json.loads(str(rest["config"]))
        found = huggingface.to_official(weights)
        # The map was made from the official code; qkv are three keys there.
        keymap = json.loads(str(rest["keymap"]))
        assert set(found) == set(keymap)
        for key, theirs in keymap.items():
            assert np.array_equal(found[key], np.concatenate([weights[k] for k in theirs])), key
        described = describe(found, huggingface.known(config))
        task = tasks.build(schema.completed(schema.nested(described)))
        params, report = convert.to_params(found, task.abstract)
        assert report.missing == report.unused == ()
        same(convert.from_params(params, task.tubelet), found)
        same(huggingface.from_official(found)[0], weights)
        # What transformers 5 calls the biases.
        fifth = lambda k: k.replace(".q_bias", ".query.bias").replace(".v_bias", ".value.bias")  # noqa: E731
        renamed = {fifth(key): array for key, array in weights.items()}
        assert set(renamed) == set(map(str, rest["keys_transformers5"]))
        same(huggingface.to_official(renamed), found)
        assert (described["model.epsilon"], described["model.head_epsilon"]) == (1e-12, 1e-5)
        written = huggingface.config_of(found, described)
        both = set(config) & set(written)
        assert {key: written[key] for key in both} == {key: config[key] for key in both}
        assert len(both) >= 10
        assert written["architectures"] == [config["model"]]
        pixels = np.moveaxis(rest["pixel_values"], 2, -1)
        video = jnp.asarray(pixels * tubelets.IMAGENET_STD + tubelets.IMAGENET_MEAN)
        model = nnx.merge(task.graphdef, params)
        if name == "hf_pretrain":
            mask = mask_of(rest["bool_masked_pos"])
            out = model.reconstruct(*tubelets.split(video, task.tubelet), mask)
        else:
            out = model(video)
        close(out, rest["logits"])


def folder_of(path, weights, **config):
    """A folder as transformers writes it, with `config` changed."""
    path.mkdir(exist_ok=True, parents=True)
    files.write(path / "model.safetensors", huggingface.from_official(weights)[0])
    written = huggingface.config_of(weights, describe(weights))
    (path / "config.json").write_text(json.dumps(written | config))
    return path


def test_a_folder_and_the_file_in_it_are_read_alike_if_they_are_of_videomae(tmp_path):
    weights = official(configure("videomae_k400", "finetune,smoke"))
    labels = {str(i): name for i, name in enumerate("abcdefgh")}
    said = {"id2label": labels, "layer_norm_eps": 1e-8, "image_size": 32}
    folder = folder_of(tmp_path / "model", weights, **said)
    for path in (folder, folder / "model.safetensors"):
        source = runs.Source(path)
        same(source.file.weights, weights)
        assert (source.head().classes.names, source.head().num_classes) == (tuple("abcdefgh"), 8)
        assert (source.config().model.heads, source.config().model.epsilon) == (1, 1e-8)
        assert (source.config().task, source.config().data.num_classes) == ("finetune", 8)
        assert source.config().data.image_size == 32
    (folder / "config.json").write_text("{")
    refused(r"config\.json .* number of attention heads", files.read, folder)
    for change, said in (
        ({"hidden_act": "relu"}, "hidden_act='relu'.*'gelu'"),
        ({"model_type": "vit"}, "model_type='vit'.*'videomae'"),
        ({"image_size": [32, 64]}, r"data.image_size=\[32, 64\]"),
    ):
        refused(said, mvm.load, folder_of(folder, weights, **change))


def test_what_has_no_place_there(tmp_path):
    files.write(tmp_path / "a.safetensors", official(configure("adamae_k400")))  # Its sampler.
    report = command.translate(tmp_path / "a.safetensors", tmp_path / "a", "huggingface")
    assert "left out: encoder.get_token_probs.0.attn.proj.bias, " in report
    options = configure("videomae_k400", model={"cosine_attention": True, "layer_scale": 0.1})
    refused(r"\.(gamma_1|attn\.scale)", huggingface.from_official, official(options))
    pretrain = official(configure("videomae_k400"))
    for key, value in (("targets", "joint"), ("target_frames", 1), ("position_grid", (8, 7, 7))):
        changed = describe(pretrain) | {f"model.{key}": value}
        refused(f"model.{key}=", huggingface.config_of, pretrain, changed)
    finetune = official(configure("videomae_k400", "finetune,smoke"))
    headless = {k: v for k, v in finetune.items() if not k.startswith("head.")}
    refused("without its head", huggingface.config_of, headless, describe(headless))


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What a client is asked for, whose hub is `tmp_path/hub`."""
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, *allow_patterns))
        if not (tmp_path / "hub" / name).exists():
            raise OSError(f"404 Client Error\n\nRepository Not Found for url: {'x' * 500}")
        return str(tmp_path / "hub" / name)

    module = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.chdir(tmp_path)
    hub.local.cache_clear()
    return asked


def test_a_name_is_fetched_once_with_no_more_than_is_needed(asked, tmp_path):
    folder, names = tmp_path / "hub" / "me" / "model", [f"class {i}" for i in range(8)]
    weights = official(configure("videomae_k400", "finetune,smoke"))
    folder_of(folder, weights, image_size=32, id2label=names)
    assert mvm.load("me/model").class_names == tuple(names)
    assert runs.Source("me/model").grid() == (8, 4, 4)  # which init_from asks
    assert asked == [("me/model", "config.json", "model.safetensors")]
    # Without one file of weights, such as one in several, there is one line.
    (folder / "model.safetensors").unlink()
    hub.local.cache_clear()
    refused("me/model on the Hugging Face hub has none of model.saf", mvm.load, "me/model")
    refused(r"^me/absent does not exist .*OSError\)$", hub.local, "me/absent")
    # What exists here goes first.
    (tmp_path / "mine" / "model").mkdir(parents=True)
    assert hub.local("mine/model") == "mine/model"


@pytest.mark.usefixtures("asked")
def test_what_is_no_name_on_the_hub(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    (tmp_path / "mine").mkdir()
    for path in ("runs/demo", "mine/absent", "/a/b", "a/b/c", "gs://a/b", "../a", "absent"):
        assert hub.local(path) == path
    refused("^a/b does not exist; .* pip install huggingface_hub", hub.local, "a/b")


# --- Against transformers itself

SMALL = dict(image_size=32, patch_size=8, num_frames=8, tubelet_size=2)
SMALL |= dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192)
SMALL |= dict(decoder_hidden_size=32, decoder_num_hidden_layers=2, decoder_num_attention_heads=2)
SMALL |= dict(decoder_intermediate_size=128, use_mean_pooling=False, norm_pix_loss=False)
NAMED = dict(image_size=32, patch_size=16, num_frames=8, tubelet_size=4, layer_norm_eps=1e-6)
NAMED |= dict(hidden_size=60, num_hidden_layers=3, num_attention_heads=5, intermediate_size=100)
NAMED |= dict(id2label={0: "jump", 1: "run", 2: "drink a cup of tea"})


@pytest.mark.slow
def test_models_of_transformers_come_back_bit_for_bit(tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    for kind, config in (("ForPreTraining", SMALL), ("ForVideoClassification", NAMED)):
        folder = tmp_path / kind
        model = getattr(transformers, f"VideoMAE{kind}")(transformers.VideoMAEConfig(**config))
        model.save_pretrained(folder / "theirs")
        # And back: every bit, under the names that this release of transformers reads.
        command.translate(folder / "theirs", folder / "run")
        command.translate(folder / "run", folder / "back", "huggingface")
        again, info = type(model).from_pretrained(folder / "back", output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        for key, tensor in model.state_dict().items():
            assert np.array_equal(again.state_dict()[key].numpy(), tensor.numpy()), key
        for key in config:
            assert getattr(again.config, key) == getattr(model.config, key), key
        # Their processor makes of frames what we make of them.
        processor = transformers.VideoMAEImageProcessor.from_pretrained(folder / "back")
        shape = (config["num_frames"], config["image_size"], config["image_size"], 3)
        frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        given = processor(list(frames), return_tensors="np")
        expected = (frames / 255.0 - tubelets.IMAGENET_MEAN) / tubelets.IMAGENET_STD
        close(np.moveaxis(given["pixel_values"][0], 1, -1), expected)
        assert processor.size["shortest_edge"] == 32
