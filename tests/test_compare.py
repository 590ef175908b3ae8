"""Runs side by side, also those that are damaged, unfinished, or of another task."""

import base64
import json
from math import isnan

import pytest

from mvm import compare
from mvm.figures import charts


def run(folder, rate, rows=(), results=None, task="finetune", **more):
    folder.mkdir(parents=True, exist_ok=True)
    config = {"name": folder.name, "task": task, "optim": {"base_lr": rate}, **more}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if results:
        (folder / "results.json").write_text(json.dumps(results))
    return str(folder)


def test_an_interval_beyond_all_percents_does_not_stretch_the_axis(monkeypatch):
    drawn = []
    monkeypatch.setattr(charts.style, "save", lambda figure, path: drawn.append(figure))
    charts.against_cost("", [compare.Arm("a", 1.0, "probe", [16.0, 59.0], 37.5, 272.0)])
    assert drawn[0].axes[0].get_ylim() == (0, 100)


ROWS = [
    {"step": 1, "loss": 2.0, "val_top1": 10.0, "val_loss": 1.5},
    {"step": 2, "loss": 1.0, "val_top1": 30.0, "val_loss": 1.75},
    {"step": 3, "loss": 0.5, "val_top1": 20.0},
]


def test_test_before_validation_best_and_last_before_a_column_for_what_differs(tmp_path, capsys):
    a = run(tmp_path / "a <b>", 0.001, ROWS, {"top1": 61.25, "num_videos": 4, "views": "5x3"})
    (tmp_path / "a <b>" / "report.html").touch()
    b = run(tmp_path / "z/b", 0.01, ROWS[:1])
    head, rows, said = compare.table(compare.read([a, b]))
    ends = "test top1|val_top1 best|val_top1 last|val_loss best|val_loss last|loss last|step last"
    assert head == ["run", *ends.split("|"), "optim.base_lr"]
    assert rows[0] == ["a <b> *", "61.25", "30 at 2", "20", "1.5 at 1", "1.75", "0.5", "3", "0.001"]
    assert rows[1] == ["z/b", "", "10 at 1", "10", "1.5 at 1", "1.5", "2", "1", "0.01"]
    assert said == ["best by validation: a <b> (*), val_top1 20"]
    compare.main([a, b, f"--out={tmp_path}/page.html"])
    assert "61.25" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert '<a href="a%20%3Cb%3E/report.html">a &lt;b&gt; *</a>' in page
    assert "<p>best by validation: a &lt;b&gt; (*), val_top1 20</p>" in page
    assert page.count("<img") == 2


def test_of_equals_the_one_of_less_loss_is_best_and_warnings_are_repeated(tmp_path):
    own = {"data": {"val": str(tmp_path / "val.txt")}}  # Not there yet.
    low = run(tmp_path / "low", 1e-5, [{"step": 1, "val_top1": 40.0, "val_loss": 1.8}], **own)
    good = run(tmp_path / "good", 1e-2, [{"step": 1, "val_top1": 40.0, "val_loss": 1.2}], **own)
    (tmp_path / "low" / "warnings.txt").write_text("step 1: loss is 1.792\n")
    assert compare.table(compare.read([low, good]))[2] == [
        "best by validation: good (*), val_top1 40",
        "as good: low, of no lower val_loss",
        "low: WARNING step 1: loss is 1.792",
    ]
    # 2.2 of 5: sqrt(.44 * .56 / 3).
    (tmp_path / "val.txt").write_text("a.mp4 0\nb.mp4 1\n\nc.mp4 1")
    said = compare.table(compare.read([low, good]))[2][0]
    assert said == "best by validation: good (*), val_top1 40 of 3 videos, give or take 29"


def test_what_is_no_run_or_damaged_is_one_line(tmp_path, caplog, capsys):
    good = run(tmp_path / "good", 0.001, ROWS)
    for name, file in (("cut", "config.json"), ("list", "config.json"), ("half", "results.json")):
        run(tmp_path / name, 0.1)
        (tmp_path / name / file).write_text("[1]" if name == "list" else '{"a": ')
    (tmp_path / "half" / "metrics.jsonl").write_text('{"step": 4, "loss": "x"}\n{"ste\n')
    other = run(tmp_path / "other", 0.001, task="pretrain")
    (tmp_path / "old.json").write_text('{"runs": [{"run": "a"}]}')
    gone = ("cut", "list", "none", "old.json")
    every = [good, other, *(str(tmp_path / name) for name in ("half", *gone))]
    assert [found.name for found in compare.read(every)] == ["good", "other", "half"]
    said = [f"{name} is left out" for name in gone] + ["results.json cannot"]
    said.append("runs of finetune, pretrain: their losses mean different things")
    assert [words for words in said if words not in caplog.text] == []
    compare.main([*every, f"--out={tmp_path}/compare.html"])
    assert (tmp_path / "compare.html").exists()
    with pytest.raises(SystemExit) as stopped:
        compare.main([str(tmp_path / "none")])
    assert stopped.value.code == 2
    assert "error: none of these is a run" in capsys.readouterr().err.splitlines()[-1]


def test_pictures_come_before_accuracies_by_arm_before_the_table(tmp_path):
    for name, top1 in (("a_0", 30.0), ("a_1", 40.0), ("b_1", None)):
        run(tmp_path / name, 0.1, ROWS, top1 and {"top1": top1})
    run(tmp_path / "c", 0.1, ROWS, {"top1": 20.0, "knn": 15.0})
    run(tmp_path / "b_0", 0.1, ROWS, {"top1": 50.0, "num_videos": 98})
    (tmp_path / "a_1" / "report.html").touch()
    (tmp_path / "a_1" / "figures").mkdir()
    (tmp_path / "a_1" / "figures" / "overview.png").write_bytes(b"overview")
    told = {f"{arm}_{seed}": {"arm": arm} for arm in "ab" for seed in (0, 1)}
    found = compare.read([tmp_path], told)
    arms = {arm.name: arm for arm in compare.arms(found)}
    assert arms["b"].error == pytest.approx(1.96 * 5.05, abs=0.02)  # Of 98 videos.
    assert (arms["c"].judge, arms["c"].scores) == ("nearest neighbours", [15.0])
    assert isnan(arms["c"].error)
    costly = [arm._replace(cost=0.25, judge=judge) for arm in arms.values() for judge in "xy"]
    sections = compare.html(found, tmp_path / "page.html", costly)
    assert list(sections) == ["What they see", "How they did", "Runs"]
    seen, did, _ = sections.values()
    assert '<a href="a_1/report.html"><figcaption>a<' in seen
    assert base64.b64encode(b"overview").decode() in seen
    # Student's t of 1 degree.
    assert "<td>a</td><td>0.25</td><td>35.0 +- 63.5</td><td>35.0 +- 63.5</td>" in did
