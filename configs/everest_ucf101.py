"""EVEREST on UCF101, ViT-B: the released scripts (arXiv 2211.10636, ICML 2024).

Published: 93.4 % top-1 (paper), 93.7 % (released weights), 5 segments x 3 crops, split 1.
156 visible + 314 decoded of 1568 tokens; the paper used 8 GPUs.
"""

from configs import common


@common.recipe()
def get_config(c: common.Config, task: str, size: str) -> None:
    c.data.num_classes, c.data.fetch = 101, "ucf101/1"
    if task != "pretrain":
        common.finetuning_on_moving_tokens(c)
        c.train.epochs = 100.0
