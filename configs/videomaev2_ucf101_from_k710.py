"""VideoMAE V2 on UCF101 after Kinetics-710, ViT-g: the released script (arXiv 2303.16727).

    python main.py --config configs/videomaev2_ucf101_from_k710.py

It starts from `videomaev2_k710`, with a new head.
Published: 99.6 % top-1 (paper, released weights), 5 segments x 3 crops.
Cost: all 2048 tokens, 2543 GMAC a view; the authors used 8 GPUs.
"""

from configs import common


def recipe(num_classes: int) -> common.Config:
    """Fine-tuning on a small data set, not yet named."""
    c = common.get_config()
    c.data.num_classes = num_classes
    common.videomaev2_finetuning(c, "g")
    c.model.update(drop_path=0.35, head_dropout=0.5)
    c.optim.update(base_lr=1e-3, layer_decay=0.9)
    c.train.update(batch_size=24, epochs=50.0)
    return c


def get_config(argument: str = "finetune") -> common.Config:
    common.variant(argument, tasks=common.LABELLED)
    c = recipe(num_classes=101)
    c.name, c.data.fetch = "videomaev2_ucf101_from_k710", "ucf101/1"
    return common.finish(c, argument, common.LABELLED, "videomaev2_k710_g_finetune")
