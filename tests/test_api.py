"""The API: videos of any length and size, and the answers that training and evaluation give."""

import functools
import io
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from models_on_disk import configure, official, refused, video, write_run

import mvm
from input_pipeline.video import decode
from mvm import convert as command
from mvm import masking, tasks
from mvm.types import Grid
from mvm.weights import convert, files

LONG = np.zeros((1, 16, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A fine-tuned run of EVEREST, which selects tokens, and its weights."""
    folder = tmp_path_factory.mktemp("classifier")
    params = write_run(folder / "run", configure("everest_ucf101", "finetune,smoke"))
    (folder / "run" / "classes.txt").write_text("\n".join("stuvwxyz"))
    return folder, params


@pytest.fixture(scope="module")
def selecting(classifier):
    return mvm.load(classifier[0] / "run")


@pytest.fixture(scope="module")
def whole(classifier):
    """The same run without its mask."""
    return mvm.load(classifier[0] / "run", mask="")


def test_every_form_of_a_run_is_one_model(classifier, whole, tmp_path):
    run, clip = classifier[0] / "run", video(16, 32, 32)
    expected = whole.classify(clip, top=8)
    assert whole.class_names == tuple("stuvwxyz")
    # A step without its run's config.json and names.
    step = shutil.copytree(run / "checkpoints/2", tmp_path / "alone/checkpoints/2")
    assert mvm.load(step).class_names == tuple("01234567")
    np.testing.assert_array_equal(mvm.load(step, mask="").embed(clip), whole.embed(clip))
    # The accelerator of its training may not be here.
    old = shutil.copytree(run, tmp_path / "old")
    written = json.loads((old / "config.json").read_text())
    written["model"]["attention"] = "cudnn"
    (old / "config.json").write_text(json.dumps(written))
    assert mvm.load(old, mask="").classify(clip, top=8) == expected
    # A file is taken to be of 224 px: only a table built for the clip is that of the run.
    files.write(tmp_path / "a.safetensors", convert.from_params(classifier[1], (2, 8, 8)))
    names = {n: i for i, n in enumerate("stuvwxyz")}
    file = mvm.load(tmp_path / "a.safetensors", class_names=names, positions="rebuilt")
    assert file.class_names == whole.class_names
    assert file.classify(clip, top=8) == expected
    assert mvm.load(tmp_path / "a.safetensors", mask="everest").config.mask.mask_ratio == 0.4


def test_files_in_every_form_give_what_their_frames_give(shapes, selecting):
    path = shapes / (shapes / "test.txt").read_text().split()[0]
    with decode.open_video(str(path)) as opened:
        frames = np.stack(opened.read(range(opened.header.num_frames)))
    content = path.read_bytes()
    assert frames.shape[1:3] != (32, 32)
    for views in ("2x3", (2, 3)):
        assert selecting.classify(frames, views) == selecting.classify(str(path), views)
    # Without views a file is one clip, the one of validation.
    best = selecting.classify(path, top=8)
    assert best == selecting.classify(frames, "1x1", top=8)
    assert selecting.classify(path) == best[:5]
    assert {name for name, _ in best} == set(selecting.class_names)
    chances = [p for _, p in best]
    assert chances == sorted(chances, reverse=True)
    assert sum(chances) == pytest.approx(1.0, abs=1e-5)
    with path.open("rb") as file:
        forms = [str(path), content, bytearray(content), io.BytesIO(content), file, file]
        assert selecting.classify(forms, top=8) == [best] * 6


def test_videos_of_any_number_length_and_size(classifier, whole):
    batch = np.stack([video(16, 32, 32, seed=i) for i in range(3)])
    together = whole.embed(batch)
    assert together.shape == (3, 64)
    mixed = whole.embed([batch[0], video(8, 48, 24), batch[2]])
    np.testing.assert_array_equal(mixed[[0, 2]], together[[0, 2]])
    for size in ((4, 32, 32), (8, 48, 24)):
        clip, grid = video(*size), Grid(size[0] // 2, size[1] // 8, size[2] // 8)
        tokens = whole.embed(clip, tokens=True)
        assert tokens.shape == (*grid, 64)
        mean = tokens.mean(axis=(0, 1, 2))
        norm = classifier[1]["fc_norm"]
        expected = (mean - mean.mean()) / np.sqrt(mean.var() + 1e-6) * norm["scale"] + norm["bias"]
        np.testing.assert_allclose(whole.embed(clip), expected, atol=1e-4)


def test_selection_and_positions_of_another_grid(classifier, selecting, whole):
    config = configure("everest_ucf101", "finetune,smoke", model={"position_grid": (8, 4, 4)})
    model = nnx.merge(tasks.build(config).graphdef, classifier[1])
    strategy = masking.build("everest", Grid(4, 6, 3), keep_ratio=0.6, mask_ratio=0.4)
    assert (strategy.num_visible, strategy.num_target) == (43, 0)
    clip = video(8, 48, 24)
    expected = jax.jit(lambda v: model.pool(model.features(v, strategy)))(clip[None])[0]
    np.testing.assert_allclose(selecting.embed(clip), expected, atol=1e-5)
    assert np.abs(whole.embed(clip) - expected).max() > 1e-2
    assert selecting.embed(clip, tokens=True).shape == (4, 6, 3, 64)  # all of them


def test_videos_and_questions_that_cannot_be(selecting):
    for given, said in (
        (LONG.astype(np.float32), r"uint8 \[T, H, W, 3\].* float32\[16, 32, 32, 3\]"),
        (LONG[0, 0], r"a file \(path, .* uint8\[32, 32, 3\]"),
        (None, "this one is NoneType"),
        (b"", "a video of 0 bytes: the file is empty"),
        ("https://a.org/b.mp4", "^https://a.org/b.mp4 is an address"),
        (LONG[0, :2], "2 frames is too short: 4"),
        (LONG[0, :5], "5 frames of 32x32 px is not divisible into tubelets of 2x8x8"),
        ([], "^no video: the list is empty$"),
        ([pathlib.Path(__file__)], "test_api.py: not a video FFmpeg can read"),
    ):
        refused(said, selecting.embed, given)
    refused("no decoder; load the", selecting.reconstruct, LONG[0])
    refused("on_error='warn' is unknown", selecting.embed, LONG, on_error="warn")
    for views in ("0x3", (5,)):
        refused("^views=.*; give segments x crops", selecting.classify, LONG[0], views)
    unequal = [LONG[0], LONG[0, :8]]
    refused("unequal numbers of tokens", selecting.embed, unequal, tokens=True)


def test_what_fails_is_skipped_and_named(shapes, selecting, tmp_path):
    path = str(shapes / (shapes / "test.txt").read_text().split()[0])
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(pathlib.Path(path).read_bytes()[:300])
    videos, kept = [broken, path, LONG[0, 0], path, "absent.mp4"], [path, path]
    views = functools.partial(selecting.classify, views="2x1")
    for ask in (selecting.embed, selecting.classify, selecting.features, selecting.mask, views):
        found, failed = ask(videos, on_error="skip")
        assert set(failed) == {0, 2, 4}
        assert "absent.mp4" in failed[4]
        expected = ask(kept, on_error="skip")
        assert expected[1] == {}
        jax.tree.map(np.testing.assert_array_equal, found, expected[0])
        refused("none of 2 .*broken.mp4", ask, [broken] * 2, on_error="skip")
        refused("broken.mp4", ask, broken, on_error="skip")


def test_paths_and_options_that_cannot_be_loaded(classifier, tmp_path):
    folder, run, new = classifier[0], classifier[0] / "run", tmp_path / "new"
    (new / "checkpoints").mkdir(parents=True)
    for path, options, said in (
        (folder, {}, f"^{folder} holds 1 runs; name one: run$"),
        (new, {}, "new holds no finished checkpoint"),
        (run, {"class_names": ["a", "b"]}, "class_names has 2 names, but the model 8 classes"),
        (run, {"class_names": {0: "a", 2: "b"}}, "does not name the classes 0, 1, 2"),
        (run, {"mask": {"ratio": 1}}, r"mask.ratio has no effect .*did you mean 'mask_ratio'\?"),
        (run, {"mask": "tube"}, "nothing to reconstruct, but mask.name='tube'"),
        (run, {"positions": "new"}, "positions='new' is unknown; choose interpolated or rebuilt"),
    ):
        refused(said, mvm.load, path, **options)


def test_encoders_alone_embed_and_say_what_they_lack(tmp_path):
    """As VideoMAE V2's are published, and as the encoder of a pre-training file."""
    clip = video(16, 32, 32)
    for task in ("finetune", "pretrain"):
        weights = official(configure("videomae_k400", f"{task},smoke"))
        if task == "finetune":
            part = {f"model.{k}": v for k, v in weights.items() if not k.startswith("head.")}
        else:
            part = {key: array for key, array in weights.items() if key.startswith("encoder.")}
        whole, alone = tmp_path / f"{task}.safetensors", tmp_path / task
        alone.mkdir()
        files.write(whole, weights)
        files.write(alone / "model.safetensors", part)
        command.translate(alone, tmp_path / f"{task} run")
        complete = mvm.load(whole, positions="rebuilt")
        for path in (alone, tmp_path / f"{task} run"):
            model = mvm.load(path, positions="rebuilt")
            np.testing.assert_array_equal(model.embed(clip), complete.embed(clip))
            assert model.class_names == ()
            refused("no head .* fine-tune it", model.classify, clip)
            refused("no decoder; load the pre-training run", model.reconstruct, clip)
