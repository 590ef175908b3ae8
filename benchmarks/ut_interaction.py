"""Real people, few of them: what pre-training is worth on UT-Interaction, by cross-validation.

    python -m benchmarks.ut_interaction data/ut_interaction  # files of 96 px, lists, a shortcut
    python main.py --config benchmarks/ut_interaction.py     # the runs

The folder has the clips and `clips.csv`: their path, label, sequence, width, height and
frames_decoded; those of label 6, "no interaction", are for pre-training alone. Each fold tests on
two sequences, pre-trains without them and ends fine-tuning by two others. Arms and judges are those
of `configs/demo.py`, and `fixed`: the same fine-tuning without an early end.
"""

import argparse
import csv
import pathlib
from collections import Counter
from typing import Any

import numpy as np

from benchmarks import table
from configs import common, demo
from input_pipeline.encode import Options, encode

SEEDS = 3
ARMS = ("everest", "tube")
COST = 0.5  # Of a pre-training, in those of `demo.STEPS` steps with EVEREST.
SHORT = {"steps": 600, "val_every": 50}
FIXED = {"keep_best": "", "patience": 0}
"""A judge more: 12 clips of validation may stop a fine-tuning before it begins to learn."""
CROPPED = {"crop": "multi_scale", "flip": True}
"""In training, as the papers'; judges of frozen features see the centre."""
LISTS = table.ROOT / "runs" / "ut_interaction_lists"
_NONE = 6

Row = dict[str, str]


def folds(rows: list[Row]) -> list[dict[str, list[Row]]]:
    """The clips of each fold, by the list they stand in."""
    known = sorted({int(row["sequence"]) for row in rows if int(row["label"]) != _NONE})
    pairs = [known[i : i + 2] for i in range(0, len(known), 2)]
    made = []
    for held, stop in zip(pairs, [*pairs[1:], pairs[0]]):
        lists = {n: "test" if n in held else "val" if n in stop else "train" for n in known}
        fold: dict[str, list[Row]] = {"train": [], "val": [], "test": []}
        for row in rows:
            if int(row["label"]) != _NONE:
                fold[lists[int(row["sequence"])]].append(row)
        fold["pretrain"] = [row for row in rows if int(row["sequence"]) not in held]
        made.append(fold)
    return made


def shortcut(fold: dict[str, list[Row]]) -> float:
    """Top-1 in percent of the three nearest clips by aspect ratio and number of frames."""
    rows = [*fold["train"], *fold["test"]]
    seen = [(int(row["width"]) / int(row["height"]), int(row["frames_decoded"])) for row in rows]
    train, test = np.split(np.array(seen), [len(fold["train"])])
    gaps = ((test[:, None] - train) / train.std(axis=0)) ** 2
    right = []
    for row, gap in zip(fold["test"], gaps.sum(axis=-1)):
        near = [fold["train"][i]["label"] for i in np.argsort(gap, kind="stable")[:3]]
        right.append(Counter(near).most_common(1)[0][0] == row["label"])
    return 100 * float(np.mean(right))


def get_config() -> common.Config:
    """All stages of a sweep, seed after seed, so that those of one seed are whole."""
    if not LISTS.is_dir():
        raise ValueError(f"{LISTS} is not there; first run python -m benchmarks.ut_interaction")
    c = demo.get_config("strategies")
    c.name = "ut_interaction"
    c.synthetic.num_pretrain = 0
    c.data.update(num_classes=6, image_size=64, frame_stride=4, cache_gb=2.0)
    c.model.tubelet = (2, 8, 8)
    c.eval.num_segments = 3
    stages: dict[str, Any] = {}
    for seed in range(SEEDS):
        for fold in sorted(LISTS.glob("fold*")):
            own = demo.nothing(seed)
            for name in ARMS:
                own |= demo.arm(demo.MASKS[name], COST, seed)
            for name, stage in [*own.items()]:
                if stage.get("judge") == "finetuned":
                    trained = stage["train"] | FIXED
                    own[f"{name}_fixed"] = stage | {"judge": "fixed", "train": trained}
            for name, stage in own.items():
                data: dict[str, Any] = {"train": str(fold / "pretrain.txt")}
                if "judge" in stage:
                    data = {k: str(fold / f"{k}.txt") for k in ("train", "val", "test")}
                if stage.get("task") == "finetune":
                    stage |= {"train": stage["train"] | SHORT}
                if stage.get("task") != "probe":
                    data |= CROPPED
                if "init_from" in stage:
                    stage |= {"init_from": f"{fold.name}_{stage['init_from']}"}
                stages[f"{fold.name}_{name}"] = stage | {"data": data}
    next(stage for name, stage in stages.items() if ARMS[0] in name)["report"] = {"clips": 3}
    c.stages = common.Config(stages, sort_keys=False)
    return c


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("source", type=pathlib.Path, help="the folder of the data set")
    source = parser.parse_args().source.resolve()
    if not (source / "clips.csv").is_file():
        parser.exit(2, f"error: {source} has no clips.csv\n")
    rows = [*csv.DictReader((source / "clips.csv").read_text().splitlines())]
    parts = folds(rows)
    for row in rows:  # Those of the folds.
        small = (LISTS / row["path"]).with_suffix(".mp4")
        small.parent.mkdir(parents=True, exist_ok=True)
        small.write_bytes(encode(str(source / row["path"]), Options(short_side=96)))
        row["path"] = str(small)
    for i, fold in enumerate(parts):
        (LISTS / f"fold{i}").mkdir(parents=True, exist_ok=True)
        for name, rows in fold.items():
            lines = [f"{row['path']} {row['label']}\n" for row in rows]
            (LISTS / f"fold{i}" / f"{name}.txt").write_text("".join(lines))
    mean = np.mean([*map(shortcut, parts)])
    print(f"shape and length alone: {mean:.1f} %, the mean of {len(parts)} folds; see {LISTS}")


if __name__ == "__main__":
    main()
