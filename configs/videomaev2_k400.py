"""VideoMAE V2 on Kinetics-400 without Kinetics-710: the released scripts (arXiv 2303.16727).

It starts from `videomaev2_hybrid`.
Published: B 81.5, L 85.4, H 86.9, g 87.2 % top-1 (paper), 5 segments x 3 crops.
"""

from configs import common

SCRIPTS = {
    "B": common.script(7e-4, 512, 90.0),
    "L": common.script(2e-3, 192, 35.0, drop_path=0.2),
    "H": common.script(1e-3, 128, 40.0, drop_path=0.2, head_dropout=0.5, layer_decay=0.8),
    "g": common.script(1e-3, 192, 30.0, drop_path=0.2, layer_decay=0.9, weight_decay=0.1),
}


@common.recipe(tasks=common.LABELLED, sizes=tuple(SCRIPTS))
def get_config(c: common.Config, task: str, size: str) -> None:
    c.init_from = f"runs/videomaev2_hybrid_{size}"
    c.data.num_classes = 400
    common.videomaev2_finetuning(c, size)
    c.update(SCRIPTS[size])
