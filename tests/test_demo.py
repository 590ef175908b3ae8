"""The demo compares what it says it compares: equal cost, whole counts, one set of videos."""

import pathlib

import pytest

from configs import demo
from mvm import masking, sweep, tasks
from mvm.types import Grid


def config_of(argument, stage):
    return sweep.planned(demo.get_config(argument), pathlib.Path("run"))[stage]


COUNTS = {  # Visible and target, as the docstring says.
    "everest": (19, 32),
    "uniform": (20, 108),
    "tube": (24, 104),
    "frame": (16, 112),
    "dual": (24, 64),
    "motion_tube": (24, 104),
    "adamae": (19, 109),
}


def test_every_strategy_costs_as_much_as_everest_and_is_fine_tuned_in_the_same_way():
    assert set(demo.MASKS) == set(masking.names()) == set(COUNTS)
    stages = sweep.planned(demo.get_config("strategies"), pathlib.Path("run"))
    base, tuned = tasks.build(stages["pretrain_everest_seed0"]).work(executed=True), []
    for name in demo.MASKS:
        config = stages[f"pretrain_{name}_seed0"]
        task = tasks.build(config)
        assert (task.grid, task.strategy.name) == (Grid(8, 4, 4), name)
        assert (task.strategy.num_visible, task.strategy.num_target) == COUNTS[name]
        one = task.work(executed=True) / base
        assert demo.MASKS[name][1] == pytest.approx(one, rel=1e-3), f"MASKS: cost of {name}"
        assert one * config.train.steps == pytest.approx(demo.STEPS, rel=0.01)
        after = stages[f"{name}_seed0"].to_dict()
        assert after.pop("init_from").endswith(f"pretrain_{name}_seed0")
        after.pop("name")
        tuned.append(after)
    assert all(config == tuned[0] for config in tuned)


def test_every_stage_of_every_comparison_builds_after_the_one_it_starts_from(tmp_path):
    for argument in ("", "compare", "strategies", "long"):
        config = demo.get_config(argument)
        built = sweep.planned(config, tmp_path)
        assert set(built) == set(config.stages)
        seen = {(own.task, own.mask.name): own for own in built.values()}
        assert all(tasks.build(own).grid.n > 0 for own in seen.values())
        for name, changes in config.stages.items():
            if (source := changes.to_dict().get("init_from")) in built:
                assert list(built).index(source) < list(built).index(name)
