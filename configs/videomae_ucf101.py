"""VideoMAE on UCF101, ViT-B: the released scripts (arXiv 2203.12602, NeurIPS 2022).

Published: 91.3 % top-1, 5 segments x 3 crops, split 1, mask ratio 0.75 (90.8 % at 0.9).
The authors used 8 GPUs.
"""

from configs import common


@common.recipe()
def get_config(c: common.Config, task: str, size: str) -> None:
    c.data.num_classes, c.data.fetch = 101, "ucf101/1"
    if task == "pretrain":
        c.mask.update(name="tube", mask_ratio=0.75)
        c.optim.base_lr = 3e-4
    else:
        common.finetuning_on_all_tokens(c)
        c.data.repeats = 2
        c.model.update(drop_path=0.2, head_dropout=0.5)
        c.optim.update(base_lr=5e-4, min_lr=1e-5, layer_decay=0.7)
        c.train.epochs = 100.0
