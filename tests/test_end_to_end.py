"""Whole runs on real video files: train, stop, resume, fine-tune, evaluate, look."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from models_on_disk import refused
from tiny import configure

from input_pipeline.sources.records import DataError
from mvm import data, sweep, tasks, train
from mvm.figures import gallery
from mvm.runtime import checkpoint
from mvm.runtime.metrics import read_rows
from mvm.types import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent


def rows(workdir):
    return read_rows(workdir / "metrics.jsonl")


def final_state(workdir):
    """Digests of every leaf of the newest checkpoint."""
    step = checkpoint.steps_in(workdir)[0]
    return step, (workdir / "checkpoints" / str(step) / "leaves" / "metadata").read_text()


@pytest.mark.usefixtures("no_figures")
def test_interrupted_equals_uninterrupted_bit_for_bit(shapes, pretrained, tmp_path, monkeypatch):
    feed = data.train_batches

    def dying(*args, start, **options):
        for step, batch in enumerate(feed(*args, start=start, **options)):
            if start == 0 and step == 5:
                raise SystemExit  # Nothing catches it.
            yield batch

    monkeypatch.setattr(data, "train_batches", dying)
    config = configure(shapes)
    with pytest.raises(SystemExit):
        sweep.run(config, tmp_path)
    assert checkpoint.steps_in(tmp_path)[0] in (2, 4)
    sweep.run(config, tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert rows(tmp_path) == rows(pretrained)
    assert final_state(tmp_path) == final_state(pretrained)
    for name in ("parameters.txt", "report.html", "figures/masks.png", "figures/overview.png"):
        assert (pretrained / name).stat().st_size > 0


def test_finetune_and_evaluate(shapes, finetuned, tmp_path):
    results = json.loads((finetuned / "results.json").read_text())
    assert (results["num_videos"], results["num_unreadable"]) == (19, 0)
    for name in ("masks", "curves", "confusion", "confidence", "confused"):
        assert (finetuned / "figures" / f"{name}.png").stat().st_size > 0, name
    # The fine-tuned run evaluated alone gives the same scores, from its run directory.
    alone, before = configure(shapes, "evaluate,smoke"), (finetuned / "config.json").read_text()
    alone.init_from = str(finetuned)
    refused("another configuration", sweep.run, alone, finetuned)
    assert (finetuned / "config.json").read_text() == before
    sweep.run(alone, tmp_path)
    for name in ("results.json", "predictions.csv", "per_class.csv"):
        assert (tmp_path / name).read_text() == (finetuned / name).read_text()
    _, *lines = (tmp_path / "predictions.csv").read_text().splitlines()
    listed = (shapes / "test.txt").read_text().split()[::2]
    assert [line.split(",")[0] for line in lines] == listed  # 19 in batches of 8.


def test_neither_unreadable_videos_nor_figures_end_a_run(
    shapes, pretrained, tmp_path, monkeypatch, caplog
):
    """Videos are replaced in training and listed in evaluation."""
    config, run, drawn = configure(shapes, "finetune,smoke", ema_decay=0.5), tmp_path / "run", []
    config.init_from = os.path.relpath(pretrained)
    config.data.update(val="", max_bad_fraction=0.1)
    broken = ["text.mp4", "empty.mp4", "gone.mp4"]
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    for split, names in (("train", broken[:1]), ("test", broken)):
        lines = [f"{shapes}/{line}\n" for line in (shapes / f"{split}.txt").open()]
        config.data[split] = str(tmp_path / f"{split}.txt")
        (tmp_path / f"{split}.txt").write_text("".join(lines + [f"{name} 0\n" for name in names]))

    def draw(folder, task, params, *_):
        drawn.append(params)
        raise OSError("no font\nat all")

    monkeypatch.setattr(gallery, "draw_clips", draw)
    last = sweep.run(config, run)
    assert 2 <= last["skipped"] <= 4  # 48 clips of 25 records; a substitute may be bad, too.
    assert any("text.mp4" in r.message for r in caplog.records)
    results = json.loads((run / "results.json").read_text())
    assert (results["num_videos"], results["num_unreadable"]) == (19, 3)
    assert [pathlib.Path(u["id"]).name for u in results["unreadable"]] == broken
    assert "figures are not complete (no font)" in caplog.text
    assert (run / "report.html").exists()
    # They show the weights that are scored.
    scored, *_ = checkpoint.load_params(run, drawn[0])
    np.testing.assert_array_equal(drawn[0]["head"]["kernel"], scored["head"]["kernel"])


LABELS = {"task": "finetune", "data.train": "{tmp}/label.txt", "mask.name": ""}
CHECKED = {"task": "finetune", "data.val": "{tmp}/label.txt"}
MISTAKES = [  # What a configuration changes, and what the line names.
    ({"data.train": "", "data.fetch": "", "synthetic.num_pretrain": 0}, "--config.data.train="),
    ({"data.train": "nowhere.txt"}, "data.train=nowhere.txt"),
    ({"data.train": "{tmp}/bad.txt"}, "text.mp4"),
    ({**LABELS, "synthetic.num_pretrain": 0}, "99"),
    ({"train.batch_size": 9}, "batch_size=9"),
    ({"train.batch_size": 64}, "the 40 training records"),
    ({"train.fsdp": 3}, "train.fsdp=3 does not divide the 4 devices"),
    ({"train.profile": "9:7"}, "train.profile='9:7'"),
    ({"train.wandb": "clips"}, "pip install wandb"),
    ({"model.size": "XXL"}, "model.size='XXL'"),
    ({"model.heads": 7}, "width 48"),
    ({"optim.base_lr": float("nan")}, "optim.base_lr=nan"),
    ({"data.num_frames": 10**9}, "data.num_frames=1000000000"),
    ({"train.keep_best": "val_knn"}, "nothing is checked without train.probe_every"),
    ({**CHECKED, "train.keep_best": "val_acc"}, "val_top1, val_top5, val_mean_class, val_loss"),
    ({**CHECKED, "train.patience": 3}, "with train.patience=3; choose val_top1"),
    ({"task": "finetun"}, "task='finetun'"),
    ({"data.rand_augment": "rand-x"}, "rand-x"),
    ({"init_from": "{pretrained}", "model.depth": 3}, "another model"),
]


def test_a_mistake_is_one_line_before_any_work(shapes, pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "fetch", lambda *_: pytest.fail("fetched"))
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    for name, text in {"empty": "", "bad": "text.mp4 0\n" * 8, "label": "a 0\nb 99\n" * 8}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "text.mp4").write_text("not a video")
    for changes, named in MISTAKES:
        config = configure(shapes)
        for key, value in changes.items():
            if isinstance(value, str):
                value = value.format(tmp=tmp_path, pretrained=pretrained)
            config.update_from_flattened_dict({key: value})
        mistakes = UserError, DataError
        refused(re.escape(named), sweep.run, config, tmp_path / "run", kind=mistakes)
        assert not (tmp_path / "run").exists()
    refused(r"empty\.txt cannot be written", sweep.run, configure(shapes), tmp_path / "empty.txt")


@pytest.mark.slow
def test_an_early_interrupt_is_no_traceback(tmp_path):
    flags = ("--config", "configs/everest_ucf101.py:smoke", "--workdir", str(tmp_path))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    victim = subprocess.Popen([sys.executable, "main.py", *flags], cwd=ROOT, **pipes)
    maps, patience = pathlib.Path(f"/proc/{victim.pid}/maps"), time.monotonic() + 60
    while "jaxlib" not in maps.read_text() and time.monotonic() < patience:
        time.sleep(0.02)
    victim.send_signal(signal.SIGINT)
    said = victim.communicate(timeout=60)[0]  # On a busy machine it has begun to work by then.
    assert "Traceback" not in said
    assert victim.returncode == -signal.SIGINT  # A shell's 130.


@pytest.mark.slow
def test_what_is_wrong_on_the_command_line_is_one_line_and_exit_code_2():
    recipe = ("--config", "configs/everest_ucf101.py:smoke")
    for wrong, named in (
        ((*recipe, "--config.data.trian=x"), 'Did you mean "train" instead of "trian"?'),
        ((*recipe, "--config.mask.decoder_ratio=0.25"), "keep_ratio, mask_ratio"),  # Dual's.
        (("--config", "configs/demo.py:smke"), "error: variant 'smke' is unknown; choose"),
    ):
        command = [sys.executable, "main.py", *wrong]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        (line,) = done.stderr.splitlines()
        assert (done.returncode, line[:7]) == (2, "error: ")
        assert named in line


@pytest.mark.usefixtures("no_figures")
def test_a_run_resumes_with_changes_that_were_asked_for(shapes, pretrained, tmp_path, caplog):
    """An edited list, a lower rate, more epochs: first not, then so."""
    run = shutil.copytree(pretrained, tmp_path / "run")
    names = (shapes / "pretrain.txt").read_text().splitlines()
    (tmp_path / "edited.txt").write_text("\n".join(f"{name} 0" for name in names[:-1]))
    config = configure(shapes)
    config.data.update(root=str(shapes), train=str(tmp_path / "edited.txt"))
    refused(r"another list \(records .* 40 \(.*\) -> 39 \(", sweep.run, config, run)
    config.train.update(steps=0, epochs=1.2)
    config.optim.base_lr /= 2
    config.resume_with_changes = True
    refused("at step 6 and would end at step 5; set train.epochs", sweep.run, config, run)
    assert rows(run) == rows(pretrained)
    config.train.epochs = 2.0
    caplog.clear()
    sweep.run(config, run)
    (line,) = (r.message for r in caplog.records if "RESUMING WITH CHANGES" in r.message)
    assert "base_lr 0." in line
    assert "data.train 40 (" in line
    before, schedule = rows(run), train.planned(config, 39)
    assert before[:6] == rows(pretrained)
    assert [row["step"] for row in before[6:]] == [7, 8]  # 4 steps of 8 are an epoch.
    rates = [row["learning_rate"] for row in before[6:]]
    np.testing.assert_allclose(rates, [schedule(6), schedule(7)], rtol=1e-6)
    sweep.run(config, run)  # Finished: nothing more.
    assert rows(run) == before


@pytest.mark.usefixtures("no_figures")
@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(shapes, pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path, dirs_exist_ok=True)
    config = configure(shapes)
    config.optim.base_lr, config.train.steps, config.resume_with_changes = 1e12, 12, True
    with pytest.raises(UserError, match=r"step \d+: loss .* the last good one") as said:
        sweep.run(config, tmp_path)
    good = f"checkpoint {checkpoint.steps_in(tmp_path)[0]},"
    for part in (good, "--config.optim.base_lr", "--config.resume_with_changes=true"):
        assert part in str(said.value)
    like = tasks.build(config).abstract  # Every checkpoint that is left holds finite numbers.
    for step in checkpoint.steps_in(tmp_path):
        found, *_ = checkpoint.load_params(tmp_path / "checkpoints" / str(step), like)
        assert all(np.isfinite(x).all() for x in checkpoint.leaves(found).values())
    config.optim.update(base_lr=1e-6, clip_norm=1.0)  # As the message says.
    sweep.run(config, tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 13))
