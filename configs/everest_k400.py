"""EVEREST on Kinetics-400 (arXiv 2211.10636, ICML 2024); no script was released.

Published: no digits known; VideoMAE's or slightly above for S, B and L after 200 epochs.
Chosen here: VideoMAE's learning rate with the batch of one node of 8 GPUs, and its schedule of
fine-tuning with EVEREST's masks, no mixing and one clip of a video. The paper's table of costs fits
156 + 471 tokens instead of 156 + 314, `--config.mask.keep_ratio=0.4`: S 6.3, B 21.5, L 60.7 GMAC.
"""

from configs import common, videomae_k400


@common.recipe(sizes=("B", "S", "L"))
def get_config(c: common.Config, task: str, size: str) -> None:
    c.data.num_classes = 400
    c.model.size = size
    if task == "pretrain":
        c.optim.base_lr = 1.5e-4
        c.train.update(batch_size=512, epochs=200.0)
    else:
        common.finetuning_on_moving_tokens(c)
        c.update(videomae_k400.FINETUNE[size])
