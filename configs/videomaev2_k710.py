"""VideoMAE V2's post-pre-training on Kinetics-710: the released scripts (arXiv 2303.16727).

It starts from `videomaev2_hybrid` and is what the recipes named `from_k710` start from.
Published: g 83.8 % (released weights), B 79.3 % (the authors' InternVideo), 5 segments x 3 crops.
The paper's table has batch 128 for g.
"""

from configs import common, videomaev2_k400

SCRIPTS = {
    **{size: videomaev2_k400.SCRIPTS[size] for size in ("B", "H")},
    "g": common.script(
        1e-3, 96, 35.0, drop_path=0.3, layer_decay=0.9, weight_decay=0.1, clip_norm=5.0
    ),
}


@common.recipe(tasks=common.LABELLED, sizes=tuple(SCRIPTS))
def get_config(c: common.Config, task: str, size: str) -> None:
    c.init_from = f"runs/videomaev2_hybrid_{size}"
    c.data.num_classes = 710
    common.videomaev2_finetuning(c, size)
    c.update(SCRIPTS[size])
