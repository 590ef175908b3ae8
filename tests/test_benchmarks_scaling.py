"""The benchmark of growth: each axis changes what it says, and only that."""

import pytest

from benchmarks import scaling
from configs import everest_oscc, everest_ucf101
from mvm.types import UserError


@pytest.fixture(scope="module")
def rows():
    config = everest_ucf101.get_config("smoke")
    config.data.num_frames, config.model.decoder_depth, config.train.batch_size = 4, 1, 2
    axes = {"frames": ["4", "8"], "resolution": ["30"], "devices": ["1", "2"]}
    return scaling.measure(config, axes, steps=1)


@pytest.mark.slow
def test_rows_are_what_was_asked_for(rows):
    frames, twice, resolution, one, two = rows
    assert twice["visible"] + twice["target"] >= 2 * (frames["visible"] + frames["target"])
    assert twice["model_gmac_per_clip"] > 2 * frames["model_gmac_per_clip"]
    assert "30x30 px is not divisible" in resolution["error"]
    assert (one["devices"], two["devices"]) == (1, 2)
    assert (one["batch_size"], two["batch_size"]) == (2, 4)
    assert one["model_gmac_per_clip"] == two["model_gmac_per_clip"] == frames["model_gmac_per_clip"]


@pytest.mark.slow
def test_table_and_figure(rows, tmp_path):
    text = scaling.table(rows)
    assert len(text.splitlines()) == 2 + 5 + 1
    assert "resolution 30: a clip of 4 frames" in text.splitlines()[-1]
    scaling.draw(tmp_path / "scaling.png", rows)
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_candidates_grow_with_the_frames():
    config = everest_oscc.get_config()
    changed = scaling.at(config, "frames", "8")
    assert (config.data.num_frames, config.data.num_candidates) == (16, 24)
    assert (changed.data.num_frames, changed.data.num_candidates) == (8, 12)
    assert scaling.at(config, "size", "L").model.size == "L"
    with pytest.raises(UserError, match="--batch=two"):
        scaling.at(config, "batch", "two")
