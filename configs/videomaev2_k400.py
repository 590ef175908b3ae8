"""VideoMAE V2 on Kinetics-400 without Kinetics-710: the released scripts (arXiv 2303.16727).

    python main.py --config configs/videomaev2_k400.py:B

It starts from `videomaev2_hybrid`.
Published: B 81.5, L 85.4, H 86.9, g 87.2 % top-1 (paper), 5 segments x 3 crops.
Cost: all 1568 tokens, B 180.3, L 596.8, H 1191 GMAC a view; g all 2048, 2543 GMAC.
"""

from configs import common

SIZES = ("B", "L", "H", "g")
SCRIPTS = {
    "B": {"optim": {"base_lr": 7e-4}, "train": {"batch_size": 512, "epochs": 90.0}},
    "L": {
        "model": {"drop_path": 0.2},
        "optim": {"base_lr": 2e-3},
        "train": {"batch_size": 192, "epochs": 35.0},
    },
    "H": {
        "model": {"drop_path": 0.2, "head_dropout": 0.5},
        "optim": {"base_lr": 1e-3, "layer_decay": 0.8},
        "train": {"batch_size": 128, "epochs": 40.0},
    },
    "g": {
        "model": {"drop_path": 0.2},
        "optim": {"base_lr": 1e-3, "layer_decay": 0.9, "weight_decay": 0.1},
        "train": {"batch_size": 192, "epochs": 30.0},
    },
}


def get_config(argument: str = "finetune") -> common.Config:
    _, _, size = common.variant(argument, SIZES, common.LABELLED)
    c = common.get_config()
    c.name = f"videomaev2_k400_{size}"
    c.data.num_classes = 400
    common.videomaev2_finetuning(c, size)
    c.update(SCRIPTS[size])
    return common.finish(c, argument, common.LABELLED, f"videomaev2_hybrid_{size}")
