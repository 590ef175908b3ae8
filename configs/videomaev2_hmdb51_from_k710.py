"""VideoMAE V2 on HMDB51 after Kinetics-710, ViT-g: the released script (arXiv 2303.16727).

It starts from `videomaev2_k710`, with a new head.
Published: 88.1 % top-1 (paper, released weights), 5 segments x 3 crops.
The authors used 8 GPUs.
"""

from configs import common, videomaev2_ucf101_from_k710


@common.recipe(tasks=common.LABELLED)
def get_config(c: common.Config, task: str, size: str) -> None:
    videomaev2_ucf101_from_k710.get_config.values(c, task, "")
    c.data.update(num_classes=51, fetch="", frame_stride=2)
    c.optim.base_lr = 5e-4
    c.train.epochs = 15.0
