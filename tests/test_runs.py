"""What is in a run directory: its one writer, its configuration, its weights and class names."""

import logging

import jax
import numpy as np
import pytest
from flax import nnx
from models_on_disk import abstract, official, random_params, refused, video, write_run
from models_on_disk import configure as recipe

import mvm
from input_pipeline.sources.records import DataError
from mvm import convert, initial, runs, tasks
from mvm.data import Classes
from mvm.runs import Head
from mvm.types import UserError
from mvm.weights import files


def configure(num_classes=0, **keys):
    config = recipe("videomae_k400", "finetune,smoke", data={"num_classes": num_classes})
    config.update_from_flattened_dict({key.replace("__", "."): v for key, v in keys.items()})
    return config


# --- One writer, one configuration


def test_a_workdir_has_one_writer(tmp_path):
    run = tmp_path / "new" / "run"
    held, taken = runs.only_writer(run), pytest.raises(UserError, match=f"at work in {run}")
    with held, runs.only_writer(tmp_path / "other"), taken, runs.only_writer(run):
        pass
    with runs.only_writer(run):  # The lock went with its holder.
        pass


def test_what_a_run_may_change(tmp_path):
    """Also before the first checkpoint, and where config.json is gone."""
    (tmp_path / "new").mkdir()
    runs.write_config(configure(8), tmp_path / "new")
    write_run(tmp_path / "saved", configure(8))
    (tmp_path / "saved" / "config.json").unlink()
    for run, cure in ((tmp_path / "new", "or delete"), (tmp_path / "saved", "--config.init_from=")):
        assert not runs.resumed(configure(8), run)[1]
        for key, value, asked, said in (
            ("model__depth", 3, True, rf"model.depth 2 -> 3.*{cure}"),
            ("optim__base_lr", 0.5, False, r"optim.base_lr 0.0005 -> 0.5.*changes=true"),
        ):
            config = configure(8, resume_with_changes=asked, **{key: value})
            refused(said, runs.resumed, config, run)
        config = configure(8, resume_with_changes=True, train__steps=9, data__threads=3)
        assert set(runs.resumed(config, run)[1]) == {"train.steps", "data.threads"}
    for text in (b"{", b"7", b"\xff"):
        (tmp_path / "new" / "config.json").write_bytes(text)
        refused("config.json cannot be read", runs.resumed, configure(8), tmp_path / "new")


# --- Weights to start from


def test_rows_of_another_head(tmp_path):
    """From a run, one of its steps, a file and a folder of Hugging Face."""
    params, path = write_run(tmp_path / "run", configure(12)), tmp_path / "rows.json"
    files.write(tmp_path / "a.safetensors", official(configure(12)))
    convert.translate(tmp_path / "run", tmp_path / "hub", "huggingface")
    config = configure(3, init_head_rows=str(path))
    like = abstract(config)

    def load(source, text):
        path.write_text(text)
        rows = initial.rows_to_load(config, Head(), Classes())
        return initial.params(str(tmp_path / source), like, rows)

    for source in ("run", "run/checkpoints/2", "a.safetensors", "hub"):
        loaded = load(source, "[7, 0, 11]")
        for leaf in ("bias", "kernel"):
            expected = params["head"][leaf][..., [7, 0, 11]]
            np.testing.assert_array_equal(loaded["head"][leaf], expected)
        assert not initial.missing(like, loaded)
        new = initial.rows_to_load(configure(12, init_head_rows="new"), Head(), Classes())
        source = str(tmp_path / source)
        assert "head" not in initial.params(source, params, new)
        refused("lacks head/bias, head/kernel", initial.params, source, like, whole=True)
        refused("^init_from=.*absent does not exist", initial.params, f"{source}/absent", like)
    refused("cannot be read", load, "run", "{")
    refused("data.num_classes=3", load, "run", "[1, 2]")
    refused("names row 12, but the head of .* has 12", load, "run", "[1, 2, 12]")


