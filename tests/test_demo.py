"""The demo compares what it says it compares: equal cost, whole counts, one set of videos."""

import pathlib

import pytest

from configs import demo
from mvm import masking, sweep, tasks
from mvm.types import Grid


def test_every_strategy_costs_as_much_as_everest_and_is_judged_in_the_same_way():
    assert set(demo.MASKS) == set(masking.names())
    stages = sweep.planned(demo.get_config("strategies"), pathlib.Path("run"))
    first = demo.SEEDS[1.0][0]
    base = tasks.build(stages[f"everest_1_seed{first}"]).work(executed=True)
    for name, (_, cost, *_) in demo.MASKS.items():
        task = tasks.build(stages[f"{name}_1_seed{first}"])
        assert (task.grid, task.strategy.name) == (Grid(8, 8, 8), name)
        one = task.work(executed=True) / base
        assert cost == pytest.approx(one, rel=1e-3), f"MASKS: cost of {name}"
        for budget, seeds in demo.SEEDS.items():
            for seed in seeds:
                steps = stages[f"{name}_{budget:g}_seed{seed}".replace(".", "")].train.steps
                assert one * steps == pytest.approx(budget * demo.STEPS, rel=0.01)
    judged = {}
    for own in stages.values():
        if own.init_from:
            same = own.to_dict() | {"init_from": "", "name": "", "seed": 0}
            assert same == judged.setdefault(own.task, same)
    assert set(judged) == {"probe", "finetune"}


def test_every_stage_of_every_comparison_builds_after_the_one_it_starts_from(tmp_path):
    for argument in ("", "strategies", "strategies,quick", "strategies,rates,pan", "long"):
        config = demo.get_config(argument)
        built = sweep.planned(config, tmp_path)
        assert set(built) == set(config.stages)
        # A probe takes the mask of its encoder.
        seen = {(own.task, own.mask.name): own for own in built.values() if own.task != "probe"}
        assert all(tasks.build(own).grid.n > 0 for own in seen.values())
        for name, changes in config.stages.items():
            if (source := changes.to_dict().get("init_from")) in built:
                assert list(built).index(source) < list(built).index(name)
