"""Actions of people in AVA-Kinetics (arXiv 2005.00214), trained on both, tested on AVA v2.2.

    python main.py --config configs/ava_kinetics.py:g --config.init_from=WEIGHTS \
        --config.data.root=videos --config.data.train=both_train.csv ...    # as ava_v22

`both_train.csv` is AVA's csv and that of Kinetics, one after the other; `videos` has AVA's movies
and Kinetics' files, `ID_000012_000022.mp4`, below it.
Published: V2's g 43.9 frame mAP (arXiv 2303.16727). H is InternVideo's setting, without a number.
Cost: as ava_v22.
"""

from configs import common

SCRIPTS = {
    "g": common.script(3e-4, 128, 10.0, drop_path=0.3, layer_decay=0.9, warmup_epochs=2.0),
    "H": common.script(2.5e-4, 128, 30.0, drop_path=0.2, layer_decay=0.8),
}


def values(c: common.Config, task: str, size: str) -> None:
    common.detection(c, size)
    c.update(SCRIPTS[size])


get_config = common.Recipe(__file__, values, tasks=common.DETECTED, sizes=tuple(SCRIPTS))
