"""VideoMAE on Kinetics-400, 1600 epochs: the released scripts (arXiv 2203.12602, NeurIPS 2022).

Published: S 79.0, B 81.5, L 85.2, H 86.6 % top-1 (released weights), 5 segments x 3 crops.
The decoders of L and H have 12 blocks, as in the scripts. The authors used 32 to 64 GPUs.
"""

from configs import common

PRETRAIN_BATCH = {"S": 1024, "B": 2048, "L": 512, "H": 1024}
FINETUNE = {
    "B": common.script(5e-4, 384, 75.0),
    "S": common.script(5e-4, 384, 150.0),
    "L": common.script(2e-3, 128, 35.0),
    "H": common.script(1e-3, 512, 50.0, drop_path=0.2, head_dropout=0.5, min_lr=1e-5),
}


@common.recipe(sizes=tuple(FINETUNE))
def get_config(c: common.Config, task: str, size: str) -> None:
    c.data.num_classes = 400
    c.model.update(size=size, remat="full" if size == "H" else "none")
    if task == "pretrain":
        c.mask.name = "tube"
        c.model.decoder_depth = 12 if size in ("L", "H") else 4
        c.optim.base_lr = 1.5e-4
        c.train.update(batch_size=PRETRAIN_BATCH[size], epochs=1600.0)
    else:
        common.finetuning_on_all_tokens(c)
        c.data.repeats = 2
        c.update(FINETUNE[size])
