"""The search for the largest batch: against trying all, and against the compiler's plan."""

import pytest

from benchmarks import memory
from configs import everest_ucf101


@pytest.mark.parametrize("unit", [1, 4])
@pytest.mark.parametrize("limit", [0, 3, 4, 5, 12, 15, 16, 17, 99, 100, 101, 1000])
def test_the_search_finds_the_largest(unit, limit):
    tried = []

    def fits(number):
        tried.append(number)
        return number <= limit

    found = memory.largest(fits, unit, most=100)
    best = min(limit, 100) // unit * unit
    assert best - max(unit, found // 16) < found <= best
    assert not found or found in tried
    assert all(number % unit == 0 and number <= 100 for number in tried)
    assert len(tried) < 16


@pytest.mark.slow
def test_the_largest_batch_by_plan(tmp_path):
    config = everest_ucf101.get_config("smoke")
    config.data.num_frames, config.model.decoder_depth = 4, 1
    # The state and a first guess of what 16 videos on 8 devices take.
    _, planned = memory.search(config.copy_and_resolve_references(), 10**12, most=16)
    limit = planned[16]
    row = memory.measure(config, "none", limit, most=64, steps=1)
    assert row["planned_batch_size"] >= 16
    assert row["batch_size"] == row["planned_batch_size"] == row["step"]["batch_size"]
    plans = {int(batch): gb for batch, gb in row["planned_gb"].items()}
    assert plans[row["batch_size"]] * 1e9 <= limit
    assert all(gb * 1e9 > limit for batch, gb in plans.items() if batch > row["batch_size"])
    assert row["step"]["memory_planned_gb"] == pytest.approx(plans[row["batch_size"]], rel=1e-3)
    small = memory.measure(config, "none", 1, most=64, steps=1)
    assert (small["batch_size"], small["step"]) == (0, None)
    text = memory.table([row, small])
    assert f"| none  | {row['batch_size']}" in text
    numbers = {"config": "c", "device": "8 x cpu", "limit_gb": limit / 1e9, "rows": [row, small]}
    memory.draw(tmp_path / "memory.png", numbers)
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")
