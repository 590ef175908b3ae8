"""The demo: EVEREST against training from scratch on moving shapes, minutes on a laptop CPU.

python main.py --config configs/demo.py             # pre-train, fine-tune, and from scratch
python main.py --config configs/demo.py:compare     # three seeds, uniform masking beside it
"""

from typing import Any

import ml_collections

from configs import common


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    c = common.get_config()
    c.name = "demo"
    c.synthetic.update(num_pretrain=3000, num_train=384, num_val=64, num_test=640)
    c.data.update(num_classes=8, image_size=32, frame_stride=1, cache_gb=1.0)
    c.model.update(size="Ti", width=96, depth=4, heads=3, tubelet=(2, 8, 8))
    c.model.update(decoder_width=64, decoder_depth=1, decoder_heads=2)
    c.mask.update(name="everest", keep_ratio=0.4, mask_ratio=0.85)
    c.optim.update(base_lr=6e-3, min_lr=6e-5, warmup_epochs=4.0)
    c.train.update(batch_size=64, steps=2400, log_every=100, save_every=800, cpu_devices=2)
    c.eval.update(batch_size=32, num_segments=2, num_crops=1)
    arms = {"everest": {}, "uniform": {"mask": {"name": "uniform", "mask_ratio": 0.85}}}
    if argument == "compare":
        c.name = "demo_compare"
        c.stages = _stages(arms, seeds=(0, 1, 2))
    elif argument:
        common.finish(c, argument)
    else:
        c.stages = _stages({"everest": {}}, seeds=(0,))
    return c


def _stages(arms: dict, seeds: tuple[int, ...]) -> ml_collections.ConfigDict:
    """Pre-training and fine-tuning of every arm and seed, and fine-tuning from scratch."""
    finetune: dict[str, Any] = {
        "task": "finetune",
        "mask": {"keep_ratio": 0.6, "mask_ratio": 0.4},
        "optim": {"b2": 0.999, "smoothing": 0.1, "layer_decay": 0.9, "base_lr": 1.6e-2},
        "model": {"drop_path": 0.1},
        "train": {"batch_size": 32, "steps": 600, "val_every": 150},
    }
    out = {}
    for seed in seeds:
        for arm, changes in arms.items():
            out[f"pretrain_{arm}_seed{seed}"] = {"seed": seed, **changes}
            out[f"{arm}_seed{seed}"] = {
                **finetune,
                "seed": seed,
                "init_from": f"pretrain_{arm}_seed{seed}",
            }
        scratch = {**finetune["optim"], "layer_decay": 1.0, "base_lr": 8e-3}
        out[f"scratch_seed{seed}"] = {**finetune, "seed": seed, "optim": scratch}
    return ml_collections.ConfigDict(out)
