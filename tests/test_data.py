"""From a configuration to clips: which rule each split gets, and what a batch is mixed by."""

import itertools

import numpy as np
import pytest

from configs import common
from input_pipeline.transforms import mix as mixup
from mvm import data, tasks
from mvm.tasks import parts
from mvm.types import UserError


def config_for(task, **changes):
    config = common.finish(common.get_config(), f"{task},smoke")
    config.data.update(changes)
    return config


@pytest.mark.parametrize(
    ("sampling", "pretrain", "finetune", "center"),
    [
        ("released", "pretrain", "finetune", "center"),
        ("strided", "strided", "strided", "center"),
        ("segments", "segments", "segments", "segments_center"),
        ("segments_v2", "segments_v2", "segments_v2", "segments_center"),
        ("spread", "spread", "spread", "spread_center"),
    ],
)
def test_each_split_has_the_rule_of_its_sampling(sampling, pretrain, finetune, center):
    for task, random in (("pretrain", pretrain), ("finetune", finetune)):
        config = config_for(task, sampling=sampling, repeats=2)
        specs = {
            split: parts.clip_spec(config, split, tasks.spec(config.task).sampling)
            for split in ("train", "val", "test")
        }
        assert {split: spec.sampling for split, spec in specs.items()} == {
            "train": random,
            "val": center,
            "test": center,
        }
        assert [spec.repeats for spec in specs.values()] == [2, 1, 1]
        assert [spec.num_segments for spec in specs.values()] == [1, 1, config.eval.num_segments]


def test_candidates_are_the_frames_that_are_decoded():
    for candidates, frames in ((0, 16), (16, 16), (24, 24)):
        config = config_for("pretrain", sampling="spread", num_candidates=candidates)
        for split in ("train", "val", "test"):
            assert (
                parts.clip_spec(config, split, tasks.spec(config.task).sampling).num_frames
                == frames
            )


def training(shapes, repeats=1):
    config = config_for("finetune", num_frames=4, repeats=repeats)
    found = data.records([data.Source(str(shapes / "train.txt"))], num_classes=8)
    return found, parts.clip_spec(config, "train", "finetune")


def test_a_step_draws_one_mix_for_all_repeats(shapes):
    found, spec = training(shapes, repeats=2)
    options = {"batch_size": 8, "seed": 3, "failures": data.Failures()}
    options |= {"mix": data.Mix(0.8, 1.0)}
    steps = {
        start: list(
            itertools.islice(
                data.train_batches(found, spec, data.Reader(), start=start, **options), 3
            )
        )
        for start in (0, 8)
    }
    for step, batch in enumerate(steps[0]):
        rng = np.random.default_rng((3, step))
        mix = mixup.draw(rng, 32, 32, mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.5)
        np.testing.assert_array_equal(batch["lam"], np.full(16, mix.lam, np.float32))
        np.testing.assert_array_equal(batch["box"], np.tile(mix.box, (16, 1)))
        assert {len(array) for array in batch.values()} == {16}
    for went_on, before in zip(steps[8], steps[0][1:]):
        assert went_on.keys() == before.keys()
        assert all(np.array_equal(went_on[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("batch_size", "repeats", "accumulate", "fits"),
    [(8, 1, 1, True), (7, 1, 1, False), (7, 2, 1, True), (8, 1, 8, False), (8, 2, 8, True)],
)
def test_mixing_needs_pairs(shapes, batch_size, repeats, accumulate, fits):
    found, spec = training(shapes, repeats)
    if fits:
        data.check(found, spec, batch_size, accumulate, data.Mix(0.8, 0.0))
        return
    with pytest.raises(
        UserError, match=rf"repeats = {batch_size} is no multiple of 2 \* train.acc"
    ):
        data.check(found, spec, batch_size, accumulate, data.Mix(0.8, 0.0))
    data.check(found, spec, batch_size, accumulate, None)


def test_the_digest_of_a_list_is_that_of_its_rows_wherever_they_lie(tmp_path):
    def digest(text, folder="a", **options):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "list.txt").write_text(text)
        return data.digest(data.records([data.Source(f"{tmp_path}/{folder}/list.txt", **options)]))

    first = digest("x.mp4 0\ny.mp4 1\n")
    assert first == digest("x.mp4,0\r\ny.mp4,1", "b")
    assert len(first) == 64
    others = [digest(t) for t in ("y.mp4 1\nx.mp4 0", "x.mp4 0\ny.mp4 2", "x.mp4 0", "z.mp4 0")]
    assert len({first, digest("x.mp4 0\ny.mp4 1\n", stride=2), *others}) == 6
