"""The demo: EVEREST against training from scratch on moving shapes, minutes on a laptop CPU.

    python main.py --config configs/demo.py             # pre-train, fine-tune, and from scratch
    python main.py --config configs/demo.py:compare     # three seeds, uniform masking beside it

`:pretrain`, `:finetune`, `:evaluate` and `:smoke` are single runs with the same values.
"""

from typing import Any

import ml_collections

from configs import common

# Fine-tuning, as it differs from pre-training. From scratch a lower rate does better.
FINETUNE: dict[str, Any] = {
    "task": "finetune",
    "mask": {"keep_ratio": 0.6, "mask_ratio": 0.4},
    "optim": {"b2": 0.999, "smoothing": 0.1, "layer_decay": 0.9, "base_lr": 1.6e-2},
    "model": {"drop_path": 0.1},
    "train": {"batch_size": 32, "steps": 400, "val_every": 200},
}
SCRATCH = {**FINETUNE, "optim": {**FINETUNE["optim"], "layer_decay": 1.0, "base_lr": 8e-3}}
# Uniform masking decodes all masked tokens, 1.44 times the work: 1,109 steps cost as much.
ARMS: dict[str, Any] = {
    "everest": {},
    "uniform": {"mask": {"name": "uniform"}, "train": {"steps": 1109}},
}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    c = common.get_config()
    c.name = "demo"
    c.synthetic.update(num_pretrain=3000, num_train=384, num_val=64, num_test=640)
    c.data.update(num_classes=8, image_size=32, frame_stride=1, cache_gb=1.0)
    c.model.update(size="Ti", width=96, depth=4, heads=3, tubelet=(2, 8, 8))
    c.model.update(decoder_width=64, decoder_depth=1, decoder_heads=2)
    c.mask.update(name="everest", keep_ratio=0.4, mask_ratio=0.85)
    c.optim.update(base_lr=6e-3, min_lr=6e-5, warmup_epochs=4.0)
    c.train.update(batch_size=64, steps=1600, log_every=100, save_every=800, cpu_devices=2)
    c.eval.update(batch_size=32, num_segments=2, num_crops=1)
    if argument == "compare":
        c.name = "demo_compare"
        c.stages = stages(tuple(ARMS), seeds=(0, 1, 2))
    elif argument == "":
        c.stages = stages(("everest",), seeds=(0,))
    else:
        if common.variant(argument).task != "pretrain":
            c.update(FINETUNE)
        common.finish(c, argument)
    return c


def stages(arms: tuple[str, ...], seeds: tuple[int, ...]) -> ml_collections.ConfigDict:
    """Pre-training and fine-tuning of every arm and seed, and fine-tuning from scratch."""
    out: dict[str, Any] = {}
    for seed in seeds:
        for arm in arms:
            pretrain = f"pretrain_{arm}_seed{seed}"
            out[pretrain] = {**ARMS[arm], "seed": seed}
            out[f"{arm}_seed{seed}"] = {**FINETUNE, "seed": seed, "init_from": pretrain}
        out[f"scratch_seed{seed}"] = {**SCRATCH, "seed": seed}
    return ml_collections.ConfigDict(out)
