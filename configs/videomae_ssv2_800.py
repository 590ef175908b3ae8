"""VideoMAE on Something-Something V2, ViT-B, 800 epochs: the released scripts (arXiv 2203.12602).

Published: 69.6 % top-1 (paper, released weights), 2 segments x 3 crops. At the same length and
size: random masks 68.3, frame masks 61.5 (paper), which `--config.mask.name=uniform` and `frame`
with `--config.mask.mask_ratio=0.875` are. It took 19.5 h on 64 V100.
"""

from configs import common, videomae_ssv2


@common.recipe()
def get_config(c: common.Config, task: str, size: str) -> None:
    videomae_ssv2.get_config.values(c, task, "B")
    if task == "pretrain":
        c.train.epochs = 800.0
    else:
        c.data.repeats = 1
        c.train.update(batch_size=512, epochs=50.0)
