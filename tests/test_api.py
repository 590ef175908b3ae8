"""The API: videos of any length and size, and the answers that training and evaluation give."""

import csv
import functools
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from models_on_disk import configure, refused, video, write_run

import mvm
from configs import everest_ucf101
from input_pipeline.video import decode
from mvm import convert as command
from mvm import data, evaluate, masking, runs, tasks
from mvm.models import tubelets
from mvm.runtime import sharding
from mvm.types import Grid
from mvm.weights import convert, files

ROOT = pathlib.Path(__file__).resolve().parent.parent
LONG = np.zeros((1, 16, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def classifier(shapes, tmp_path_factory):
    """A fine-tuned run of EVEREST, which selects tokens, and its evaluation."""
    folder = tmp_path_factory.mktemp("classifier")
    config = configure(everest_ucf101, "finetune,smoke", eval={"num_crops": 3})
    config.data.test = str(shapes / "test.txt")
    params = write_run(folder / "run", config)
    config.evaluate, config.init_from = True, str(folder / "run")
    (folder / "evaluated").mkdir()
    runs.write_config(config, folder / "evaluated")
    task = tasks.build(config)
    predict = functools.partial(evaluate.predictor(task, sharding.make_mesh()), params, {})
    found, names = (
        data.records(data.sources(config.data, "test"), split="test"),
        (shapes / "classes.txt").read_text().split(),
    )
    (folder / "run" / "classes.txt").write_text("\n".join(names))
    evaluate.test(task, folder / "evaluated", predict, found, data.Reader(), 8, names)
    return folder, params


@pytest.fixture(scope="module")
def selecting(classifier):
    return mvm.load(classifier[0] / "run")


@pytest.fixture(scope="module")
def whole(classifier):
    """The same run without its mask."""
    return mvm.load(classifier[0] / "run", {"mask.name": ""})


def test_importing_the_package_imports_nothing_else():
    code = "import mvm, sys; print([m for m in ('jax', 'numpy', 'mvm.api') if m in sys.modules])"
    out = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert out == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        mvm.lode  # noqa: B018


def test_a_run_its_step_and_its_files_are_one_model(classifier, whole, tmp_path):
    run, clip = classifier[0] / "run", video(16, 32, 32)
    expected = whole.classify(clip)
    step = tmp_path / "alone" / "checkpoints" / "2"
    shutil.copytree(run / "checkpoints" / "2", step)  # Without its run's config.json.
    shutil.copy(run / "classes.txt", tmp_path / "alone")
    assert mvm.load(step, {"mask.name": ""}).classify(clip) == expected
    # What attends on another accelerator may not be here.
    assert mvm.load(run, {"mask.name": "", "model.attention": "splash"}).classify(clip) == expected
    # A file is taken to be of 224 px unless told.
    files.write(tmp_path / "a.safetensors", convert.from_params(classifier[1], (2, 8, 8)))
    told = {"data.image_size": 32}
    file = mvm.load(tmp_path / "a.safetensors", told)
    assert file.class_names == tuple("01234567")
    file.class_names = whole.class_names
    assert file.classify(clip) == expected
    # A converted run selects tokens as the run does, unless told otherwise.
    command.translate(run, tmp_path / "converted")
    assert mvm.load(tmp_path / "converted").config.mask.name == "everest"
    assert mvm.load(tmp_path / "converted", {"mask.name": ""}).classify(clip) == expected
    # Hugging Face's form knows the size and the names, and has epsilons of its own.
    command.translate(tmp_path / "converted", tmp_path / "hub", "huggingface")
    hub = mvm.load(tmp_path / "hub").classify(clip)
    assert [name for name, _ in hub] == [name for name, _ in expected]
    np.testing.assert_allclose([p for _, p in hub], [p for _, p in expected], atol=1e-3)


def test_a_published_model_answers_as_where_it_comes_from(shared, tmp_path):
    """The probabilities that transformers computes for the same pixels."""
    golden = dict(np.load(shared / "golden" / "hf_classification.npz"))
    weights = {key[3:]: array for key, array in golden.items() if key.startswith("sd/")}
    files.write(tmp_path / "model.safetensors", weights)
    names = {str(i): f"class {i}" for i in range(7)}
    config = {**json.loads(str(golden["config"])), "id2label": names}
    (tmp_path / "config.json").write_text(json.dumps(config))
    pixels = np.moveaxis(golden["pixel_values"], 2, -1)
    pixels = 255 * (pixels * tubelets.IMAGENET_STD + tubelets.IMAGENET_MEAN)
    found = mvm.load(tmp_path).classify(np.rint(pixels).astype(np.uint8), top=7)
    for labels, logits in zip(found, golden["logits"]):
        expected = np.exp(logits) / np.exp(logits).sum()
        assert [name for name, _ in labels] == [f"class {i}" for i in np.argsort(-expected)]
        np.testing.assert_allclose([p for _, p in labels], sorted(expected)[::-1], atol=1e-5)


# --- Classifiers


def test_files_are_classified_as_in_evaluation(shapes, classifier, selecting):
    with (classifier[0] / "evaluated" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = selecting.classify([shapes / row["video"] for row in rows], views="2x3", top=1)
    assert len(rows) == len(found) == 19
    assert selecting.class_names == tuple((shapes / "classes.txt").read_text().split())
    assert [row["prediction"] for row in rows] == [best[0][0] for best in found]
    assert len({row["prediction"] for row in rows}) > 1
    np.testing.assert_allclose(
        [best[0][1] for best in found], [float(row["probability"]) for row in rows], atol=1e-4
    )


def test_decoded_frames_are_as_good_as_their_file(shapes, selecting):
    path = shapes / (shapes / "test.txt").read_text().split()[0]
    frames = np.stack(decode.read_frames(str(path), np.arange))
    assert frames.shape[1:3] != (32, 32)
    for views in ("2x3", "1x1"):
        assert selecting.classify(frames, views) == selecting.classify(str(path), views)
    # Without views a file is one clip, the one of validation.
    best = selecting.classify(path, top=8)
    assert best == selecting.classify(path, "1x1", top=8)
    assert selecting.classify(path) == best[:5]
    assert {name for name, _ in best} == set(selecting.class_names)
    chances = [p for _, p in best]
    assert chances == sorted(chances, reverse=True)
    assert sum(chances) == pytest.approx(1.0, abs=1e-5)


def test_several_videos_give_what_they_give_alone(whole):
    batch = np.stack([video(16, 32, 32, seed=i) for i in range(3)])
    together = whole.embed(batch)
    assert (together.shape, together.dtype) == ((3, 64), np.float32)
    mixed = whole.embed([batch[0], video(8, 48, 24), batch[2]])  # Sizes may differ.
    np.testing.assert_array_equal(mixed[[0, 2]], together[[0, 2]])


def test_videos_of_any_length_and_size(classifier, whole):
    for size in ((4, 32, 32), (64, 32, 32), (8, 48, 24)):
        clip, grid = video(*size), Grid(size[0] // 2, size[1] // 8, size[2] // 8)
        tokens = whole.embed(clip, tokens=True)
        assert tokens.shape == (*grid, 64)
        mean = tokens.mean(axis=(0, 1, 2))
        norm = classifier[1]["fc_norm"]
        expected = (mean - mean.mean()) / np.sqrt(mean.var() + 1e-6) * norm["scale"] + norm["bias"]
        np.testing.assert_allclose(whole.embed(clip), expected, atol=1e-4)


def test_selection_and_positions_of_another_grid(classifier, selecting, whole):
    config = configure(everest_ucf101, "finetune,smoke")
    config.model.position_grid = (8, 4, 4)
    model = nnx.merge(tasks.build(config).graphdef, classifier[1])
    strategy = masking.build("everest", Grid(4, 6, 3), keep_ratio=0.6, mask_ratio=0.4)
    assert (strategy.num_visible, strategy.num_target) == (43, 0)
    clip = video(8, 48, 24)
    expected = jax.jit(lambda v: model.pool(model.features(v, strategy)))(clip[None])[0]
    np.testing.assert_allclose(selecting.embed(clip), expected, atol=1e-5)
    assert np.abs(whole.embed(clip) - expected).max() > 1e-2
    assert selecting.embed(clip, tokens=True).shape == (4, 6, 3, 64)  # all of them
    # Interpolated as by `model.position_grid` in training, or built for the clip.
    clip, rebuilt = video(8, 32, 32), mvm.load(classifier[0] / "run", {"data.num_frames": 8})
    for found, grid in ((whole, (8, 4, 4)), (rebuilt, (0, 0, 0))):
        config = configure(everest_ucf101, "finetune,smoke", data={"num_frames": 8})
        config.model.position_grid = grid
        model = nnx.merge(tasks.build(config).graphdef, classifier[1])
        expected = jax.jit(model.features)(clip[None])[0]
        tokens = found.embed(clip, tokens=True)
        np.testing.assert_allclose(tokens.reshape(-1, 64), expected, atol=1e-5)


# --- What cannot be answered


def test_what_cannot_be_answered(selecting):
    for given, said in (
        (LONG.astype(np.float32), r"uint8 \[T, H, W, 3\].* float32\[1, 16, 32, 32, 3\]|float32"),
        (LONG[0, 0], r"a file \(path .* uint8\[32, 32, 3\]"),
        (None, "this one is object"),
        (b"", "a video of 0 bytes: the file is empty"),
        (np.moveaxis(LONG[0], -1, 1), r"uint8\[16, 3, 32, 32\]"),
        (LONG[0, :5], "5 frames of 32x32 px is not divisible into tubelets of 2x8x8"),
        ([], "^no video: the list is empty$"),
        ("absent.mp4", "^absent.mp4: no such file$"),
        ([pathlib.Path(__file__)], "test_api.py: not a video FFmpeg can read"),
    ):
        refused(said, selecting.embed, given)
    refused("no decoder; load the", selecting.reconstruct, LONG[0])
    for views in ("5", "0x3", "5x3x1"):
        refused("^views=.*; give segments x crops", selecting.classify, LONG[0], views)


def test_paths_and_changes_that_cannot_be_loaded(classifier, tmp_path):
    folder, params = classifier
    run, new, broken = folder / "run", tmp_path / "new", tmp_path / "broken"
    (new / "checkpoints").mkdir(parents=True)
    (broken / "checkpoints" / "1").mkdir(parents=True)
    (broken / "checkpoints" / "1" / "_CHECKPOINT_METADATA").touch()
    (broken / "config.json").write_text("[1]")
    weights = convert.from_params(params, (2, 8, 8))
    no_norm = tmp_path / "no_norm.safetensors"
    files.write(no_norm, {k: v for k, v in weights.items() if not k.startswith("fc_norm.")})
    for path, changes, said in (
        (tmp_path / "absent", {}, "absent does not exist; give a run directory"),
        (folder, {}, f"^{folder} holds 1 runs; load one: run$"),
        (folder / "evaluated", {}, "evaluated holds no weights .* no run with a checkpoint"),
        (new, {}, "new holds no finished checkpoint"),
        (broken, {}, "config.json cannot be read .*; copy it again, or delete it$"),
        (run, {"data.num_classes": 5}, "run lacks head/bias .*data.num_classes=5"),
        (no_norm, {}, "no_norm.safetensors lacks fc_norm/bias and 1 others"),
        (run, {"mask.ratio": 1}, "mask.ratio is no key of a configuration"),
        (run, {"mask.name": "tub"}, "mask.name='tub' is unknown; did you mean 'tube'"),
        (run, {"mask.name": "tube"}, "nothing to reconstruct, but mask.name='tube'"),
        (run, {"model.dtype": "int8"}, "model.dtype='int8' is unknown; choose auto"),
    ):
        refused(said, mvm.load, path, changes)
    assert "8 classes, mask 'everest'" in repr(mvm.load(run))
