"""EVEREST on Something-Something V2, ViT-B (arXiv 2211.10636, ICML 2024); no script was released.

Published: 64.6 % top-1 (a leaderboard alone; size not stated, 200 epochs presumed).
Chosen here: as `everest_k400`, with VideoMAE's 800-epoch schedule of fine-tuning, 2 segments x 3
crops.
"""

from configs import common


@common.recipe()
def get_config(c: common.Config, task: str, size: str) -> None:
    if task == "pretrain":
        c.optim.base_lr = 1.5e-4
        c.train.update(batch_size=512, epochs=200.0)
    else:
        common.finetuning_on_moving_tokens(c)
        c.optim.base_lr = 5e-4
        c.train.update(batch_size=512, epochs=50.0)
    common.ssv2(c, task)
