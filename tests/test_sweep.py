"""Stages: their order, and what several processes make of one sweep."""

import threading
import time

from configs import demo
from mvm import sweep


def test_processes_share_the_stages_of_a_sweep(tmp_path, monkeypatch):
    """Every stage is trained once, after the one that it starts from; all wait for the last."""
    lists = sweep.data.synthetic.lists_in(tmp_path)
    for path in lists:
        path.touch()
    trained = []

    def train(config, workdir):
        if config.init_from:
            assert (sweep.epath.Path(config.init_from) / "final.json").exists()
        (workdir / "metrics.jsonl").touch()
        trained.append(workdir.name)
        time.sleep(0.05)
        return {}

    monkeypatch.setattr(sweep.data, "moving_shapes", lambda *_: lists)
    monkeypatch.setattr(sweep.train, "train", train)
    monkeypatch.setattr(sweep, "_summarise", lambda *_: ended.append(len(trained)) or [])
    monkeypatch.setattr(sweep, "_PAUSE", 0.01)
    config, ended = demo.get_config("compare"), []
    works = [threading.Thread(target=sweep.run, args=(config, tmp_path / "run")) for _ in range(3)]
    for work in works:
        work.start()
    for work in works:
        work.join()
    assert sorted(trained) == sorted(config.stages)
    assert ended == [len(trained)] * 3
