"""VideoMAE V2 on Kinetics-600, ViT-H, without Kinetics-710: the released script (arXiv 2303.16727).

It starts from `videomaev2_hybrid`.
Published: 88.3 % top-1 (paper), 5 segments x 3 crops, perhaps by way of Kinetics-710.
The script says one GPU, 4 videos; here 128 of them, as in its sisters for K710 and K400.
"""

from configs import common, videomaev2_k400


@common.recipe(tasks=common.LABELLED)
def get_config(c: common.Config, task: str, size: str) -> None:
    c.init_from = "runs/videomaev2_hybrid_H"
    c.data.num_classes = 600
    common.videomaev2_finetuning(c, "H")
    c.update(videomaev2_k400.SCRIPTS["H"])
