"""How a run begins: rows of another model's head."""

import json

import jax
import numpy as np
import pytest
import torch_writer

from configs import common
from mvm import convert, start, tasks
from mvm.checkpoint import Checkpoints, Place
from mvm.types import UserError


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
    params = jax.jit(tasks.build(config).init)(jax.random.key(0))
    params["head"]["bias"] = np.arange(12, dtype=np.float32)
    checkpoints = Checkpoints(folder / "run", 1)
    config_dict = json.loads(config.to_json_best_effort())
    checkpoints.save(Place(3, 24, 0), {"params": params}, config_dict)
    checkpoints.close()
    start.write_config(config, checkpoints.workdir)
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
    loaded = start.initial_params(str(folder / where), task.abstract, start.head_rows(config))
    np.testing.assert_array_equal(loaded["head"]["bias"], [7, 0, 11])
    kernel = params["head"]["kernel"][:, [7, 0, 11]]
    np.testing.assert_array_equal(loaded["head"]["kernel"], kernel)
    assert not start.missing(task.abstract, loaded)
    rows = start.head_rows(configure(12, init_head_rows="new"))
    assert "head" not in start.initial_params(str(folder / where), params, rows)


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
        start.initial_params(str(twelve[0] / where), like, start.head_rows(config))
