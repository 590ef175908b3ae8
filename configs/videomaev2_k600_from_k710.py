"""VideoMAE V2 on Kinetics-600 after Kinetics-710, ViT-g: the released script (arXiv 2303.16727).

    python main.py --config configs/videomaev2_k600_from_k710.py

It starts from `videomaev2_k710` and keeps 600 rows of its head, by the list of the release.
Published: 88.8 % top-1 (paper, released weights), 5 segments x 3 crops.
Script against paper: as `videomaev2_k400_from_k710`, and here, too, the script.
Cost: all 2048 tokens, 2543 GMAC a view.
"""

from configs import common, videomaev2_k400_from_k710


def get_config(argument: str = "finetune") -> common.Config:
    task, *_ = common.variant(argument, tasks=common.LABELLED)
    c = videomaev2_k400_from_k710.recipe(num_classes=600)
    c.name = "videomaev2_k600_from_k710"
    if task == "finetune":
        c.init_head_rows = "label_710to600.json"
    return common.finish(c, argument, common.LABELLED, "videomaev2_k710_g_finetune")
