"""The demo: what masked pre-training is worth for its cost, on moving shapes and two cores.

    python main.py --config configs/demo.py                   # EVEREST, tube masking and neither
    python main.py --config configs/demo.py:strategies        # every strategy, budget and seed
    python main.py --config configs/demo.py:strategies,quick  # one seed, no largest budget
    python main.py --config configs/demo.py:strategies,rates  # how rates and targets are chosen
    python main.py --config configs/demo.py:strategies,targets  # three with the targets of others
    python main.py --config configs/demo.py:strategies,pan    # where the camera moves, too
    python main.py --config configs/demo.py:long              # idle videos, frames selected or not
    python main.py --config configs/demo.py:boxes             # a detector: what each thing does

`:pretrain`, `:finetune`, `:evaluate` and `:smoke` are single runs with EVEREST.

Pre-trainings, and random weights, are judged on frozen features, by an attentive probe and nearest
neighbours, and by fine-tuning until validation stops improving: in the first command by the former
alone, in `rates` by the latter. `--jobs=2` shares the runs among two processes (docs/runs.md).

A clip is 8 x 8 x 8 = 512 tokens of 2 x 4 x 4 pixels. Ratios are those of the papers, scaled to a
smaller grid: 30 % of the tokens are visible where VideoMAE shows 10 %, two slots of eight in frame
masking, and 15 % to AdaMAE, whose paper shows 5 %. EVEREST decodes 51 moving tokens, dual
masking 256, the others all that is hidden. Equal cost means equally many floating-point operations
in training.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from configs import common

STEPS = 2400
"""Of pre-training with EVEREST at cost 1; the other strategies get as many as cost the same."""
SEEDS = {1.0: range(3, 6), 3.0: range(3, 6), 0.25: range(3, 6)}
"""By cost. What is above and below was chosen by other seeds."""
CLAIMED, MORE = ("everest", "tube"), range(6, 8)
"""Of these, and of no pre-training, there are more seeds, at cost 1."""
QUICK = {1.0: range(3, 4), 0.25: range(3, 4)}
RATES, TARGETS = (0.06, 0.15), ("normalised", "pixels")
"""What `rates` tries of each strategy, and validation chooses; `targets` takes them in pairs."""


class Strategy(NamedTuple):
    mask: dict[str, Any]
    cost: float
    """Of a step, in steps of EVEREST (`Task.work`); a test computes it again."""
    rate: float
    """Learning rate per 256 videos, chosen with the targets by `rates`."""
    targets: str


MASKS = {
    "everest": Strategy(dict(name="everest", keep_ratio=0.4, mask_ratio=0.7), 1.0, 0.15, "pixels"),
    "uniform": Strategy(dict(name="uniform", mask_ratio=0.7), 1.5393, 0.06, "normalised"),
    "tube": Strategy(dict(name="tube", mask_ratio=0.7), 1.5756, 0.06, "normalised"),
    "frame": Strategy(dict(name="frame", mask_ratio=0.75), 1.3908, 0.06, "normalised"),
    "dual": Strategy(
        dict(name="dual", mask_ratio=0.7, decoder_ratio=0.5), 1.3631, 0.06, "normalised"
    ),
    "motion_tube": Strategy(dict(name="motion_tube", mask_ratio=0.7), 1.5975, 0.06, "normalised"),
    "adamae": Strategy(dict(name="adamae", mask_ratio=0.85), 2.4302, 0.06, "normalised"),
}

# Judges, as they differ from pre-training. All see the 102 tokens that move most in fine-tuning.
TUNED: dict[str, Any] = {
    "task": "finetune",
    "mask": {"name": "everest", "keep_ratio": 0.2, "mask_ratio": 0.8},
    "optim": {"b2": 0.999, "smoothing": 0.1, "base_lr": 8e-3, "warmup_steps": 40},
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
    "optim": {"warmup_steps": 40},
    "train": {"batch_size": 8, "steps": 0, "epochs": 30.0},
    "eval": {"num_segments": 1},
}
JUDGES = {"probe": PROBE, "finetuned": TUNED}

# Starts from a classifier, as AVA's recipes do.
DETECTOR = TUNED | {
    "task": "detect",
    "mask": {"name": ""},
    "optim": {"b2": 0.999, "base_lr": 0.1, "warmup_steps": 160},
    "train": {"batch_size": 4, "steps": 3200, "val_every": 800},
}

# Of 192 frames 20 or 40 are eventful. 48 are decoded and frame selection keeps 16 of them, or 16
# are decoded; both for as many steps. With 384 labelled videos both are near chance.
LONG: dict[str, dict[str, Any]] = {"selected": {}, "spread": {"data": {"num_candidates": 0}}}


def get_config(argument: str = "") -> common.Config:
    c = common.get_config()
    c.name = "demo"
    c.synthetic.update(num_pretrain=3000, num_train=384, num_val=128, num_test=320)
    c.data.update(num_classes=8, image_size=32, frame_stride=1, crop="center")
    c.data.update(cache_gb=1.0, threads=1, workers=0)
    c.model.update(size="Ti", width=64, depth=4, heads=2, tubelet=(2, 4, 4), targets="pixels")
    c.model.update(decoder_width=48, decoder_depth=1, decoder_heads=2, positions="sincos_3d")
    c.model.cosine_attention = True  # EVEREST learns sooner (docs/demo.md).
    c.mask.update(MASKS["everest"].mask)
    c.optim.update(base_lr=0.15, min_lr=1.5e-3, warmup_steps=120)
    c.train.update(batch_size=4, steps=STEPS, log_every=200, save_every=2000)
    c.eval.update(batch_size=32, num_segments=2, num_crops=1)
    kind, *words = [word for word in argument.split(",") if word] or [""]
    if kind in ("", "strategies", "long", "boxes"):
        c.name = "_".join(["demo", *filter(None, [kind]), *words])
        parts = _parts(kind, words)
        c.stages = common.Config({k: v for part in parts for k, v in part.items()}, sort_keys=False)
    if kind == "strategies":
        c.report.clips = 0
        if "pan" in words:  # With 384 labelled videos fine-tuning learns them by heart.
            c.synthetic.update(pan=0.03, num_train=1536)
    elif kind == "boxes":
        c.synthetic.num_train = 1536
    elif kind == "long":
        c.synthetic.update(num_pretrain=1536, num_train=1536, long=192)
        c.data.update(sampling="spread", num_candidates=48, keep_ratio=0.1, cache_gb=1.5)
    if c.stages:
        return c
    try:
        task = common.variant(argument)["task"]
    except ValueError as error:
        raise ValueError(f"{error}; or strategies, long, boxes") from error
    if task != "pretrain":
        c.update(TUNED)
    return common.finish(c, argument)


def _parts(kind: str, words: list[str]) -> Iterator[dict[str, Any]]:
    """The stages of a comparison (`mvm/sweep.py`)."""
    known = ("quick", "rates", "targets", "pan") if kind == "strategies" else ()
    if unknown := {*words} - {*known}:
        raise ValueError(f"{', '.join(unknown)} is unknown; choose {', '.join(known) or None}")
    if len(one := {*words} - {"pan"}) > 1:
        raise ValueError(f"{', '.join(sorted(one))} are different comparisons; choose one")
    if kind == "":
        yield from (arm(MASKS[name], 1.0, SEEDS[1.0][0], ["probe"]) for name in CLAIMED)
        yield nothing(SEEDS[1.0][0], ["probe"])
    elif kind == "boxes":
        seed = SEEDS[1.0][0]
        yield arm(MASKS["everest"], 1.0, seed, ["finetuned"])
        began = f"everest_1_seed{seed}_finetuned"
        yield {"detector": DETECTOR | {"seed": seed, "init_from": began}}
    elif kind == "long":
        for seed, (said, changes) in itertools.product(SEEDS[1.0], LONG.items()):
            yield nothing(seed, ["finetuned"], f"{said}_scratch", **changes)
            yield arm(MASKS["everest"], 1.0, seed, said=said, changes=changes)
    elif "rates" in words:
        for rate, targets, name in itertools.product(RATES, TARGETS, MASKS):
            tried = MASKS[name]._replace(rate=rate, targets=targets)
            yield arm(tried, 1.0, 9, ["finetuned"], f"{name}_{targets}_{rate:g}")
    elif "targets" in words:
        for seed, name in itertools.product(SEEDS[1.0], ("everest", "uniform", "tube")):
            rate, targets = next(p for p in zip(RATES, TARGETS) if p[1] != MASKS[name].targets)
            tried = MASKS[name]._replace(rate=rate, targets=targets)
            yield arm(tried, 1.0, seed, said=f"{name}_{targets}")
    else:
        seeds, more = (QUICK, ()) if "quick" in words else (SEEDS, MORE)
        yield from map(nothing, (*seeds[1.0], *more))
        for seed, name in itertools.product(more, CLAIMED):
            yield arm(MASKS[name], 1.0, seed)
        for cost, of_cost in seeds.items():
            for seed, name in itertools.product(of_cost, MASKS):
                yield arm(MASKS[name], cost, seed)


def arm(
    strategy: Strategy,
    cost: float,
    seed: int,
    judges: Iterable[str] = JUDGES,
    said: str = "",
    changes: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """A pre-training, and those that judge it; all of them with these `changes`."""
    mask, of_step, rate, targets = strategy
    told: dict[str, Any] = {"arm": said or mask["name"], "cost": cost, "seed": seed, **changes}
    run = f"{told['arm']}_{cost:g}_seed{seed}".replace(".", "")
    steps = round(STEPS * cost / of_step)
    optim = {"base_lr": rate, "warmup_steps": round(0.05 * steps)}
    trained = {"mask": mask, "train": {"steps": steps}, "optim": optim}
    stages = {run: told | trained | {"model": {"targets": targets}}}
    for judge in judges:
        stages[f"{run}_{judge}"] = JUDGES[judge] | told | {"judge": judge, "init_from": run}
    return stages


def nothing(
    seed: int, judges: Iterable[str] = JUDGES, said: str = "none", **changes: Any
) -> dict[str, Any]:
    """The judges of no pre-training: random weights are probed, and trained from scratch."""
    told: dict[str, Any] = {"arm": said, "cost": 0.0, "seed": seed, **changes}
    return {f"{said}_seed{seed}_{j}": JUDGES[j] | told | {"judge": j} for j in judges}
