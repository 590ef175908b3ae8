"""The demo: masked pre-training against training from scratch on moving shapes, on a laptop CPU.

    python main.py --config configs/demo.py             # pre-train, fine-tune, and from scratch
    python main.py --config configs/demo.py:compare     # three seeds, uniform masking beside it
    python main.py --config configs/demo.py:strategies  # all of them: configs/strategies.py
    python main.py --config configs/demo.py:long        # idle videos, with and without selection

`:pretrain`, `:finetune`, `:evaluate` and `:smoke` are single runs with the values of the first.

A clip is 8 x 4 x 4 = 128 tokens, of which 15 % are visible, 19 to EVEREST and 20 to uniform
masking; EVEREST decodes 32 moving tokens, uniform masking all 108 that are hidden. Equal cost means
equally many multiplications in training.
"""

from typing import Any

from configs import common, strategies

STEPS = 1600
"""Of pre-training with EVEREST; uniform masking gets as many as cost the same."""

# Values of each strategy, and the cost of a step in steps of EVEREST (`Task.macs`), which a test
# computes again.
MASKS: dict[str, tuple[dict[str, Any], float]] = {
    "everest": ({"name": "everest", "keep_ratio": 0.4, "mask_ratio": 0.85}, 1.0),
    "uniform": ({"name": "uniform", "mask_ratio": 0.85}, 1.4432),
}


# Fine-tuning, as it differs from pre-training. From scratch a lower rate does better.
FINETUNE: dict[str, Any] = {
    "task": "finetune",
    "mask": {"keep_ratio": 0.3, "mask_ratio": 0.7},
    "optim": {"b2": 0.999, "smoothing": 0.1, "layer_decay": 0.9, "base_lr": 1.6e-2},
    "model": {"drop_path": 0.1},
    "train": {"batch_size": 32, "steps": 300, "val_every": 150},
}
SCRATCH = {"optim": {**FINETUNE["optim"], "layer_decay": 1.0, "base_lr": 8e-3}}
# Of 192 frames 20 or 40 are eventful. 48 are decoded and frame selection keeps 16 of them, or 16
# are decoded.
SPREAD = {"data": {"num_candidates": 0}}


def get_config(argument: str = "") -> common.Config:
    kind, _, words = argument.partition(",")
    if kind == "strategies":
        return strategies.get_config(words)
    c = common.get_config()
    c.name = "demo"
    c.synthetic.update(num_pretrain=3000, num_train=384, num_val=64, num_test=640)
    c.data.update(num_classes=8, image_size=32, frame_stride=1, cache_gb=1.0)
    c.model.update(size="Ti", width=96, depth=4, heads=3, tubelet=(2, 8, 8))
    c.model.update(decoder_width=64, decoder_depth=1, decoder_heads=2)
    c.mask.update(MASKS["everest"][0])
    c.optim.update(base_lr=6e-3, min_lr=6e-5, warmup_epochs=4.0)
    c.train.update(batch_size=64, steps=STEPS, log_every=100, save_every=800, cpu_devices=2)
    c.eval.update(batch_size=32, num_segments=2, num_crops=1)
    arms = {
        "": compare(("everest",), steps=600),
        "compare": compare(("everest", "uniform"), seeds=(0, 1, 2)),
        "long": pair("selected", 0, {}, FINETUNE) | pair("spread", 0, SPREAD, FINETUNE | SPREAD),
    }
    if argument == "long":
        c.synthetic.update(num_pretrain=1024, num_test=320, long=192)
        c.data.update(sampling="spread", num_candidates=48, keep_ratio=0.1, cache_gb=1.5)
    if argument in arms:
        c.name = f"demo_{argument}" if argument else "demo"
        c.stages = common.Config(arms[argument], sort_keys=False)
        return c
    try:
        task = common.variant(argument)["task"]
    except ValueError as error:
        raise ValueError(f"{error}; or strategies{', '.join(arms)}") from error
    if task != "pretrain":
        c.update(FINETUNE)
    return common.finish(c, argument)


def compare(
    names: tuple[str, ...], seeds: tuple[int, ...] = (0,), steps: int = 300
) -> dict[str, Any]:
    """Stages of every strategy and seed, and from scratch.

    Few steps of fine-tuning tell strategies apart; twice as many take EVEREST to its plateau.
    """
    stages: dict[str, Any] = {}
    tuned = {**FINETUNE, "train": {**FINETUNE["train"], "steps": steps}}
    for seed, name in [(s, n) for s in seeds for n in names]:
        mask, cost = MASKS[name]
        before = {"mask": mask, "train": {"steps": round(STEPS / cost)}}
        stages |= pair(name, seed, before, tuned)
    for seed in seeds:
        stages[f"scratch_seed{seed}"] = tuned | SCRATCH | {"arm": "scratch", "seed": seed}
    return stages


def pair(arm: str, seed: int, pretrain: dict[str, Any], finetune: dict[str, Any]) -> dict[str, Any]:
    """Two stages (`mvm/sweep.py`): a pre-training, and the fine-tuning that starts from it."""
    name = f"{arm}_seed{seed}"
    return {
        f"pretrain_{name}": pretrain | {"seed": seed, "arm": f"pretrain_{arm}"},
        name: finetune | {"seed": seed, "arm": arm, "init_from": f"pretrain_{name}"},
    }
