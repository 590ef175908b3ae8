"""The API and `init_from` on every form of a model: files, folders, converted and older runs."""

import json

import numpy as np
import pytest
import torch_writer
from flax import nnx
from models_on_disk import configure, random_params, refused, video, write_run

import mvm
from configs import everest_ucf101, videomae_k400
from input_pipeline.video import decode
from mvm import convert as command
from mvm import runs, samples, tasks
from mvm.weights import convert, files


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """A classifier and an autoencoder in every form; "old" is a run older than some keys."""
    root = tmp_path_factory.mktemp("forms")
    for leaf, argument in ((everest_ucf101, "finetune,smoke"), (videomae_k400, "smoke")):
        config = configure(leaf, argument, model={"tubelet": (2, 16, 16)})
        config.model.update(decoder_width=64, decoder_heads=1)
        config.mask.name = "tube" if config.task == "pretrain" else ""
        folder = root / config.task
        weights = convert.from_params(write_run(folder / "old", config))
        files.write(folder / "a.safetensors", weights)
        tensors = {key: torch_writer.dense(array) for key, array in weights.items()}
        torch_writer.save(folder / "a.pth", torch_writer.released(tensors))
        command.translate(folder / "old", folder / "hub", "huggingface")
        command.translate(folder / "hub", folder / "converted")
        written = json.loads((folder / "old" / "config.json").read_text())
        for key in ("fps", "timeout", "min_frames", "workers"):
            del written["data"][key]
        del written["eval"], written["model"]["head_epsilon"]
        written["data"]["no_key_any_more"], written["no_group_any_more"] = 1, {"a": "b"}
        (folder / "old" / "config.json").write_text(json.dumps(written))
    return root


@pytest.mark.parametrize("form", ["a.pth", "a.safetensors", "hub", "converted", "old"])
def test_every_form_answers_every_question_about_files_and_arrays(forms, shapes, form):
    path = shapes / (shapes / "test.txt").read_text().split()[0]
    frames = np.stack(decode.read_frames(str(path), np.arange))
    for task in ("finetune", "pretrain"):
        model = mvm.load(forms / task / form)
        assert model.config.data.image_size == (224 if form.startswith("a.") else 32)
        clip = samples.views_of(model.task.clips["val"], frames, 1, 1)[0]
        expected = model.embed(clip)
        assert (expected.shape, np.isfinite(expected).all()) == ((64,), True)
        np.testing.assert_array_equal(model.embed([path, path.read_bytes()]), [expected] * 2)
        tokens = model.embed(path, tokens=True)
        np.testing.assert_array_equal(tokens, model.embed(clip, tokens=True))
        if task == "pretrain":
            for mine, yours in zip(model.reconstruct(path, 3), model.reconstruct(clip, 3)):
                np.testing.assert_array_equal(mine, yours)
            continue
        assert model.classify(path, top=8) == model.classify(clip, top=8)
        assert model.classify(path, "2x1", top=8) == model.classify(frames, "2x1", top=8)


def test_encoders_alone_embed_and_say_what_they_lack(forms, tmp_path):
    """As VideoMAE V2's are published, and as the encoder of a pre-training file."""
    weights = files.read(forms / "finetune" / "a.pth").weights
    folder, clip = tmp_path / "v2", video(16, 32, 32)
    folder.mkdir()
    headless = {f"model.{k}": v for k, v in weights.items() if not k.startswith("head.")}
    files.write(folder / "model.safetensors", headless)
    own = {"num_heads": 1, "num_frames": 16, "img_size": 32, "num_classes": 0}
    (folder / "config.json").write_text(json.dumps({"model_config": own}))
    weights = files.read(forms / "pretrain" / "a.pth").weights
    part = {key: array for key, array in weights.items() if key.startswith("encoder.")}
    files.write(tmp_path / "encoder.safetensors", part)
    for alone, task in ((folder, "finetune"), (tmp_path / "encoder.safetensors", "pretrain")):
        command.translate(alone, tmp_path / f"{task} run")
        complete = mvm.load(forms / task / "a.pth", {"data.image_size": 32})
        for path in (alone, tmp_path / f"{task} run"):
            model = mvm.load(path, {"data.image_size": 32})
            np.testing.assert_array_equal(model.embed(clip), complete.embed(clip))
            tokens = model.embed(clip, tokens=True)
            np.testing.assert_array_equal(tokens, complete.embed(clip, tokens=True))
            assert model.class_names == ()
            assert f"{task}: 2 blocks of width 64" in repr(model)
            refused("no head .* fine-tune it", model.classify, clip)
            refused("no decoder; load the pre-training run", model.reconstruct, clip)
    assert mvm.load(folder).config.data.image_size == 32


@pytest.mark.parametrize("form", ["a.pth", "hub", "old"])
def test_fine_tuning_on_another_grid_interpolates_as_a_loaded_model_does(forms, form, tmp_path):
    source, clip = forms / "pretrain" / form, video(8, 32, 64)[:, :, :32]
    config = configure(everest_ucf101, "finetune,smoke", model={"tubelet": (2, 16, 16)})
    config.mask.name, config.init_from, config.data.num_frames = "", str(source), 8
    grid = (8, 14, 14) if form == "a.pth" else (8, 2, 2)
    tied = runs.with_training_grid(config, tmp_path)
    assert (tied.model.position_grid, config.model.position_grid) == (grid, (0, 0, 0))
    task = tasks.build(tied)
    params = runs.initial_params(str(source), task.abstract, model=tied.model)
    model = nnx.merge(task.graphdef, {**random_params(task.abstract), **params})
    # Before its last norm an encoder of pre-training is that of the classifier.
    theirs = mvm.load(source, {"mask.name": "tube"}).embed(clip, tokens=True).reshape(1, -1, 64)
    norm = files.read(forms / "pretrain" / "a.pth").weights
    mine = np.asarray(model.features(clip[None]))
    mine = (mine - mine.mean(-1, keepdims=True)) / np.sqrt(mine.var(-1, keepdims=True) + 1e-6)
    mine = mine * norm["encoder.norm.weight"] + norm["encoder.norm.bias"]
    np.testing.assert_allclose(mine, theirs, atol=1e-4)

    # Evaluation of what was fine-tuned so, and a resumed run, are told the same.
    write_run(tmp_path / "run", tied)
    config.init_from = str(tmp_path / "run")
    assert runs.with_training_grid(config, tmp_path / "new").model.position_grid == grid
    config.init_from = "gone"
    assert runs.with_training_grid(config, tmp_path / "run").model.position_grid == grid
    # On the grid of training nothing changes.
    config.init_from, config.data.num_frames = str(source), 16
    config.data.image_size = 16 * grid[1]
    assert runs.with_training_grid(config, tmp_path / "new") is config
