"""What the clips of a step are mixed by, and what the digest of a list is of."""

import itertools

import numpy as np

from configs import common
from input_pipeline.transforms import mix as mixup
from mvm import data


def test_a_step_draws_one_mix_for_all_repeats(shapes):
    config = common.finish(common.get_config(), "finetune,smoke")
    config.data.update(num_frames=4, repeats=2)
    found = data.records([data.Source(str(shapes / "train.txt"))], num_classes=8)
    spec = data.spec_of(config.data, "train", "finetune")
    options = {"batch_size": 8, "seed": 3, "failures": data.Failures(), "mix": (0.8, 1.0)}
    for first in (0, 1):  # The second time as a resumed run.
        batches = data.train_batches(found, spec, data.Reader(), start=8 * first, **options)
        for step, batch in enumerate(itertools.islice(batches, 2), first):
            rng = np.random.default_rng((3, step))
            mix = mixup.draw(rng, 32, 32, mixup_alpha=0.8, cutmix_alpha=1.0)
            np.testing.assert_array_equal(batch["lam"], np.full(16, mix.lam, np.float32))
            np.testing.assert_array_equal(batch["box"], np.tile(mix.box, (16, 1)))
            assert {len(array) for array in batch.values()} == {16}


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
