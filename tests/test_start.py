"""How a run begins: rows of another model's head."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch_writer

from configs import common
from mvm import runs as workdirs
from mvm import sweep as stages
from mvm import tasks
from mvm.runtime.checkpoint import Checkpoints, Place
from mvm.types import UserError
from mvm.weights import convert


def configure(num_classes: int, **keys):
    c = common.get_config()
    c.task, c.mask.name = "finetune", ""
    common.shrink(c)
    c.data.num_classes = num_classes
    c.update(keys)
    return c


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    """The same classifier of 12 classes as a run directory and as an official file."""
    folder = tmp_path_factory.mktemp("twelve")
    config = configure(12)
    params = jax.jit(tasks.build(config).init)(jax.random.key(0))[0]
    params["head"]["bias"] = np.arange(12, dtype=np.float32)
    checkpoints = Checkpoints(folder / "run", 1)
    config_dict = json.loads(config.to_json_best_effort())
    checkpoints.save(Place(3, 24, 0), {"params": params}, config_dict)
    checkpoints.close()
    workdirs.write_config(config, checkpoints.workdir)
    weights = convert.from_params(jax.device_get(params), (2, 8, 8))
    torch_writer.save(
        folder / "checkpoint.pth",
        torch_writer.released({k: torch_writer.dense(v) for k, v in weights.items()}),
    )
    return folder, jax.device_get(params)


@pytest.mark.parametrize("where", ["run", "run/checkpoints/3", "checkpoint.pth"])
def test_rows_of_another_head(twelve, where):
    folder, params = twelve
    (folder / "rows.json").write_text("[7, 0, 11]")
    config = configure(3, init_head_rows=str(folder / "rows.json"))
    task = tasks.build(config)
    loaded = workdirs.initial_params(str(folder / where), task.abstract, workdirs.head_rows(config))
    np.testing.assert_array_equal(loaded["head"]["bias"], [7, 0, 11])
    kernel = params["head"]["kernel"][:, [7, 0, 11]]
    np.testing.assert_array_equal(loaded["head"]["kernel"], kernel)
    assert not workdirs.missing(task.abstract, loaded)
    rows = workdirs.head_rows(configure(12, init_head_rows="new"))
    assert "head" not in workdirs.initial_params(str(folder / where), params, rows)


@pytest.mark.parametrize("where", ["run", "run/checkpoints/3", "checkpoint.pth"])
def test_a_head_of_other_classes_is_counted(twelve, where):
    like = tasks.build(configure(5)).abstract
    with pytest.raises(UserError, match="has 12 classes, 5 wanted"):
        workdirs.initial_params(str(twelve[0] / where), like, whole=True)


def test_a_workdir_has_one_writer(tmp_path):
    run = tmp_path / "new" / "run"
    held, taken = workdirs.only_writer(run), pytest.raises(UserError, match=f"at work in {run}")
    with held, workdirs.only_writer(tmp_path / "other"), taken, workdirs.only_writer(run):
        pass
    child = "import sys, time; from mvm import runs\nwith runs.only_writer(sys.argv[1]):"
    child += " print(1, flush=True); time.sleep(600)"
    victim = subprocess.Popen([sys.executable, "-c", child, str(run)], stdout=subprocess.PIPE)
    assert victim.stdout.readline() == b"1\n"
    with pytest.raises(UserError, match="at work"), workdirs.only_writer(run):
        pass
    victim.kill()
    victim.communicate()
    with workdirs.only_writer(run):  # The lock went with its holder.
        pass


def test_a_workdir_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run", "/proc/nowhere"):
        said = pytest.raises(UserError, match=rf"--workdir={folder} cannot be written \(.+\)$")
        with said, workdirs.only_writer(folder):
            pass


@pytest.mark.parametrize(
    ("key", "value", "asked", "said"),
    [
        ("model.depth", 3, True, r"another configuration \(model.depth 2 -> 3\).*or delete"),
        ("evaluate", True, True, r"evaluate False -> True"),
        ("optim.base_lr", 0.5, False, r"other values \(optim.base_lr 0.001 -> 0.5\).*changes=true"),
        ("train.steps", 9, False, r"train.steps 2 -> 9"),
        ("train.steps", 9, True, ""),
        ("data.threads", 3, False, ""),
    ],
)
def test_what_a_run_may_change(tmp_path, key, value, asked, said):
    """Also before the first checkpoint."""
    workdirs.write_config(configure(8), tmp_path)
    before = (tmp_path / "config.json").read_text()
    config = configure(8, resume_with_changes=asked)
    config.update_from_flattened_dict({key: value})
    if said:
        with pytest.raises(UserError, match=said):
            workdirs.check_config(config, tmp_path)
    else:
        (change,) = workdirs.check_config(config, tmp_path)
        assert change.startswith(key)
    assert (tmp_path / "config.json").read_text() == before


def test_a_run_without_its_config_is_held_against_that_of_its_newest_step(twelve):
    path = twelve[0] / "run" / "config.json"
    hidden = path.rename(path.with_suffix(".hidden"))
    with pytest.raises(UserError, match=r"another configuration \(data.num_classes 12 -> 8\)"):
        workdirs.check_config(configure(8), twelve[0] / "run")
    assert not workdirs.check_config(configure(12), twelve[0] / "run")
    hidden.rename(path)


def test_a_run_that_other_videos_are_asked_of_keeps_its_own(tmp_path):
    config = configure(0, synthetic={"num_pretrain": 40, "num_train": 8})
    begun = configure(8, synthetic={"num_pretrain": 48, "num_train": 8})
    workdirs.write_config(begun, tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match=r"\(synthetic.num_pretrain 48 -> 40\)"):
        stages.run_task(config, tmp_path)
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("text", ["{", "7", "\udcff"])
def test_a_broken_config_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"config.json cannot be read .*; delete it$"):
        workdirs.check_config(configure(8), tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[1, 2]", "data.num_classes=3"),
        ('[1, 2, "a"]', "row numbers"),
        ("[1, 2, 12]", "names row 12"),
    ],
)
@pytest.mark.parametrize("where", ["run", "checkpoint.pth"])
def test_wrong_rows(twelve, tmp_path, where, text, said):
    path = tmp_path / "rows.json"
    if text is not None:
        path.write_text(text)
    config = configure(3, init_head_rows=str(path))
    like = tasks.build(config).abstract
    with pytest.raises(UserError, match=said):
        workdirs.initial_params(str(twelve[0] / where), like, workdirs.head_rows(config))
