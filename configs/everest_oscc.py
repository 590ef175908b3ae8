"""EVEREST on Ego4D object state change, ViT-B (arXiv 2211.10636, ICML 2024); no script released.

Published: 76.2 % accuracy (paper, by a summary of it), two classes.
Information-intensive frame selection: of 24 frames spread over the whole video (alpha = 1.5), 8
of 12 pairs are drawn in proportion to their moving tokens; at test time without chance. All other
values are choices: pre-training as `everest_ssv2`, fine-tuning as `everest_ucf101`.
"""

from configs import common


@common.recipe()
def get_config(c: common.Config, task: str, size: str) -> None:
    c.data.update(num_classes=2, sampling="spread", num_candidates=24)
    c.eval.num_segments = 1
    if task == "pretrain":
        c.optim.base_lr = 1.5e-4
        c.train.update(batch_size=512, epochs=200.0)
    else:
        common.finetuning_on_moving_tokens(c)
        c.train.epochs = 100.0
