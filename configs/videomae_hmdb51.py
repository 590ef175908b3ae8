"""VideoMAE on HMDB51, ViT-B (arXiv 2203.12602, NeurIPS 2022); no script was released.

Published: 62.6 % top-1 (paper; 61.1 % in an earlier version), 10 segments x 3 crops.
Epochs, batch, rate and stride as reported of the paper; all else is the released UCF101 recipe.
"""

from configs import common, videomae_ucf101


@common.recipe()
def get_config(c: common.Config, task: str, size: str) -> None:
    videomae_ucf101.get_config.values(c, task, "")
    c.data.update(num_classes=51, fetch="", frame_stride=2)
    c.eval.num_segments = 10
    c.train.epochs = 4800.0 if task == "pretrain" else 50.0
