"""Whole runs on real video files: train, stop, resume, fine-tune, evaluate, look."""

import csv
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tiny import configure

from configs import videomae_ucf101
from input_pipeline.sources.records import DataError
from mvm import data, figures, runs, tasks, train
from mvm import sweep as stages
from mvm.figures import gallery
from mvm.runtime import checkpoint
from mvm.types import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent


def rows(workdir):
    return (workdir / "metrics.jsonl").read_text().splitlines()


def final_state(workdir):
    """Digests of every leaf of the newest checkpoint."""
    step = checkpoint.steps_in(workdir)[0]
    return step, json.loads(
        (workdir / "checkpoints" / str(step) / "leaves" / "metadata").read_text()
    )


def test_a_run_directory_is_all_there_is(pretrained):
    for name in ("config.json", "metrics.jsonl", "report.html", "figures/overview.png"):
        assert (pretrained / name).stat().st_size > 0
    assert [json.loads(row)["step"] for row in rows(pretrained)] == [1, 2, 3, 4, 5, 6]
    assert checkpoint.steps_in(pretrained) == [6, 4]


class Killed(BaseException):
    pass


def test_interrupted_equals_uninterrupted_bit_for_bit(shapes, pretrained, tmp_path, monkeypatch):
    """Dies between two checkpoints; the same command then goes on as if nothing had been."""
    feed = data.train_batches

    def dying(*args, start, **options):
        for step, batch in enumerate(feed(*args, start=start, **options)):
            if start == 0 and step == 5:
                raise Killed
            yield batch

    monkeypatch.setattr(data, "train_batches", dying)
    config = configure(shapes)
    with pytest.raises(Killed):
        stages.run_task(config, tmp_path)
    assert checkpoint.steps_in(tmp_path)[0] in (2, 4)
    stages.run_task(config, tmp_path)
    assert rows(tmp_path) == rows(pretrained)
    assert final_state(tmp_path) == final_state(pretrained)


