"""EVEREST on HMDB51, ViT-B: the released scripts (arXiv 2211.10636, ICML 2024).

    python main.py --config configs/everest_hmdb51.py --config.data.train=train.txt

Published: 65.8 % top-1 (early versions of the paper; a later aggregator lists 68.1 %),
10 segments x 3 crops. Cost as for UCF101: 19.8 GMAC a clip; the paper used 8 GPUs.
"""

from configs import common


def values(c: common.Config, task: str, size: str = "") -> None:
    c.data.num_classes = 51
    c.data.frame_stride = 2
    c.eval.num_segments = 10
    if task == "pretrain":
        c.train.epochs = 4800.0
        c.train.save_every = 1800  # 100 epochs of 18 steps
    else:
        common.finetuning_on_moving_tokens(c)
        c.train.epochs = 50.0
        c.train.save_every = 135  # 5 epochs of 27 steps


get_config = common.Recipe(__file__, values)
