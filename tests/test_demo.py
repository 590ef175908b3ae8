"""The demo compares what it says it compares: equal cost, whole counts, one set of videos."""

import json
import pathlib

import jax
import numpy as np
import pytest

from configs import common, demo
from input_pipeline.synthetic import dataset as synthetic
from mvm import data, masking, samples, sweep, tasks
from mvm.types import Grid


def config_of(argument, stage):
    return sweep.planned(demo.get_config(argument), pathlib.Path("run"))[stage].config


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
    base, tuned = sweep.tflop(stages["pretrain_everest_seed0"].config, 1), []
    for name in demo.MASKS:
        config = stages[f"pretrain_{name}_seed0"].config
        task = tasks.build(config)
        assert (task.grid, task.strategy.name) == (Grid(8, 4, 4), name)
        assert (task.strategy.num_visible, task.strategy.num_target) == COUNTS[name]
        one = sweep.tflop(config, 1) / base
        assert demo.MASKS[name][1] == pytest.approx(one, rel=1e-3), f"MASKS: cost of {name}"
        assert one * config.train.steps == pytest.approx(demo.STEPS, rel=0.01)
        after = stages[f"{name}_seed0"].config.to_dict()
        assert after.pop("init_from").endswith(f"pretrain_{name}_seed0")
        after.pop("name")
        tuned.append(after)
    assert all(config == tuned[0] for config in tuned)


def test_the_compute_of_a_run_is_by_hand_that_of_its_steps():
    config = config_of("strategies", "pretrain_tube_seed0")
    macs = tasks.build(config).macs(executed=True)
    assert macs["select"] == 0
    expected = 6 * sum(macs.values()) * 1019 * 64 / 1e12
    assert sweep.tflop(config, config.train.steps) == pytest.approx(expected)
    config.data.repeats = 2
    assert sweep.tflop(config, 1019) == pytest.approx(2 * expected)
    scratch = config_of("strategies", "scratch_seed0")
    macs = tasks.build(scratch).macs(executed=True)
    expected = (6 * sum(macs.values()) - 4 * macs["select"]) * 300 * 32 / 1e12
    assert sweep.tflop(scratch, scratch.train.steps) == pytest.approx(expected)


def test_a_budget_is_its_share_of_the_steps_and_no_other_strategy():
    stages = sweep.planned(demo.get_config("budgets"), pathlib.Path("run"))
    assert stages["pretrain_uniform_at25_seed0"].config.train.steps == 277  # 1600 / 4 / 1.4432
    before = "pretrain_uniform_at25_seed0"
    assert stages["uniform_at25_seed0"][1:] == ("uniform_at25", "uniform", before)
    assert stages["motion_tube_seed0"].strategy == "motion_tube"
    with pytest.raises(ValueError, match=r"'strategy' is unknown; .*compare, strategies, budgets"):
        demo.get_config("strategy")


def test_the_long_arms_differ_in_frame_selection_alone():
    for kind in ("pretrain_", ""):
        selected, spread = (
            config_of("long", f"{kind}{arm}_seed0").to_dict() for arm in ("selected", "spread")
        )
        assert (selected["data"].pop("num_candidates"), selected["data"]["num_frames"]) == (48, 16)
        assert spread["data"].pop("num_candidates") == 0
        for config in (selected, spread):
            config.pop("name")
            config.pop("init_from")
        assert selected == spread
        assert (selected["synthetic"]["long"], selected["data"]["sampling"]) == (192, "spread")
    task = tasks.build(config_of("long", "pretrain_selected_seed0"))
    assert (task.grid.n, task.num_candidates) == (8 * 16, 24 * 16)


def test_frame_selection_finds_the_events_of_long_videos(tmp_path):
    """With weights that nobody has trained, and twice as often as chance."""
    config = config_of("long", "pretrain_selected_seed0")
    config.synthetic.update(num_pretrain=24, num_train=4, num_val=1, num_test=1)
    config = sweep.located(config, tmp_path)
    found = data.records(data.sources(config.data, "train"))
    task = tasks.build(config)
    videos, positions = samples.take(found, task.clips["val"], 24, 0)
    assert videos.shape == (24, 48, 32, 32, 3)
    keys = [(0, part, n) for part, count in enumerate((20, 4)) for n in range(count)]
    known = {synthetic.name_of(key): synthetic.events_of(key, 192) for key in keys}
    events = [known[found[position].id] for position in positions]
    # Frame 2 of every 4 of 192.
    busy = np.array([[any(a <= 4 * k + 2 < b for a, b in e) for k in range(48)] for e in events])

    params, _ = task.init(jax.random.key(0))
    chosen = np.zeros((24, 24), bool)
    slots = jax.jit(lambda params: task.model(params, {}).encoder.slots(videos))(params)
    np.put_along_axis(chosen, np.asarray(slots), True, axis=1)
    eventful = busy.reshape(24, 24, 2).any(-1)
    assert chosen[eventful].mean() > 2 * chosen.mean() == 2 * 8 / 24
    assert eventful[chosen].mean() > 2 * eventful.mean()


def test_samples_are_spread_over_the_list(shapes):
    config = config_of("strategies", "pretrain_tube_seed0")
    config.data.train = str(shapes / "pretrain.txt")
    found = data.records(data.sources(config.data, "train"))
    spec = tasks.build(config).clips["val"]
    videos, positions = samples.take(found, spec, 4, 0)
    assert positions == np.linspace(0, len(found) - 1, 16).astype(int)[::4].tolist()
    alone, _ = samples.take([found[positions[2]]], spec, 1, 0)
    np.testing.assert_array_equal(videos[2], alone[0])


@pytest.mark.slow
def test_strategies_end_in_a_picture_of_all_of_them(tmp_path):
    """Two strategies at the size of a smoke run, one of them with a network of its own."""
    config = demo.get_config("strategies").unlock()
    common.shrink(config)
    for name in list(config.stages):
        if name in ("pretrain_adamae_seed0", "pretrain_tube_seed0", "tube_seed0"):
            config.stages[name].train = {"steps": 1, "batch_size": 8, "val_every": 1}
        else:
            del config.stages[name]
    sweep.run(config, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    stage = sweep.planned(config, tmp_path)["pretrain_tube_seed0"].config
    assert summary["compute"] == {"tube": sweep.tflop(stage, 1)}
    page = (tmp_path / "report.html").read_text()
    assert "What each strategy chose of the same clip" in page
    assert not (tmp_path / "figures" / "compute.png").exists()  # One arm is no comparison.
