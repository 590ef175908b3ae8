"""VideoMAE V2 on UCF101 after Kinetics-710, ViT-g: the released script (arXiv 2303.16727).

It starts from `videomaev2_k710`, with a new head.
Published: 99.6 % top-1 (paper, released weights), 5 segments x 3 crops.
The authors used 8 GPUs.
"""

from configs import common


@common.recipe(tasks=common.LABELLED)
def get_config(c: common.Config, task: str, size: str) -> None:
    c.init_from = "runs/videomaev2_k710_g_finetune"
    c.data.num_classes, c.data.fetch = 101, "ucf101/1"
    common.videomaev2_finetuning(c, "g")
    c.model.update(drop_path=0.35, head_dropout=0.5)
    c.optim.update(base_lr=1e-3, layer_decay=0.9)
    c.train.update(batch_size=24, epochs=50.0)
