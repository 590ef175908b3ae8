"""Classes of all splits and of the model that a run starts from are held against each other."""

import json

import pytest

from configs import common
from input_pipeline.sources.load import Classes
from input_pipeline.sources.records import DataError
from mvm import data, labels
from mvm.labels import Model
from mvm.types import UserError


def configure(task="finetune", num_classes=0, **sources):
    config = common.finish(common.get_config(), task)
    config.data.update(num_classes=num_classes, **{k: str(v) for k, v in sources.items()})
    return config


def source(folder, *names, rows=("a.mp4 0", "b.mp4 1", "c.mp4 2")):
    folder.mkdir()
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    (folder / "list.txt").write_text("\n".join(rows))
    return folder / "list.txt"


def agreed(config, model=Model()):  # noqa: B008
    """The number and names of the classes, and the labels of every split."""
    config, classes = labels.agree(config, model)
    d = config.data
    splits = [s for s in ("train", "val", "test") if d[s]]
    found = [
        [r.label for r in data.records(data.sources(d, s), d.num_classes, s, classes)]
        for s in splits
    ]
    return config.data.num_classes, classes.names, *found


def test_splits_follow_the_order_of_training(tmp_path, caplog):
    caplog.set_level("INFO", "mvm")
    train = source(tmp_path / "train", "walk", "run", "jump")
    for name in ("jump", "run", "walk"):
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "test" / name / "x.mp4").touch()
    bare = source(tmp_path / "val")
    config = configure(train=train, val=bare, test=tmp_path / "test")
    assert agreed(config) == (3, ("walk", "run", "jump"), [0, 1, 2], [0, 1, 2], [2, 1, 0])
    assert config.data.num_classes == 0
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == f"{tmp_path / 'test'}: labels in the order of {train}, by name"
    (tmp_path / "test/run").rename(tmp_path / "test/Run")
    for count in (0, 3):
        config.data.num_classes = count
        with pytest.raises(DataError) as error:
            agreed(config)
        assert f"class 'run' only in {train}" in str(error.value)
        assert f"class 'Run' only in {tmp_path / 'test'}" in str(error.value)
    assert labels.agree(configure("pretrain", train=train), Model())[1] == Classes()


def test_numbers_are_counted_over_all_splits(tmp_path):
    train, test = source(tmp_path / "a"), source(tmp_path / "b", rows=("x.mp4 6", "y.mp4 0"))
    assert agreed(configure(train=train, test=test)) == (7, (), [0, 1, 2], [6, 0])
    assert agreed(configure(train=train, num_classes=9)) == (9, (), [0, 1, 2])
    with pytest.raises(DataError, match=r"label 2 is outside 0\.\.1"):
        agreed(configure(train=train, num_classes=2))


def test_an_evaluation_follows_the_model(tmp_path):
    test = source(tmp_path / "test", "walk", "run", "jump")
    model = Model(Classes(("jump", "run", "walk"), "run/classes.txt"), 3)
    config = configure("evaluate", test=test, train=tmp_path / "absent")
    config.init_from = "runs/one"
    config.data.train = ""
    assert agreed(config, model) == (3, ("jump", "run", "walk"), [2, 1, 0])
    bare = configure("evaluate", test=source(tmp_path / "bare"))
    assert agreed(bare, Model(num_classes=5)) == (5, (), [0, 1, 2])
    other = Model(Classes(("jump", "run", "Walk"), "run/classes.txt"), 3)
    with pytest.raises(DataError, match=r"than run/classes\.txt: class 'Walk' only in"):
        agreed(config, other)
    config.data.num_classes = 8
    with pytest.raises(UserError, match=r"^init_from=runs/one has 3 classes, 8 wanted$"):
        agreed(config, model)


def test_a_head_is_taken_over_by_name():
    ours, model = Classes(("a", "b", "c"), "train"), Classes(("c", "a", "b"), "run")
    assert labels.head_rows(Model(model, 3), ours, 3) == [1, 2, 0]
    assert labels.head_rows(Model(ours, 3), ours, 3) is None
    assert labels.head_rows(Model(model, 3), Classes(), 3) is None
    assert labels.head_rows(Model(num_classes=3), ours, 3) is None
    k400 = Model(Classes(tuple(f"k{n}" for n in range(400)), "hub"), 400)
    assert labels.head_rows(k400, ours, 3) == []  # A new head.
    with pytest.raises(UserError) as error:
        labels.head_rows(Model(Classes(("A", "b", "c"), "run"), 3), ours, 3)
    for word in ("'A' only in run", "'a' only in train", "name them alike", "init_head_rows=new"):
        assert word in str(error.value)


def test_what_folders_say_of_their_classes(tmp_path):
    def write(config, names=None):
        (tmp_path / "config.json").write_text(json.dumps(config))
        if names:
            (tmp_path / "classes.txt").write_text("\n".join(names))
        return labels.of_model(str(tmp_path))

    (tmp_path / "model.safetensors").touch()
    id2label = {"1": "walk", "0": "run"}
    file = str(tmp_path / "config.json")
    assert write({"id2label": id2label}) == (Classes(("run", "walk"), file), 2)
    assert labels.of_model(str(tmp_path / "model.safetensors")).classes.names == ("run", "walk")
    assert write({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}) == (Classes((), file), 2)
    assert write({"id2label": id2label, "architectures": ["VideoMAEForPreTraining"]}) == Model()
    for bad in ([1], None):
        with pytest.raises(UserError, match=r"config.json cannot be read \(.*\); copy it again$"):
            write(bad)
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "checkpoints" / "3" / "_CHECKPOINT_METADATA").touch()
    assert write({"task": "finetune", "data": {}}).num_classes == 0
    run = {"task": "finetune", "data": {"num_classes": 2}}
    assert write(run).num_classes == 2
    file = str(tmp_path / "classes.txt")
    assert write(run, ["run", "walk"]) == (Classes(("run", "walk"), file), 2)
    assert write({**run, "task": "pretrain"}).num_classes == 0
    assert labels.of_model("") == labels.of_model(str(tmp_path / "absent.pth")) == Model()
