"""What each masking strategy is worth for its cost, on moving shapes and two cores.

    python main.py --config configs/demo.py:strategies        # every strategy, budgets, seeds
    python main.py --config configs/demo.py:strategies,quick  # one seed, without the largest budget
    python main.py --config configs/demo.py:strategies,rates  # how the learning rates are chosen
    python main.py --config configs/demo.py:strategies,pan    # the same where the camera moves, too

Every pre-training is judged by an attentive probe and nearest neighbours on frozen features, and by
fine-tuning until validation stops improving; so are random weights. The command may be started
twice, on a core each (`taskset -c 0`): both share the runs (docs/runs.md).

A clip is 8 x 8 x 8 = 512 tokens of 2 x 4 x 4 pixels. Ratios are those of the papers, scaled to a
smaller grid: 30 % of the tokens are visible where VideoMAE shows 10 %, two slots of eight in frame
masking, and 15 % to AdaMAE, whose paper shows half as many. EVEREST decodes 51 moving tokens, dual
masking 256, the others all that is hidden. Equal cost means equally many floating-point operations
in training.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from configs import common

STEPS = 3200
"""Of pre-training with EVEREST at cost 1; the other strategies get as many as cost the same."""
SEEDS = {1.0: range(5), 0.25: range(3), 3.0: range(3)}  # By cost; the claims are of the first.
QUICK = {1.0: range(1), 0.25: range(1)}
FACTORS = (0.4, 1.0, 2.5)
"""Of the learning rates that `rates` tries, around those below."""

# Values of each strategy, the cost of a step in steps of EVEREST (`Task.work`), which a test
# computes again, and its learning rate per 256 videos.
MASKS: dict[str, tuple[dict[str, Any], float, float]] = {
    "everest": ({"name": "everest", "keep_ratio": 0.4, "mask_ratio": 0.7}, 1.0, 0.15),
    "uniform": ({"name": "uniform", "mask_ratio": 0.7}, 1.5393, 0.15),
    "tube": ({"name": "tube", "mask_ratio": 0.7}, 1.5756, 0.06),
    "frame": ({"name": "frame", "mask_ratio": 0.75}, 1.3908, 0.15),
    "dual": ({"name": "dual", "mask_ratio": 0.7, "decoder_ratio": 0.5}, 1.3631, 0.06),
    "motion_tube": ({"name": "motion_tube", "mask_ratio": 0.7}, 1.5975, 0.15),
    "adamae": ({"name": "adamae", "mask_ratio": 0.85}, 2.4302, 0.06),
}

# Judges, as they differ from pre-training. All see the 102 tokens that move most in fine-tuning.
TUNED: dict[str, Any] = {
    "task": "finetune",
    "mask": {"name": "everest", "keep_ratio": 0.2, "mask_ratio": 0.8},
    "optim": {"b2": 0.999, "smoothing": 0.1, "base_lr": 8e-3},
    "model": {"drop_path": 0.1},
    "train": {
        "batch_size": 16,
        "steps": 1200,
        "val_every": 100,
        "keep_best": "val_top1",
        "patience": 5,
    },
}
PROBE: dict[str, Any] = {
    "task": "probe",
    "options": {"head": "attentive", "rates": "1e-2,3e-3", "decays": "0.05"},
    "train": {"batch_size": 8, "steps": 0, "epochs": 30.0},
    "eval": {"num_segments": 1},
}
JUDGES = {"probe": PROBE, "finetuned": TUNED}
WORDS = ("quick", "rates", "pan")


def get_config(argument: str = "") -> common.Config:
    words = [word for word in argument.split(",") if word]
    if unknown := {*words} - {*WORDS}:
        raise ValueError(f"{', '.join(unknown)} is unknown; choose {', '.join(WORDS)}")
    c = common.get_config()
    c.name = "_".join(["demo_strategies", *words])
    c.synthetic.update(num_pretrain=3000, num_train=384, num_val=128, num_test=320)
    c.data.update(num_classes=8, image_size=32, frame_stride=1, crop="center")
    c.data.update(cache_gb=1.0, threads=1, workers=0)
    c.model.update(size="Ti", width=64, depth=4, heads=2, tubelet=(2, 4, 4), targets="pixels")
    c.model.update(decoder_width=48, decoder_depth=1, decoder_heads=2, positions="sincos_3d")
    c.optim.update(base_lr=0.15, min_lr=1.5e-3, warmup_steps=40)
    c.train.update(batch_size=4, steps=STEPS, log_every=200, save_every=2000)
    c.eval.update(batch_size=32, num_segments=2, num_crops=1)
    c.report.clips = 0
    c.synthetic.pan = 0.03 if "pan" in words else 0.0
    stages: dict[str, Any] = {}
    if "rates" in words:
        for name, factor in itertools.product(MASKS, FACTORS):
            stages |= arm(name, 1.0, 9, ["probe"], factor)
    else:
        seeds = QUICK if "quick" in words else SEEDS
        for seed in seeds[1.0]:
            stages |= nothing(seed)
        for cost, of_cost in seeds.items():
            for seed, name in itertools.product(of_cost, MASKS):
                stages |= arm(name, cost, seed, [*JUDGES])
    c.stages = common.Config(stages, sort_keys=False)
    return c


def arm(name: str, cost: float, seed: int, judges: Sequence[str], factor: float = 1.0) -> Any:
    """Stages (`mvm/sweep.py`): a pre-training, and those that judge it."""
    mask, of_step, rate = MASKS[name]
    said = name if factor == 1.0 else f"{name}_x{factor:g}"
    told: dict[str, Any] = {"arm": said, "cost": cost, "seed": seed}
    run = f"{said}_{cost:g}_seed{seed}".replace(".", "")
    steps = round(STEPS * cost / of_step)
    optim = {"base_lr": rate * factor, "warmup_steps": round(0.05 * steps)}
    stages = {run: told | {"mask": mask, "train": {"steps": steps}, "optim": optim}}
    for judge in judges:
        stages[f"{run}_{judge}"] = JUDGES[judge] | told | {"judge": judge, "init_from": run}
    return stages


def nothing(seed: int) -> Any:
    """The judges of no pre-training: random weights are probed, and trained from scratch."""
    told: dict[str, Any] = {"arm": "none", "cost": 0.0, "seed": seed}
    name = f"none_seed{seed}"
    return {f"{name}_{judge}": how | told | {"judge": judge} for judge, how in JUDGES.items()}
