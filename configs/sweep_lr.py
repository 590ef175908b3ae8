"""Learning rates of `my_clips`, one run each, compared at the end: a sweep to copy.

    python main.py --config configs/sweep_lr.py --config.data.root=clips
    python main.py --config configs/sweep_lr.py:L --config.data.root=clips

A stage (`mvm/sweep.py`) is a name and the keys it changes; all else is that of the recipe. The rate
of the recipe is the one in the middle (`optim.base_lr`, of a batch of 256).
"""

from configs import common, my_clips

FACTORS = (0.3, 1.0, 3.0)


def get_config(argument: str = "") -> common.Config:
    c = my_clips.get_config(argument)
    if c.evaluate:
        raise ValueError("a sweep trains; evaluate one of its runs, by my_clips.py:evaluate")
    c.name = c.name.replace("my_clips", "sweep_lr")  # Words of the variant stay.
    rates = [factor * c.optim.base_lr for factor in FACTORS]
    stages = {f"lr_{rate:g}".replace(".", "_"): {"optim": {"base_lr": rate}} for rate in rates}
    c.stages = common.Config(stages, sort_keys=False)  # In this order.
    return c
