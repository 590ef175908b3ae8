"""Learning rates of `my_clips`, one run each, compared at the end: a sweep to copy.

    python main.py --config configs/sweep_lr.py --config.data.root=clips
    python main.py --config configs/sweep_lr.py:L --config.data.root=clips

A stage (`mvm/sweep.py`) is a name and the keys it changes; all else is that of the recipe. Rates
are those of a batch of 256 (`optim.base_lr`), a factor of about three apart.
"""

from configs import common, my_clips

RATES = (3e-4, 1e-3, 3e-3)


def get_config(argument: str = "") -> common.Config:
    c = my_clips.get_config(argument)
    if c.evaluate:
        raise ValueError("a sweep trains; evaluate one of its runs, by my_clips.py:evaluate")
    c.name = c.name.replace("my_clips", "sweep_lr")  # Words of the variant stay.
    stages = {f"lr_{rate:g}".replace(".", "_"): {"optim": {"base_lr": rate}} for rate in RATES}
    c.stages = common.Config(stages, sort_keys=False)  # In this order.
    return c
