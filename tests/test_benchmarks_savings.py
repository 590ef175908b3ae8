"""The benchmark of exact savings: each plain version is another program, for the same result."""

import json
import math

import jax
import pytest

from benchmarks import plain, results, savings
from benchmarks.in_turn import SideError
from configs import everest_ucf101, videomae_ucf101
from mvm import tasks
from mvm.models import attention, tubelets, vit
from mvm.models.autoencoder import Autoencoder
from mvm.models.encoder import Encoder
from mvm.types import UserError

CLIPS = 2


def tiny():
    """32 tokens of 384 pixels, 3 visible and 6 targets; one encoder block, three of the decoder."""
    config = everest_ucf101.get_config("smoke")
    config.data.num_frames, config.train.batch_size = 4, CLIPS
    config.model.depth, config.model.decoder_depth = 1, 3
    return config


def test_nothing_stays_replaced():
    def now():
        owners = (tubelets, tasks, vit, attention, vit.Block, vit.Attention, Encoder, Autoencoder)
        return [dict(vars(owner)) for owner in owners], jax.jit

    before = now()
    for saving in plain.SAVINGS:
        with saving.off():
            assert now() != before, saving.name
        assert now() == before, saving.name


def test_only_what_a_step_has():
    config = tiny()
    names = lambda config, *only: [s.name for s in plain.chosen(config, only)]  # noqa: E731
    assert names(config) == [saving.name for saving in plain.SAVINGS]
    assert names(config, "qkv", "embed") == ["qkv", "embed"]
    config.model.attention = "xla"
    assert "attention" not in names(config)
    classifier = videomae_ucf101.get_config("finetune,smoke")
    assert names(classifier) == ["bytes", "qkv", "again", "attention", "donation", "unroll"]
    with pytest.raises(
        UserError, match=r"--only=targets: .* has no such saving; choose from bytes"
    ):
        plain.chosen(classifier, ["targets"])


def test_what_cannot_be_measured():
    config = tiny()
    config.task = "evaluate"
    with pytest.raises(UserError, match="task='evaluate' has no training step"):
        savings.measure(config, 1)
    config = tiny()
    config.train.batch_size = 3
    with pytest.raises(UserError, match="batch_size=3 is not a multiple of 8 devices"):
        savings.measure(config, 1)


def test_a_saving_that_is_not_exact_is_named():
    same = {"loss": 1.0, "grad_norm": 2.0}
    savings.check_exact({savings.ON: same, "embed": {**same, "grad_norm": 2.0001}}, 1e-5)
    for other in (
        {**same, "loss": 1.0001},
        {**same, "grad_norm": 2.001},
        {**same, "loss": math.nan},
    ):
        with pytest.raises(SideError, match=r"qkv: (loss|grad_norm) of the first step is"):
            savings.check_exact({savings.ON: same, "embed": same, "qkv": other}, 1e-5)


@pytest.mark.slow
def test_they_are_exact(tmp_path):
    """Each program's first step is held against the run's; see `savings.check_exact`."""
    config, only = tiny(), ["embed", "targets", "last_block", "again", "first_block"]
    config.train.batch_size = 8
    numbers = savings.measure(config, 1, only)
    on, *others = numbers["rows"]
    assert [row["off"] for row in others] == only
    for row in others:
        assert row["loss"] == pytest.approx(on["loss"], rel=1e-6)
        assert row["grad_norm"] == pytest.approx(on["grad_norm"], rel=1e-5)
        assert row["times"]["step_min_s"] == row["step_min_s"] / on["step_min_s"]
    assert set(on["times"].values()) == {1.0}
    text = savings.table(numbers)
    assert len(text.splitlines()) == 2 + 1 + len(only)
    path = tmp_path / "savings.json"
    results.write(str(path), numbers, text, lambda path: savings.draw(path, numbers))
    assert json.loads(path.read_text())["clips"] == 8
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
