"""EVEREST on HMDB51, ViT-B: the released scripts (arXiv 2211.10636, ICML 2024).

Published: 65.8 % top-1 (early versions of the paper; a later aggregator lists 68.1 %),
10 segments x 3 crops. The paper used 8 GPUs.
"""

from configs import common


@common.recipe()
def get_config(c: common.Config, task: str, size: str) -> None:
    c.data.num_classes = 51
    c.data.frame_stride = 2
    c.eval.num_segments = 10
    if task == "pretrain":
        c.train.epochs = 4800.0
    else:
        common.finetuning_on_moving_tokens(c)
        c.train.epochs = 50.0
