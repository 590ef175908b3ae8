"""VideoMAE V2 on Kinetics-400 after Kinetics-710, ViT-g: the released script (arXiv 2303.16727).

It starts from `videomaev2_k710` and keeps 400 rows of its head, by the list of the release.
Published: 88.5 % top-1 (paper), 88.4 % (released weights), 5 segments x 3 crops.
The paper's table has batch 32, drop path 0.3, weight decay 0.05, no warm-up and dropout 0.5.
"""

from configs import common


@common.recipe(tasks=common.LABELLED)
def get_config(c: common.Config, task: str, size: str) -> None:
    c.init_from = "runs/videomaev2_k710_g_finetune"
    c.data.num_classes = 400
    common.videomaev2_finetuning(c, "g")
    c.model.drop_path = 0.25
    c.optim.update(base_lr=1e-5, warmup_epochs=1.0, layer_decay=0.9, weight_decay=0.1)
    c.train.update(batch_size=96, epochs=3.0)
    if task == "finetune":
        c.init_head_rows = "label_710to400.json"
