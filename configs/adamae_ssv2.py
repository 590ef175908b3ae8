"""AdaMAE on Something-Something V2, ViT-B: the released scripts (arXiv 2211.09120, CVPR 2023).

Published: 70.04 % top-1 (paper), 2 segments x 3 crops, logits averaged over views as released.
Some of the authors' earlier scripts have 2400 epochs: how 70.04 came about is not certain.
"""

from configs import common, videomae_ssv2_800


@common.recipe()
def get_config(c: common.Config, task: str, size: str) -> None:
    videomae_ssv2_800.get_config.values(c, task, "")
    c.eval.average = "logits"
    if task == "pretrain":
        c.mask.update(name="adamae", mask_ratio=0.95)
