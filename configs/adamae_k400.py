"""AdaMAE on Kinetics-400, ViT-B: the released scripts (arXiv 2211.09120, CVPR 2023).

Published: 81.7 % top-1 (paper), 5 segments x 3 crops, logits averaged over views as released.
The scripts' batch, 2048, is VideoMAE's; the authors' own earlier scripts have 80 to 160.
"""

from configs import common


@common.recipe()
def get_config(c: common.Config, task: str, size: str) -> None:
    c.data.num_classes = 400
    c.eval.average = "logits"
    if task == "pretrain":
        c.mask.update(name="adamae", mask_ratio=0.95)
        c.optim.base_lr = 1.5e-4
        c.train.update(batch_size=2048, epochs=800.0)
    else:
        common.finetuning_on_all_tokens(c)
        c.optim.base_lr = 1e-3
        c.train.update(batch_size=512, epochs=100.0)
