"""Tubes that bend towards motion, after MGMAE, on Something-Something V2, ViT-B (arXiv 2308.10794).

Published: 71.0 % top-1 after 800 epochs, 72.3 % after 2400, for MGMAE (ICCV 2023), whose masks
follow RAFT's optical flow and show 19 tokens a slot; these do without flow and show 20.
Batch, repeats, rate and epochs are MGMAE's, 200 epochs of 4 clips; the warm-up and the
fine-tuning, VideoMAE's after 800 epochs with 2 segments x 3 crops, are choices.
"""

from configs import common, videomae_ssv2_800


@common.recipe()
def get_config(c: common.Config, task: str, size: str) -> None:
    videomae_ssv2_800.get_config.values(c, task, "")
    if task == "pretrain":
        c.data.repeats = 4
        c.mask.name = "motion_tube"
        c.optim.update(base_lr=1e-3, warmup_epochs=10.0)
        c.train.update(batch_size=384, epochs=200.0)
