"""VideoMAE V2 on Something-Something V2: the released scripts (arXiv 2303.16727, CVPR 2023).

It starts from `videomaev2_hybrid`: Kinetics-710 in between makes it worse, say the authors.
Published: B 71.2, L 75.7, H 76.8, g 77.0 % top-1 (paper), 2 segments x 3 crops.
The paper's table has 10 epochs, drop path 0.35 and dropout 0.5 for g.
"""

from configs import common

SCRIPTS = {
    "B": common.script(2e-3, 256, 25.0, layer_decay=0.65),
    "L": common.script(5e-4, 192, 20.0, drop_path=0.2),
    "H": common.script(5e-4, 128, 20.0, drop_path=0.2, layer_decay=0.8),
    "g": common.script(3e-4, 96, 20.0, drop_path=0.25, layer_decay=0.9),
}


@common.recipe(tasks=common.LABELLED, sizes=tuple(SCRIPTS))
def get_config(c: common.Config, task: str, size: str) -> None:
    c.init_from = f"runs/videomaev2_hybrid_{size}"
    common.videomaev2_finetuning(c, size)
    c.update(SCRIPTS[size])
    common.ssv2(c, task)
    c.data.sampling = "segments_v2"
