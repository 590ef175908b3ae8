"""VideoMAE V2 on Kinetics-600 after Kinetics-710, ViT-g: the released script (arXiv 2303.16727).

As `videomaev2_k400_from_k710`, with 600 rows of the head.
Published: 88.8 % top-1 (paper, released weights), 5 segments x 3 crops.
"""

from configs import common, videomaev2_k400_from_k710


@common.recipe(tasks=common.LABELLED)
def get_config(c: common.Config, task: str, size: str) -> None:
    videomaev2_k400_from_k710.get_config.values(c, task, "")
    c.data.num_classes = 600
    if task == "finetune":
        c.init_head_rows = "label_710to600.json"
