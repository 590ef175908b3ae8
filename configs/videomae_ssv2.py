"""VideoMAE on Something-Something V2, 2400 epochs: the released scripts (arXiv 2203.12602).

Published: S 66.8, B 70.8 % top-1 (released weights), 2 segments x 3 crops.
The script for S says 32 GPUs in its comment and 64 in its flags; here the flags, batch 2048.
"""

from configs import common


@common.recipe(sizes=("B", "S"))
def get_config(c: common.Config, task: str, size: str) -> None:
    c.model.size = size
    if task == "pretrain":
        c.mask.name = "tube"
        c.optim.base_lr = 1.5e-4
        c.train.update(batch_size=2048, epochs=2400.0)
    else:
        common.finetuning_on_all_tokens(c)
        c.data.repeats = 2
        c.optim.update(base_lr=5e-4, layer_decay=0.75)
        c.train.update(batch_size=384, epochs=30.0)
        if size == "S":
            c.optim.update(base_lr=1e-3, layer_decay=0.7)
            c.train.epochs = 40.0
    common.ssv2(c, task)
