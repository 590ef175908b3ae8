"""Mixup and CutMix are drawn as by the released implementations."""

import numpy as np

from input_pipeline.transforms import mix

GOLDENS = ["mixup_videomae.npz", "mixup_videomaev2.npz"]


class LegacyDraws:
    """The three draws of `mix.draw` from NumPy's legacy stream, which the releases use."""

    def __init__(self, seed):
        state = np.random.RandomState(seed)
        self.random, self.beta, self.integers = state.random_sample, state.beta, state.randint


def test_draws_are_the_released_ones(shared):
    for name in GOLDENS:
        golden = np.load(shared / "golden" / name)
        for i, seed in enumerate(golden["batch_random/seed"]):
            rng = LegacyDraws(int(seed))
            mixed = mix.draw(rng, 16, 16, mixup_alpha=0.8, cutmix_alpha=1.0)
            assert mixed.lam == golden["batch_random/lam_used"][i]
            cut = bool(golden["batch_random/use_cutmix"][i])
            assert mixed.box == (tuple(golden["batch_random/box"][i]) if cut else (0, 0, 0, 0))
