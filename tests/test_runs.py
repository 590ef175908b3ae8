"""What is in a run directory: its one writer, its configuration, its weights and class names."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch_writer

from configs import common
from input_pipeline.sources.load import Classes
from input_pipeline.sources.records import DataError
from mvm import data, labels, runs, sweep, tasks
from mvm.labels import Model
from mvm.runtime.checkpoint import Checkpoints, Place
from mvm.types import UserError
from mvm.weights import convert


def configure(num_classes=0, **keys):
    config = common.finish(common.get_config(), "finetune")
    config.mask.name = ""
    common.shrink(config)
    config.data.num_classes = num_classes
    config.update_from_flattened_dict({key.replace("__", "."): v for key, v in keys.items()})
    return config


# --- One writer, one configuration


def test_a_workdir_has_one_writer(tmp_path):
    run = tmp_path / "new" / "run"
    held, taken = runs.only_writer(run), pytest.raises(UserError, match=f"at work in {run}")
    with held, runs.only_writer(tmp_path / "other"), taken, runs.only_writer(run):
        pass
    child = "import sys, time; from mvm import runs\nwith runs.only_writer(sys.argv[1]):"
    child += " print(1, flush=True); time.sleep(600)"
    victim = subprocess.Popen([sys.executable, "-c", child, str(run)], stdout=subprocess.PIPE)
    assert victim.stdout.readline() == b"1\n"
    with pytest.raises(UserError, match="at work"), runs.only_writer(run):
        pass
    victim.kill()
    victim.communicate()
    with runs.only_writer(run):  # The lock went with its holder.
        pass
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        said = pytest.raises(UserError, match=rf"--workdir={folder} cannot be written")
        with said, runs.only_writer(folder):
            pass


@pytest.mark.parametrize("saved", [False, True])
def test_what_a_run_may_change(tmp_path, saved):
    """Also before the first checkpoint, and where config.json is gone."""
    begun = configure(8)
    runs.write_config(begun, tmp_path)
    if saved:
        checkpoints = Checkpoints(tmp_path, 1)
        params = {"encoder": {"embed": {"kernel": np.ones(1, np.float32)}}}
        checkpoints.save(Place(3, 24, 0), {"params": params}, json.loads(runs.to_json(begun)))
        checkpoints.close()
        (tmp_path / "config.json").unlink()
    assert not runs.check_config(configure(8), tmp_path)
    cure = "--config.init_from=" if saved else "or delete"
    for key, value, asked, said in (
        ("model__depth", 3, True, rf"model.depth 2 -> 3.*{cure}"),
        ("evaluate", True, True, r"evaluate False -> True"),
        ("optim__base_lr", 0.5, False, r"optim.base_lr 0.001 -> 0.5.*changes=true"),
        ("train__steps", 9, False, r"train.steps 2 -> 9"),
        ("train__steps", 9, True, ""),
        ("data__threads", 3, False, ""),
    ):
        config = configure(8, resume_with_changes=asked, **{key: value})
        if said:
            with pytest.raises(UserError, match=said):
                runs.check_config(config, tmp_path)
        else:
            assert list(runs.check_config(config, tmp_path)) == [key.replace("__", ".")]
    for text in ("{", "7", "\udcff"):
        (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(UserError, match=r"config.json cannot be read .* delete it$"):
            runs.check_config(configure(8), tmp_path)


# --- Weights to start from


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    """The same classifier of 12 classes as a run directory and as an official file."""
    folder, config = tmp_path_factory.mktemp("twelve"), configure(12)
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.normal(size=leaf.shape).astype("f4")  # noqa: E731
    params = jax.tree.map(draw, tasks.build(config).abstract)
    params["head"]["bias"] = np.arange(12, dtype=np.float32)
    checkpoints = Checkpoints(folder / "run", 1)
    checkpoints.save(Place(3, 24, 0), {"params": params}, json.loads(runs.to_json(config)))
    checkpoints.close()
    runs.write_config(config, checkpoints.workdir)
    weights = convert.from_params(params, (2, 8, 8))
    tensors = {key: torch_writer.dense(value) for key, value in weights.items()}
    torch_writer.save(folder / "checkpoint.pth", torch_writer.released(tensors))
    return folder, params


@pytest.mark.parametrize("where", ["run", "run/checkpoints/3", "checkpoint.pth"])
def test_rows_of_another_head(twelve, where, tmp_path):
    source, params = str(twelve[0] / where), twelve[1]
    path = tmp_path / "rows.json"
    config = configure(3, init_head_rows=str(path))
    like = tasks.build(config).abstract

    def load(text):
        path.write_text(text)
        rows = labels.head_rows(config, Model(), Classes())
        return runs.initial_params(source, like, rows)

    loaded = load("[7, 0, 11]")
    np.testing.assert_array_equal(loaded["head"]["bias"], [7, 0, 11])
    np.testing.assert_array_equal(loaded["head"]["kernel"], params["head"]["kernel"][:, [7, 0, 11]])
    assert not runs.missing(like, loaded)
    for text, said in (
        ("{", "cannot be read"),
        ("[1, 2]", "data.num_classes=3"),
        ('[1, 2, "a"]', "row numbers"),
        ("[1, 2, 12]", "names row 12"),
    ):
        with pytest.raises(UserError, match=said):
            load(text)
    new = labels.head_rows(configure(12, init_head_rows="new"), Model(), Classes())
    assert "head" not in runs.initial_params(source, params, new)
    with pytest.raises(UserError, match="lacks head/bias, head/kernel"):
        runs.initial_params(source, like, whole=True)
    with pytest.raises(UserError, match="absent does not exist"):
        runs.initial_params(f"{source}/absent", like)


# --- Class names


def split_of(folder, *names, rows=("a.mp4 0", "b.mp4 1", "c.mp4 2")):
    folder.mkdir()
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    (folder / "list.txt").write_text("\n".join(rows))
    return str(folder / "list.txt")


def agreed(config, model=Model()):  # noqa: B008
    """The number and names of the classes, and the labels of every split."""
    config, classes = labels.agree(config, model)
    d = config.data
    found = [
        [r.label for r in data.records(data.sources(d, s), d.num_classes, s, classes)]
        for s in ("train", "val", "test")
        if d[s]
    ]
    return d.num_classes, classes.names, *found


def test_splits_follow_the_order_of_training(tmp_path):
    train = split_of(tmp_path / "train", "walk", "run", "jump")
    for name in ("jump", "run", "walk"):
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "test" / name / "x.mp4").touch()
    bare, test = split_of(tmp_path / "val"), str(tmp_path / "test")
    config = configure(data__train=train, data__val=bare, data__test=test)
    assert agreed(config) == (3, ("walk", "run", "jump"), [0, 1, 2], [0, 1, 2], [2, 1, 0])
    assert config.data.num_classes == 0
    (tmp_path / "test/run").rename(tmp_path / "test/Run")
    for count in (0, 3):
        config.data.num_classes = count
        with pytest.raises(DataError, match=rf"'run' only in {train}.*'Run' only in {test}"):
            agreed(config)
    config.task = "pretrain"
    assert labels.agree(config, Model())[1] == Classes()
    # Numbers are counted over all splits.
    other = split_of(tmp_path / "b", rows=("x.mp4 6", "y.mp4 0"))
    assert agreed(configure(data__train=bare, data__test=other)) == (7, (), [0, 1, 2], [6, 0])
    assert agreed(configure(9, data__train=bare)) == (9, (), [0, 1, 2])
    with pytest.raises(DataError, match=r"label 2 is outside 0\.\.1"):
        agreed(configure(2, data__train=bare))


def test_an_evaluation_follows_the_model(tmp_path):
    test = split_of(tmp_path / "test", "walk", "run", "jump")
    model = Model(Classes(("jump", "run", "walk"), "run/classes.txt"), 3)
    config = configure(evaluate=True, init_from="runs/one", data__test=test)
    assert agreed(config, model) == (3, ("jump", "run", "walk"), [2, 1, 0])
    bare = configure(evaluate=True, data__test=split_of(tmp_path / "bare"))
    assert agreed(bare, Model(num_classes=5)) == (5, (), [0, 1, 2])
    other = Model(Classes(("jump", "run", "Walk"), "run/classes.txt"), 3)
    with pytest.raises(DataError, match=r"than run/classes\.txt: class 'Walk' only in"):
        agreed(config, other)
    config.data.num_classes = 8
    with pytest.raises(UserError, match=r"^init_from=runs/one has 3 classes, 8 wanted$"):
        agreed(config, model)


def test_a_head_is_taken_over_by_name():
    ours, model = Classes(("a", "b", "c"), "train"), Classes(("c", "a", "b"), "run")
    k400 = Classes(tuple(f"k{n}" for n in range(400)), "hub")
    for known, classes, rows in (
        (Model(model, 3), ours, [1, 2, 0]),
        (Model(ours, 3), ours, None),
        (Model(model, 3), Classes(), None),
        (Model(num_classes=3), ours, None),
        (Model(k400, 400), ours, []),  # A new head.
    ):
        assert labels.head_rows(configure(3), known, classes) == rows
    with pytest.raises(UserError, match=r"'A' only in run.*'a' only in train.*init_head_rows=new"):
        labels.head_rows(configure(3), Model(Classes(("A", "b", "c"), "run"), 3), ours)


def test_what_folders_say_of_their_classes(tmp_path):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"1": "walk", "0": "run"}}))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        found = labels.of_model(str(path))
        assert found == (Classes(("run", "walk"), str(tmp_path / "config.json")), 2)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    config = {"task": "finetune", "data": {"num_classes": 2}}
    (run / "config.json").write_text(json.dumps(config))
    assert labels.of_model(str(run)).num_classes == 2
    (run / "classes.txt").write_text("run\nwalk")
    assert labels.of_model(str(run)) == (Classes(("run", "walk"), str(run / "classes.txt")), 2)
    (run / "config.json").write_text(json.dumps({**config, "task": "pretrain"}))
    assert labels.of_model(str(run)) == (Classes(), 0)
    assert labels.of_model("") == labels.of_model(str(tmp_path / "absent.pth")) == Model()


def test_a_run_that_other_videos_are_asked_of_keeps_its_own(tmp_path):
    runs.write_config(configure(8, synthetic__num_pretrain=48, synthetic__num_train=8), tmp_path)
    (tmp_path / "data").mkdir()
    config = configure(synthetic__num_pretrain=40, synthetic__num_train=8)
    with pytest.raises(UserError, match=r"synthetic.num_pretrain 48 -> 40"):
        sweep.run_task(config, tmp_path)
    assert not list((tmp_path / "data").iterdir())
