"""THUMOS14 by ActionFormer (arXiv 2202.07925) on features of VideoMAE (docs/detection.md).

    python main.py --config configs/thumos14.py:B --config.data.root=FEATURES \
        --config.data.train=thumos14.json --config.data.test=thumos14.json

The size is that of the encoder that made the features. Values are those of the released
`thumos_i3d.yaml`; VideoMAE V2 (arXiv 2303.16727) reports 69.6 average mAP with its g.
"""

from configs import common

COLUMNS = {"g": 1408, "H": 1280, "L": 1024, "B": 768, "S": 384}


@common.recipe(tasks=("localise", "evaluate"), sizes=tuple(COLUMNS))
def get_config(c: common.Config, task: str, size: str) -> None:
    common.actionformer(c, 1e-4, batch_size=2, columns=COLUMNS[size])
    c.model.width, c.train.epochs = 512, 35.0
