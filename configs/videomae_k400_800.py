"""VideoMAE on Kinetics-400, ViT-B, 800 epochs: the released scripts (arXiv 2203.12602).

Published: 80.0 % top-1 (paper, released weights), 81.0 % with two augmentations of every clip in
fine-tuning, which is `--config.data.repeats=2`; 5 segments x 3 crops. The authors used 64 GPUs.
"""

from configs import common, videomae_k400


@common.recipe()
def get_config(c: common.Config, task: str, size: str) -> None:
    videomae_k400.get_config.values(c, task, "B")
    if task == "pretrain":
        c.train.epochs = 800.0
    else:
        c.data.repeats = 1
        c.optim.base_lr = 1e-3
        c.train.update(batch_size=512, epochs=100.0)
