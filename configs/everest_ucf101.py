"""EVEREST on UCF101, ViT-B: the released scripts (arXiv 2211.10636, ICML 2024).

    python main.py --config configs/everest_ucf101.py --config.data.train=train.txt

Published: 93.4 % top-1 (paper), 93.7 % (released weights), 5 segments x 3 crops, split 1.
Cost: 156 visible + 314 decoded of 1568 tokens, 19.8 GMAC a clip; the paper used 8 GPUs.
"""

from configs import common


def values(c: common.Config, task: str, size: str = "") -> None:
    c.data.num_classes, c.data.fetch = 101, "ucf101/1"
    if task == "pretrain":
        c.train.save_every = 4900  # 100 epochs of 49 steps
    else:
        common.finetuning_on_moving_tokens(c)
        c.train.epochs = 100.0
        c.train.save_every = 370  # 5 epochs of 74 steps


get_config = common.Recipe(__file__, values)
