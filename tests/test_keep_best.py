"""The best step is kept, scored, loaded and named; checks that get no better end a run."""

import json
import shutil

import pytest
from test_checkpoint import flip
from tiny import configure

from mvm import evaluate, runs, sweep, tasks
from mvm.runtime import checkpoint, steps
from mvm.runtime.metrics import read_rows

SCORES = {1: 10.0, 2: 50.0, 3: 50.0, 4: 20.0, 5: 30.0, 6: 40.0}


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_the_best_step_is_kept_scored_and_loaded(shapes, finetuned, tmp_path, monkeypatch, caplog):
    run = tmp_path / "run"

    def scored(*_):
        return {"val_top1": SCORES[read_rows(run / "metrics.jsonl")[-1]["step"]], "val_loss": 1.0}

    monkeypatch.setattr(evaluate, "validate", scored)
    caplog.set_level("INFO")
    config = configure(shapes, "finetune,smoke", keep=1, keep_best="val_top1", patience=2)
    config.train.update(val_every=1, save_every=3)
    config.init_from = str(finetuned)
    sweep.run(config, run)
    assert checkpoint.steps_in(run) == [4, 2]  # Ended early; of equals, the first.
    assert json.loads((run / "results.json").read_text())["step"] == 2
    assert "scoring step 2, the best by val_top1 50" in caplog.text
    read = lambda: (read_rows(run / "metrics.jsonl"), (run / "results.json").read_text())  # noqa: E731
    before, results = read()
    sweep.run(config, run)  # Finished.
    assert read() == (before, results)
    assert "ended at step 4: no check since step 2 was better by val_top1" in caplog.text
    config.train.patience = 0
    sweep.run(config, run)
    assert "resuming from step 4" in caplog.text
    assert read_rows(run / "metrics.jsonl")[:8] == before
    assert checkpoint.steps_in(run) == [6, 2]
    like = tasks.build(runs.Source(run).config()).abstract
    best = checkpoint.load_params(run / "checkpoints" / "2", like)[0]["head"]["kernel"]
    loaded, report, at = checkpoint.load_params(run, like)
    assert (loaded["head"]["kernel"] == best).all()
    assert (at.step, at.best.value) == (2, 50.0)
    assert "checkpoints/2 (step 2, the best by val_top1 50): " in report
    # Alone it scores the same; without its best step, the newest.
    alone = configure(shapes, "evaluate,smoke")
    alone.init_from = str(run)
    sweep.run(alone, tmp_path / "alone")
    assert (tmp_path / "alone" / "results.json").read_text() == results
    flip(run / "checkpoints" / "2" / "leaves" / "metadata")
    assert checkpoint.load_params(run, like)[2].step == 6
    sweep.run(config, run)
    assert "checkpoint 2 of" in caplog.text
    assert json.loads((run / "results.json").read_text())["step"] == 6
    shutil.rmtree(run / "damaged")
    assert checkpoint.load_params(run, like)[2].step == 6
    assert f"step 2 of {run}, the best, is gone" in caplog.text


def test_the_best_of_checks():
    checks = {1: float("nan"), 2: 3.0, 3: 2.0, 4: 2.0, 5: 2.5}
    for by, expected in (("val_loss", (3, 2.0, 2)), ("val_top1", (2, 3.0, 3))):
        best = None
        for step, value in checks.items():
            best = steps.better(best, by, step, value)
        assert (best.step, best.value, best.since) == expected, by
