"""Runs side by side, also those that are damaged, unfinished, or of another task; a sweep."""

import json

import pytest

from configs import sweep_lr
from mvm import compare, sweep


def run(folder, rate, rows=(), results=None, task="finetune"):
    folder.mkdir(parents=True)
    config = {"name": folder.name, "task": task, "optim": {"base_lr": rate}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if results:
        (folder / "results.json").write_text(json.dumps(results))
    return str(folder)


ROWS = [
    {"step": 1, "loss": 2.0, "val_top1": 10.0, "val_loss": 1.5},
    {"step": 2, "loss": 1.0, "val_top1": 30.0, "val_loss": 1.75},
    {"step": 3, "loss": 0.5, "val_top1": 20.0},
]


def test_a_column_for_what_differs_validation_before_test_best_and_last(tmp_path, capsys):
    a = run(tmp_path / "a <b>", 0.001, ROWS, {"top1": 61.25, "num_videos": 4, "views": "5x3"})
    (tmp_path / "a <b>" / "report.html").touch()
    b = run(tmp_path / "z/b", 0.01, ROWS[:1])
    head, rows, said = compare.table(compare.read([a, b]))
    ends = "val_top1 best|val_top1 last|val_loss best|val_loss last|test top1|loss last|step last"
    assert head == ["run", "optim.base_lr", *ends.split("|")]
    assert rows[0] == ["a <b> *", "0.001", "30 at 2", "20", "1.5 at 1", "1.75", "61.25", "0.5", "3"]
    assert rows[1] == ["z/b", "0.01", "10 at 1", "10", "1.5 at 1", "1.5", "", "2", "1"]
    assert said == ["best by validation: a <b> (*), val_top1 20"]
    compare.main([a, b, f"--out={tmp_path}/page.html"])
    assert "61.25" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert '<a href="a%20%3Cb%3E/report.html">a &lt;b&gt; *</a>' in page
    assert "<p>best by validation: a &lt;b&gt; (*), val_top1 20</p>" in page
    assert page.count("<img") == 1


@pytest.mark.parametrize("root", ["clips", ""])
def test_copies_of_lists_are_one_and_a_kept_step_counts(tmp_path, root):
    for name, keep in (("b", "val_loss"), ("a", "")):  # In the folder of a sweep.
        folder = tmp_path / "sweep" / name
        run(folder, 0.1, [row | {"val_loss": row["loss"] + (name == "b")} for row in ROWS[:2]])
        (folder / "val.txt").write_text("x.mp4 0")
        told = {"data": {"root": root, "val": f"{folder}/val.txt"}, "train": {"keep_best": keep}}
        (folder / "config.json").write_text(json.dumps(told))
    head, rows, said = compare.table(compare.read([tmp_path / "sweep"]))
    assert ("data.val" in head) == (not root)  # Without a root they name other videos.
    assert [row[0].strip(" *") for row in rows] == ["a", "b"]
    assert said == ["best by validation: a (*), val_loss 1"] * bool(root)
    (folder / "val.txt").write_text("y.mp4 0")
    assert "data.val" in compare.table(compare.read([tmp_path / "sweep"]))[0]


def test_of_equals_the_one_of_less_loss_is_best_and_warnings_are_repeated(tmp_path):
    low = run(tmp_path / "low", 1e-5, [{"step": 1, "val_top1": 40.0, "val_loss": 1.8}])
    good = run(tmp_path / "good", 1e-2, [{"step": 1, "val_top1": 40.0, "val_loss": 1.2}])
    (tmp_path / "low" / "warnings.txt").write_text("step 1: loss is 1.792\n")
    assert compare.table(compare.read([low, good]))[2] == [
        "best by validation: good (*), val_top1 40",
        "as good: low, of no lower val_loss",
        "low: WARNING step 1: loss is 1.792",
    ]


def test_what_is_no_run_or_damaged_is_one_line(tmp_path, caplog, capsys):
    good = run(tmp_path / "good", 0.001, ROWS)
    for name, file in (("cut", "config.json"), ("list", "config.json"), ("half", "results.json")):
        run(tmp_path / name, 0.1)
        (tmp_path / name / file).write_text("[1]" if name == "list" else '{"a": ')
    (tmp_path / "half" / "metrics.jsonl").write_text('{"step": 4, "loss": "x"}\n{"ste\n')
    other = run(tmp_path / "other", 0.001, task="pretrain")
    every = [good, other, *(str(tmp_path / name) for name in ("cut", "list", "half", "none"))]
    assert [found.name for found in compare.read(every)] == ["good", "other", "half"]
    for said in ("cut is left out", "list is left out", "none is left out", "results.json cannot"):
        assert said in caplog.text
    assert "runs of finetune, pretrain: their losses mean different things" in caplog.text
    compare.main([*every, f"--out={tmp_path}/compare.html"])
    assert (tmp_path / "compare.html").exists()
    with pytest.raises(SystemExit) as stopped:
        compare.main([str(tmp_path / "none")])
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: none of these is a run; give run directories, such as runs/*"


def test_the_sweep_of_learning_rates_runs_in_the_order_written(tmp_path):
    config = sweep_lr.get_config("smoke")
    stages = sweep.planned(config, tmp_path)
    assert list(stages) == ["lr_0_0003", "lr_0_001", "lr_0_003"]
    assert config.name == "sweep_lr_finetune_smoke"
    assert [one.optim.base_lr for one in stages.values()] == list(sweep_lr.RATES)
    assert {one.train.steps for one in stages.values()} == {2}
