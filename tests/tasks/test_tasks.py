"""What every task promises, found by its file: two steps, saved, restored, scored."""

import pathlib
import re
import runpy

import jax
import numpy as np
import optax
import pytest
import tiny
from models_on_disk import refused

from benchmarks.step import random_batch
from configs import common
from input_pipeline.segments import Video
from input_pipeline.sources.boxes import KeyFrame
from input_pipeline.sources.records import Record
from mvm import step, tasks, train
from mvm.runtime import sharding
from mvm.runtime.checkpoint import Checkpoints, Progress, load_params


def config_of(name):
    c = common.get_config()
    common.shrink(c)
    c.task = name
    if tasks.spec(name).labels:
        c.mask.name = ""
    if "columns" in dict(tasks.spec(name).options):
        c.options = common.Config({"columns": 16, "length": 64, "attention": 5})
    elif tasks.build(c).frozen:  # As on an accelerator, where frozen weights have its dtype.
        c.model.dtype = "bfloat16"
    return c


def batch_of(config, seed=0):
    """A batch as the pipeline gives it."""
    rng = np.random.default_rng(seed)
    if "columns" in config.options:
        start = rng.uniform(0, 30, (8, 2)).astype(np.float32)
        classes = rng.integers(-1, config.data.num_classes, (8, 2))
        return {
            "video": rng.normal(size=(8, 64, 16)).astype(np.float32),
            "length": np.full(8, 60, np.int32),
            "segments": np.stack([start, start + 6, classes], axis=-1, dtype=np.float32),
            "skipped": np.zeros(8, np.int32),
        }
    batch = random_batch(config, rng) | {"label": np.arange(8) % config.data.num_classes}
    if config.task == "detect":
        batch["boxes"] = np.tile(np.array([[2, 3, 20, 30]], np.float32), (8, 1, 1))
        rows = np.eye(config.data.num_classes, dtype=np.uint8)
        batch["box_label"] = rows[batch["label"]][:, None]
        batch["box_valid"] = np.ones((8, 1), bool)
    return batch


def truths_of(config):
    """What is known of that batch, as `evaluate` says it."""
    batch, records = batch_of(config), []
    if config.task == "detect":
        for own in batch["label"]:
            people, truth = (np.array([[0.1, 0.1, 0.6, 0.9, last]]) for last in (1, own + 1))
            frame = KeyFrame(1.0, (32, 32), truth, people, 1)
            records.append(Record(f"{len(records)},0001", "", -1, truth=frame))
    label, names = np.arange(8) % config.data.num_classes, [f"{i}.mp4" for i in range(8)]
    if config.task == "localise":
        videos = [Video(7.5, 2.0, 9.0, ((1.0, 2.0, c),)) for c in label.tolist()]
        records = [Record(n, n, 0, truth=video) for n, video in zip(names, videos)]
    return tasks.Truths(label, names, (), np.arange(8), records)


@pytest.fixture(scope="module", params=[n for n in tasks.names() if tasks.command(n) is None])
def ran(request, tmp_path_factory):
    """A task after two steps, from restored weights the second, and what it went through."""
    config, mesh = config_of(request.param), sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        task = tasks.build(config)
        program = step.jitted(task, optax.sgd(0.1), tiny.SCHEDULE, mesh)
        state = program.init()
        before = jax.device_get(state)
        rows = []
        checkpoints = Checkpoints(tmp_path_factory.mktemp(request.param), 2)
        for number in (1, 2):
            state, metrics = program.step(state, sharding.put(batch_of(config, number), mesh))
            rows.append(jax.device_get(metrics))
            checkpoints.save(Progress(number, 8 * number, 0), state, {"task": config.task})
            checkpoints.wait()
            saved = jax.device_get(state)
            _, state = checkpoints.restore(program.state)
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), saved)
        checkpoints.close()
    return config, task, before, state, rows, checkpoints.workdir


def test_it_learns_what_it_trains_leaves_what_is_frozen_and_is_saved(ran):
    _, task, before, state, rows, workdir = ran
    for row in rows:
        assert all(np.isfinite(value).all() for value in row.values())
        assert row["grad_norm"] > 0
    after = jax.device_get(state)
    assert set(before["params"]) | set(before.get("frozen", ())) == set(task.abstract)
    assert set(before.get("frozen", ())) == set(task.frozen) & set(task.abstract)
    if type(task).updated is tasks.Task.updated:
        jax.tree.map(np.testing.assert_array_equal, after.get("frozen"), before.get("frozen"))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), after["params"], before["params"])
    assert not all(jax.tree.leaves(same))
    assert set(task.untrained) <= set(task.macs()) == set(task.macs(executed=True))
    loaded, *_ = load_params(workdir, task.abstract)
    trained, frozen = step.weights(after)
    jax.tree.map(np.testing.assert_array_equal, loaded, {**trained, **frozen})


def test_it_scores_what_it_predicts(ran):
    config, task, _, state, _, _ = ran
    params, frozen = step.weights(state)
    batch = batch_of(config)
    batch = {name: batch[name] for name in ("video", "boxes", "length") if name in batch}
    if "length" not in batch:
        batch["video"] = batch["video"][:, None]
    batch |= {"box_score": np.ones((8, 1), np.float32)} if "boxes" in batch else {}
    rows = jax.device_get(jax.jit(task.predict)(params, frozen, batch))
    assert {len(row) for row in rows.values()} == {8}
    scores = task.score(rows, truths_of(config))
    assert set(task.spec.scores) <= set(scores.values)
    assert all(np.isfinite(value) for value in scores.values.values())
    assert all(len(row) == len(table[0]) for table in scores.tables.values() for row in table)


def test_the_task_of_the_guide_works_as_pasted_in_a_package_of_ones_own(tmp_path, monkeypatch):
    guide = pathlib.Path(__file__).parents[2] / "docs" / "tasks.md"
    blocks = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", guide.read_text(), re.S))
    assert set(blocks) == {"my_tasks/rotate.py", "configs/rotate_ucf101.py"}
    for path, text in blocks.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    refused(r"^task=my_tasks.rotate is a module .* not imported", tasks.spec, "my_tasks.rotate")
    monkeypatch.syspath_prepend(tmp_path)
    recipe = runpy.run_path(str(tmp_path / "configs" / "rotate_ucf101.py"))["get_config"]
    tuned, mesh = recipe("finetune"), sharding.make_mesh()
    assert (tuned.name, tuned.init_from) == ("rotate_ucf101_finetune", f"runs/{recipe().name}")
    config = recipe("smoke")
    for name, value, said in (
        ("turn", 2, "^options.turn: task my_tasks.rotate has none; did you mean 'turns'"),
        ("turns", "two", r"options.turns='two'; .* give one like 4"),
    ):
        config.options = common.Config({name: value})
        refused(said, tasks.check, config)
    config.options = common.Config({"turns": 2})
    assert tasks.build(config).num_turns == 2
    with jax.set_mesh(mesh):
        program = train.build_step(config, tiny.SCHEDULE, mesh)
        _, metrics = jax.eval_shape(program.step, program.state, batch_of(config))
    assert {"loss", "accuracy", "grad_norm"} <= set(metrics)