@pytest.mark.slow
def test_steps_and_validation_compile_once_and_saves_at_the_first(shapes, tmp_path, monkeypatch):
    """Steps 1 to 6, validated after each, saved after each second."""
    compiled, until = [], []  # Names of programs; how many there were when a batch was asked for.

    def heard(event, seconds, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(about["fun_name"])

    feed = data.train_batches

    def counting(*args, **options):
        for batch in feed(*args, **options):
            until.append(len(compiled))
            yield batch

    monkeypatch.setattr(data, "train_batches", counting)
    jax.clear_caches()  # What other tests have compiled.
    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        config = configure(shapes, "finetune,smoke", val_every=1)
        config.data.test = ""
        stages.run_task(config, tmp_path)
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    assert checkpoint.steps_in(tmp_path) == [6, 4]
    first, second, later = (
        compiled[a:b] for a, b in (until[:2], until[1:3], (until[2], until[-1]))
    )
    assert {"jit(step)", "jit(predict)"} <= set(first)
    # Orbax has each device write its part of an array that all hold.
    assert set(second) <= {"jit(slice)"}
    assert later == []


def flip_byte(step_dir):
    """Changes one byte in the middle of the largest file of a checkpoint's state."""
    files = [p for p in (step_dir / "state").rglob("*") if p.is_file()]
    file = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def test_a_flipped_byte_costs_one_checkpoint(shapes, pretrained, tmp_path, caplog):
    shutil.copytree(pretrained, tmp_path, dirs_exist_ok=True)
    flip_byte(tmp_path / "checkpoints" / "6")
    caplog.set_level("INFO")
    stages.run_task(configure(shapes), tmp_path)
    assert any("checkpoint 6" in r.message and "damaged" in r.message for r in caplog.records)
    assert any("resuming from step 4" in r.message for r in caplog.records)
    assert (tmp_path / "damaged" / "6").exists()
    assert rows(tmp_path) == rows(pretrained)


def test_finetune_and_evaluate(shapes, finetuned, evaluated):
    results = json.loads((finetuned / "results.json").read_text())
    assert (results["num_videos"], results["num_unreadable"]) == (19, 0)
    # What turns the run into a file that others read keeps its names.
    assert (finetuned / "classes.txt").read_text() == (shapes / "classes.txt").read_text()
    # The fine-tuned run evaluated alone gives the same scores, from its run directory.
    for name in ("results.json", "predictions.csv", "per_class.csv"):
        assert (evaluated / name).read_text() == (finetuned / name).read_text()
    before = (finetuned / "config.json").read_text()
    alone = configure(shapes, "evaluate,smoke")
    alone.init_from = str(finetuned)
    with pytest.raises(UserError, match="another configuration"):
        stages.run_task(alone, finetuned)
    assert (finetuned / "config.json").read_text() == before
    with (evaluated / "predictions.csv").open() as file:
        videos = [row["video"] for row in csv.DictReader(file)]
    assert len(videos) == len(set(videos)) == 19


@pytest.mark.slow
def test_paths_may_be_relative(shapes, tmp_path, monkeypatch):
    """As with the default workdir, runs/<name>, and what the next recipe starts from."""
    monkeypatch.chdir(tmp_path)
    stages.run_task(configure(shapes), "runs/first")
    config = configure(shapes, "finetune,smoke")
    config.data.test = config.data.val = ""
    config.init_from = "runs/first"
    stages.run_task(config, "runs/second")
    assert checkpoint.steps_in("runs/first")[0] == checkpoint.steps_in("runs/second")[0] == 6
    stages.run_task(config, "runs/second")


def test_finetuning_starts_from_the_pretrained_encoder(shapes, pretrained):
    config = configure(shapes, "finetune,smoke")
    task = tasks.build(config)
    loaded = runs.initial_params(str(pretrained), task.abstract)
    assert runs.missing(task.abstract, loaded) == [
        "fc_norm/bias",
        "fc_norm/scale",
        "head/bias",
        "head/kernel",
    ]


def test_mixup_recipe_trains_and_figures_cannot_fail_it(shapes, tmp_path, monkeypatch, caplog):
    config = configure(shapes, "finetune,smoke", videomae_ucf101, ema_decay=0.5)
    config.data.test = config.data.val = ""
    drawn = []

    def draw(folder, task, params, found, seed):
        drawn.append(params)
        raise OSError("no font\nat all")

    monkeypatch.setattr(gallery, "draw_clips", draw)
    last = stages.run_task(config, tmp_path)
    assert np.isfinite(last["loss"])
    assert "figures are not complete (no font)" in caplog.text
    assert (tmp_path / "report.html").exists()
    # They show the weights that are scored.
    scored, _ = checkpoint.load_params(tmp_path, drawn[0])
    np.testing.assert_array_equal(drawn[0]["head"]["kernel"], scored["head"]["kernel"])


def test_unreadable_videos_are_listed_and_never_replaced(shapes, pretrained, tmp_path):
    lines = (shapes / "test.txt").read_text().splitlines()
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    listed = [f"{shapes}/{line}" for line in lines] + ["text.mp4 0", "empty.mp4 1", "gone.mp4 2"]
    (tmp_path / "test.txt").write_text("\n".join(listed))
    config = configure(shapes, "finetune,smoke")
    config.init_from = str(pretrained)
    config.data.test = str(tmp_path / "test.txt")
    stages.run_task(config, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["num_videos"], results["num_unreadable"]) == (19, 3)
    assert {pathlib.Path(u["id"]).name for u in results["unreadable"]} == {
        "text.mp4",
        "empty.mp4",
        "gone.mp4",
    }


def with_one_bad(shapes, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    good = (shapes / "pretrain.txt").read_text().splitlines()
    listed = [f"{shapes}/{line}" for line in good] + [f"{name} 0"]
    (tmp_path / "train.txt").write_text("\n".join(listed))
    return str(tmp_path / "train.txt")


def test_bad_training_videos_are_replaced_counted_and_named(shapes, tmp_path, caplog):
    config = configure(shapes)
    config.data.train = with_one_bad(shapes, tmp_path, "broken.mp4", b"not a video")
    config.data.max_bad_fraction = 0.1
    last = stages.run_task(config, tmp_path / "run")
    assert last["skipped"] == 1  # 48 clips of 41 records: one pass and a little.
    assert any("broken.mp4" in r.message for r in caplog.records)


def without_data(config, folder):
    config.data.train = config.data.fetch = ""
    config.synthetic.num_pretrain = 0


MISTAKES = [  # A change, and what the line names.
    (without_data, "--config.data.train="),
    (lambda c, tmp: c.data.update(train="nowhere.txt"), "data.train=nowhere.txt"),
    (lambda c, tmp: c.data.update(train=str(tmp / "empty.txt")), "empty.txt"),
    (lambda c, tmp: c.data.update(train=str(tmp / "bad.txt")), "text.mp4"),
    (lambda c, tmp: c.train.update(batch_size=9), "batch_size=9"),
    (lambda c, tmp: c.train.update(batch_size=64), "the 40 training records"),
    (lambda c, tmp: c.train.update(profile="9:7"), "train.profile='9:7'"),
    (lambda c, tmp: c.model.update(size="XXL"), "model.size='XXL'"),
    (lambda c, tmp: c.mask.update(name="everst"), "did you mean 'everest'"),
    (lambda c, tmp: c.data.update(image_size=33), "33x33 px"),
    (lambda c, tmp: setattr(c, "init_from", "runs/none"), "init_from=runs/none"),
    (lambda c, tmp: c.train.update(fsdp=3), "train.fsdp=3"),
    (lambda c, tmp: c.data.update(rand_augment="rand-x"), "rand-x"),
]


def test_a_mistake_is_one_line_before_any_work(shapes, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "bad.txt").write_text("text.mp4 0\n" * 8)
    for change, named in MISTAKES:
        config = configure(shapes)
        change(config, tmp_path)
        with pytest.raises((UserError, DataError), match=re.escape(named)) as caught:
            stages.run_task(config, tmp_path / "run")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run" / "checkpoints").exists()
        assert not (tmp_path / "run" / "config.json").exists()


def test_what_is_missing_is_named_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "fetch", lambda *_: pytest.fail("fetched"))
    for changes, named in (
        ({"init_from": "runs/none"}, "init_from=runs/none"),
        ({"init_from": "", "data": {"val": "gone.txt"}}, "data.val=gone.txt"),
    ):
        config = videomae_ucf101.get_config("finetune")
        config.update(changes)
        with pytest.raises(UserError, match=named):
            stages.run_task(config, tmp_path)


def test_label_out_of_range_names_file_and_line(shapes, tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4 0\nb.mp4 99\n")
    config = configure(shapes, "finetune,smoke")
    config.data.train = str(tmp_path / "list.txt")
    with pytest.raises(DataError, match=r"list\.txt.*99"):
        stages.run_task(config, tmp_path / "run")


def test_a_checkpoint_of_another_model_is_named(shapes, pretrained, tmp_path):
    config = configure(shapes)
    config.model.width = 96
    with pytest.raises(UserError, match=r"another configuration \(model.width 48 -> 96\)"):
        stages.run_task(config, pretrained)
    config = configure(shapes, "finetune,smoke")
    config.model.depth = 3
    config.init_from = str(pretrained)
    with pytest.raises(UserError, match="another model"):
        stages.run_task(config, tmp_path / "run")


def test_a_finished_run_from_before_a_key_repeats_as_nothing(shapes, pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    old = json.loads(path.read_text())
    del old["model"]["layer_scale"]
    path.write_text(json.dumps(old))
    stages.run_task(configure(shapes), tmp_path / "run")
    assert rows(tmp_path / "run") == rows(pretrained)


def test_a_run_goes_on_with_changes_that_were_asked_for(shapes, pretrained, tmp_path, caplog):
    """A longer schedule, a lower rate, another batch size, an edited list: first not, then so."""
    run = shutil.copytree(pretrained, tmp_path / "run")
    names = (shapes / "pretrain.txt").read_text().splitlines()
    (tmp_path / "edited.txt").write_text("\n".join(f"{name} 0" for name in names[:-1]))
    config = configure(shapes)
    config.data.root = str(shapes)
    config.data.train = str(tmp_path / "edited.txt")
    with pytest.raises(UserError, match=r"another list \(records .* 40 \(.*\) -> 39 \("):
        stages.run_task(config, run)
    config.train.update(steps=8, batch_size=16)
    config.optim.base_lr /= 2
    with pytest.raises(UserError, match=r"begun with other values \(optim.base_lr 0.*steps 6 -> 8"):
        stages.run_task(config, run)
    assert rows(run) == rows(pretrained)
    config.resume_with_changes = True
    stages.run_task(config, run)
    (line,) = (r.message for r in caplog.records if "RESUMING WITH CHANGES" in r.message)
    for change in (
        "base_lr 0.",
        "steps 6 -> 8",
        "batch_size 8 -> 16",
        "data.train 40 (",
        "-> 39 (",
    ):
        assert change in line
    assert rows(run)[:6] == rows(pretrained)
    assert [json.loads(row)["step"] for row in rows(run)[6:]] == [7, 8]
    place = json.loads((run / "checkpoints" / "8" / "data" / "metadata").read_text())
    assert (place["step"], place["next_index"]) == (8, 6 * 8 + 2 * 16)


def test_after_another_batch_size_epochs_are_counted_in_records(shapes, pretrained, tmp_path):
    """48 records of 2.4 epochs of 40 were used in steps of 8."""
    run = shutil.copytree(pretrained, tmp_path / "run")
    config = configure(shapes, epochs=1.2, batch_size=16)
    config.train.steps, config.resume_with_changes = 0, True
    with pytest.raises(
        UserError, match=r"at step 6, 1\.5 epochs of this list.* end at step 5; set"
    ):
        stages.run_task(config, run)
    config.train.epochs = 2.4
    stages.run_task(config, run)
    found = [json.loads(row) for row in rows(run)]
    assert [row["step"] for row in found[6:]] == [7, 8]  # 5 steps of 16 are 2.4 epochs.
    place = json.loads((run / "checkpoints" / "8" / "data" / "metadata").read_text())
    assert (place["step"], place["next_index"]) == (8, 6 * 8 + 2 * 16)
    schedule = train.planned(config, 40).schedule  # Of whose 5 steps 3 are behind.
    rates = [schedule(3), schedule(4)]
    np.testing.assert_allclose([row["learning_rate"] for row in found[6:]], rates, rtol=1e-6)
    stages.run_task(config, run)  # Finished: nothing more.
    assert rows(run) == [json.dumps(row) for row in found]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(shapes, pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path, dirs_exist_ok=True)
    config = configure(shapes)
    config.optim.base_lr = 1e12
    config.train.steps = 30
    config.resume_with_changes = True
    with pytest.raises(UserError, match=r"step \d+: loss .* last good checkpoint is \d+") as said:
        stages.run_task(config, tmp_path)
    assert "--config.optim.base_lr" in str(said.value)
    assert "--config.resume_with_changes=true" in str(said.value)
    like = checkpoint.leaves  # Every checkpoint that is left holds finite numbers.
    for step in checkpoint.steps_in(tmp_path):
        manager = checkpoint.Checkpoints(tmp_path, 2).manager
        state = manager.restore(step)["state"]
        assert all(np.isfinite(x).all() for x in like(state["params"]).values())
    good = checkpoint.steps_in(tmp_path)[0]
    config.optim.update(base_lr=1e-6, clip_norm=1.0)  # As the message says.
    stages.run_task(config, tmp_path)
    assert [json.loads(row)["step"] for row in rows(tmp_path)] == list(range(1, 31))
    assert good < 30 == checkpoint.steps_in(tmp_path)[0]


@pytest.mark.slow
def test_stages_compare_arms(shapes, tmp_path):
    config = configure(shapes)
    config.data.test = str(shapes / "test.txt")
    config.unlock()
    config.stages = {
        "pretrain": {},
        "everest_seed0": {
            "task": "finetune",
            "init_from": "pretrain",
            "arm": "everest",
            "mask": {"keep_ratio": 0.6, "mask_ratio": 0.4},
            "data": {"train": str(shapes / "train.txt")},
        },
    }
    stages.run(config, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary["accuracies"]) == ["everest"]
    assert (tmp_path / "figures" / "accuracies.png").exists()
    before = (tmp_path / "everest_seed0" / "metrics.jsonl").stat().st_mtime_ns
    stages.run(config, tmp_path)
    assert (tmp_path / "everest_seed0" / "metrics.jsonl").stat().st_mtime_ns == before


def test_figures_cannot_fail_a_comparison(shapes, tmp_path, monkeypatch, caplog):
    ran = []

    def run_task(config, workdir):
        ran.append(config)
        begun = config.copy_and_resolve_references()
        begun.data.num_classes, begun.model.position_grid = 8, (8, 4, 4)
        runs.write_config(begun, workdir)
        return {"test_top1": 50.0}

    def accuracies(*_):
        raise OSError("no font")

    monkeypatch.setattr(stages, "run_task", run_task)
    monkeypatch.setattr(figures, "accuracies", accuracies)
    config = configure(shapes).unlock()
    config.stages = {"tube": {"task": "finetune"}}
    (tmp_path / "tube").mkdir()
    stages.run(config, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["accuracies"] == {"tube": [50.0]}
    stages.run(config, tmp_path)
    assert len(ran) == 1  # What zeros became is no change.
    assert "no font" in caplog.text


def command(*arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return dict(
        args=[sys.executable, "main.py", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_an_unknown_key_is_one_line_with_near_misses():
    recipe = "configs/everest_ucf101.py:smoke"
    done = subprocess.run(**command("--config", recipe, "--config.data.trian=x"), timeout=120)
    assert done.returncode == 2
    assert done.stdout.startswith("error: --config.data.trian")
    assert "--config.data.train" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_an_early_interrupt_is_no_traceback():
    victim = subprocess.Popen(**command("--config", "configs/everest_ucf101.py:smoke"))
    maps, patience = pathlib.Path(f"/proc/{victim.pid}/maps"), time.monotonic() + 60
    while "jaxlib" not in maps.read_text() and time.monotonic() < patience:
        time.sleep(0.02)
    victim.send_signal(signal.SIGINT)
    assert victim.communicate(timeout=60)[0] == ""
    assert victim.returncode == -signal.SIGINT  # A shell's 130.


@pytest.mark.slow
def test_kill_nine_and_again(shapes, tmp_path):
    """A real process, killed without warning at a random moment, then the same command."""
    options = [
        *("--config", "configs/everest_ucf101.py:smoke"),
        *(f"--config.data.train={shapes}/pretrain.txt", "--config.train.steps=40"),
        *("--config.train.save_every=5", "--config.train.log_every=1"),
    ]
    whole = subprocess.run(**command(*options, "--workdir", tmp_path / "whole"), timeout=300)
    assert whole.returncode == 0, whole.stdout
    victim = subprocess.Popen(**command(*options, "--workdir", tmp_path / "killed"))
    patience = time.monotonic() + 200
    while not checkpoint.steps_in(tmp_path / "killed") and time.monotonic() < patience:
        time.sleep(0.02)
    time.sleep(np.random.default_rng().uniform(0, 0.5))
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert checkpoint.steps_in(tmp_path / "killed")
    again = subprocess.run(**command(*options, "--workdir", tmp_path / "killed"), timeout=300)
    assert again.returncode == 0, again.stdout
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert final_state(tmp_path / "killed") == final_state(tmp_path / "whole")
