"""MAE-ST on Kinetics-400, ViT-L: the released commands (arXiv 2205.09113, NeurIPS 2022).

Published: 84.35 % top-1 (released weights, 400 epochs of 4 clips; the command has 100), 84.8 %
(paper, as VideoMAE V2 quotes it), 10 segments x 3 crops (7 x 3 in the paper).
Not as released: no class token, no bias between encoder and decoder, multi-scale crops, 4 clips of
one moment and of a fixed stride, ImageNet's colours, a fresh last norm in fine-tuning; the number
of GPUs is not known, here 128 videos, 512 clips, a step.
"""

from configs import common


@common.recipe()
def get_config(c: common.Config, task: str, size: str) -> None:
    c.data.num_classes = 400
    c.eval.num_segments = 10
    c.model.update(size="L", positions="separable")
    if task == "pretrain":
        c.data.update(flip=True, repeats=4)
        c.mask.name = "uniform"
        c.model.update(decoder_width=512, decoder_heads=16, targets="joint", target_frames=1)
        c.optim.update(base_lr=1.6e-3, min_lr=0.0, warmup_epochs=5.0, clip_norm=0.02)
        c.train.update(batch_size=128, epochs=100.0)
    else:
        common.finetuning_on_all_tokens(c)
        c.data.update(rand_augment="rand-m7-n2-mstd0.5-inc1", repeats=2)
        c.model.update(drop_path=0.2, head_dropout=0.3)
        c.optim.update(base_lr=4.8e-3, clip_norm=5.0)  # 2.4e-3 in the release, per 256 clips
        c.train.epochs = 50.0