def test_fine_tuning_on_another_grid_interpolates_as_a_loaded_model_does(tmp_path, monkeypatch):
    """From a file, which knows nothing of its clips, and from a run."""
    pretraining, clip = recipe("videomae_k400", model={"tubelet": (2, 16, 16)}), video(8, 32, 32)
    params = write_run(tmp_path / "run", pretraining)
    files.write(tmp_path / "a.safetensors", official(pretraining))
    for source, grid in (("a.safetensors", (8, 14, 14)), ("run", (8, 2, 2))):
        config = recipe("everest_ucf101", "finetune,smoke", model={"tubelet": (2, 16, 16)})
        config.mask.name, config.init_from = "", str(tmp_path / source)
        config.data.num_frames = 8
        tied, _ = initial.resolved(config, tmp_path / "new")
        assert (tied.model.position_grid, config.model.position_grid) == (grid, (0, 0, 0))
        task = tasks.build(tied)
        loaded = initial.params(config.init_from, task.abstract, model=tied.model)
        model = nnx.merge(task.graphdef, {**random_params(task.abstract), **loaded})
        # Before its last norm an encoder of pre-training is that of the classifier.
        mine = np.asarray(jax.jit(model.features)(clip[None]))
        mine = (mine - mine.mean(-1, keepdims=True)) / np.sqrt(mine.var(-1, keepdims=True) + 1e-6)
        norm = params["encoder"]["norm"]
        theirs = mvm.load(tmp_path / source).embed(clip, tokens=True).reshape(1, -1, 64)
        np.testing.assert_allclose(mine * norm["scale"] + norm["bias"], theirs, atol=1e-4)
        # Evaluation of what was fine-tuned so, and a resumed run, are told the same.
        write_run(tmp_path / f"of {source}", tied)
        config.init_from = str(tmp_path / f"of {source}")
        assert initial.resolved(config, tmp_path / "new")[0].model.position_grid == grid
        config.init_from = str(tmp_path / source)  # That of the run; nobody reads it again.
        monkeypatch.setattr(runs, "Source", lambda *_: pytest.fail("read"))
        resumed, _ = initial.resolved(config, tmp_path / f"of {source}")
        monkeypatch.undo()
        assert resumed.model.position_grid == grid
        # On the grid of training nothing changes.
        config.init_from = str(tmp_path / source)
        config.data.update(num_frames=16, image_size=16 * grid[1])
        assert initial.resolved(config, tmp_path / "new")[0] == config


# --- Class names


def split_of(folder, *names, rows=("a.mp4 0", "b.mp4 1", "c.mp4 2")):
    folder.mkdir()
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    (folder / "list.txt").write_text("\n".join(rows))
    return str(folder / "list.txt")


def agreed(config, head=Head()):  # noqa: B008
    """The number and names of the classes, and the labels of every split."""
    splits = [split for split in ("train", "val", "test") if config.data[split]]
    config, found, classes = initial.records(config, splits, head)
    labels = ([record.label for record in found[split]] for split in splits)
    return config.data.num_classes, classes.names, *labels


def test_splits_follow_the_order_of_training(tmp_path, caplog):
    caplog.set_level(logging.INFO, "mvm")
    train = split_of(tmp_path / "train", "walk", "run", "jump")
    for name in ("jump", "run", "walk"):
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "test" / name / "x.mp4").touch()
    bare, test = split_of(tmp_path / "val"), str(tmp_path / "test")
    config = configure(data__train=train, data__val=bare, data__test=test)
    assert agreed(config) == (3, ("walk", "run", "jump"), [0, 1, 2], [0, 1, 2], [2, 1, 0])
    assert config.data.num_classes == 0
    assert f"{test}: labels in the order of {train}, by name" in caplog.text
    config.task = "pretrain"
    assert initial.records(config, ["train"], Head())[2] == Classes()
    # Numbers are counted over all splits.
    other = split_of(tmp_path / "b", rows=("x.mp4 6", "y.mp4 0"))
    assert agreed(configure(data__train=bare, data__test=other)) == (7, (), [0, 1, 2], [6, 0])
    assert agreed(configure(9, data__train=bare)) == (9, (), [0, 1, 2])


def test_an_evaluation_follows_the_model_and_a_head_is_taken_over_by_name(tmp_path):
    test = split_of(tmp_path / "test", "walk", "run", "jump")
    head = Head(Classes(("jump", "run", "walk"), "run/classes.txt"), 3)
    config = configure(evaluate=True, init_from="runs/one", data__test=test)
    assert agreed(config, head) == (3, ("jump", "run", "walk"), [2, 1, 0])
    bare = configure(evaluate=True, data__test=split_of(tmp_path / "bare"))
    assert agreed(bare, Head(num_classes=5)) == (5, (), [0, 1, 2])
    other = Head(Classes(("jump", "run", "Walk"), "run/classes.txt"), 3)
    with pytest.raises(DataError, match=r"than run/classes\.txt: class 'Walk' only in"):
        agreed(config, other)
    config.data.num_classes = 8
    refused(r"^init_from=runs/one has 3 classes, 8 wanted$", agreed, config, head)

    ours, theirs = Classes(("a", "b", "c"), "train"), Classes(("c", "a", "b"), "run")
    k400 = Classes(tuple(f"k{n}" for n in range(400)), "hub")
    for known, classes, rows in (
        (Head(theirs, 3), ours, [1, 2, 0]),
        (Head(ours, 3), ours, None),
        (Head(theirs, 3), Classes(), None),
        (Head(num_classes=3), ours, None),
        (Head(k400, 400), ours, []),  # A new head.
    ):
        assert initial.rows_to_load(configure(3), known, classes) == rows
    head = Head(Classes(("A", "b", "c"), "run"), 3)
    said = r"'A' only in run.*'a' only in train.*init_head_rows=new"
    refused(said, initial.rows_to_load, configure(3), head, ours)


def test_a_run_of_an_older_version_loads_without_what_its_mask_had(tmp_path):
    write_run(tmp_path / "run", recipe("everest_ucf101"))
    file = tmp_path / "run" / "config.json"
    file.write_text(file.read_text().replace('"mask": {', '"mask": {"decoder_mask": "cells",', 1))
    assert "decoder_mask" not in mvm.load(tmp_path / "run").config.mask
