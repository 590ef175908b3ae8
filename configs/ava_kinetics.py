"""Actions of people, trained on AVA-Kinetics (arXiv 2005.00214), tested on AVA v2.2: V2's g.

As ava_v22, with `data.train` AVA's csv and that of Kinetics, one after the other, and Kinetics'
files, `ID_000012_000022.mp4`, beside AVA's movies below `data.root`.
Published: 43.9 frame mAP (arXiv 2303.16727).
"""

from configs import ava_v22, common


@common.recipe(tasks=common.DETECTED, sizes=("g",))
def get_config(c: common.Config, task: str, size: str) -> None:
    ava_v22.get_config.values(c, task, size)
