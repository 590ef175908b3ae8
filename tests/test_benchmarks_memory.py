"""The search for the largest batch: against trying all, and against the compiler's plan."""

import pytest

from benchmarks import memory
from configs import everest_ucf101


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
