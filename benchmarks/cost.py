"""What every method and size costs, beside what was published; needs no accelerator and no data.

python -m benchmarks.cost [--markdown docs/cost.md]
"""

import argparse
import importlib
import pathlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_collections

from mvm import tasks
from mvm.step import count

COMMAND = "python -m benchmarks.cost --markdown docs/cost.md"
TOLERANCE = 1.0
"""Percent beyond which a difference needs a note."""

V2 = "VideoMAE V2's paper"
PLOT = "EVEREST's plot"
RECALLED = "EVEREST's paper, recalled"
SHAPES = "recomputed from the released shapes"
SOURCES = {
    V2: "as its tables print it.",
    PLOT: "read by eye; the plot in the repository prints savings in percent and no costs.",
    RECALLED: "typed without the paper at hand, its digits still to be checked.",
    SHAPES: "the authors print no figure; by hand from the sizes in their code, so that it checks "
    "our code and not the formula.",
}
"""What each is worth."""

OTHER = "released: 314 decoded tokens; the paper's figure fits 471, see below"
NONE = "no figure published"


class Row(NamedTuple):
    """One model with its mask, and what was published of it."""

    method: str
    recipe: str
    """A leaf of configs/ and its argument, such as "videomae_k400:L,finetune"."""
    changes: Mapping[str, Any] = MappingProxyType({})
    """Keys that the row sets beyond its recipe."""
    gmac: float = 0.0
    """Published, per clip; 0 where nothing was."""
    source: str = ""
    note: str = ""


PRETRAIN = (
    Row("VideoMAE", "videomae_k400:S", {}, 11.54, SHAPES),
    Row("VideoMAE", "videomae_k400:B", {}, 35.48, V2),
    Row("VideoMAE", "videomae_ucf101", {}, 57.5, PLOT),
    Row("VideoMAE", "videomae_k400:L", {"model.decoder_depth": 4}, 83.03, SHAPES),
    Row("VideoMAE", "videomae_k400:L", {}, 142.64, SHAPES),
    Row("VideoMAE", "videomae_k400:H", {}, 237.6, SHAPES),
    Row("VideoMAE", "videomaev2_hybrid:g", {"mask.name": "tube"}, 263.93, V2),
    Row("MAE-ST", "mae_st_k400", {"model.size": "B"}, 46.0, PLOT),
    Row("MAE-ST", "mae_st_k400", note=NONE),
    Row("uniform", "videomae_k400:B", {"mask.name": "uniform"}, note=NONE),
    Row(
        "frame",
        "videomae_k400:B",
        {"mask.name": "frame", "mask.mask_ratio": 0.875},
        note=NONE,
    ),
    Row("EVEREST", "everest_k400:S", {}, 6.3, RECALLED, OTHER),
    Row("EVEREST", "everest_k400:B", {}, 21.5, RECALLED, OTHER),
    Row("EVEREST", "everest_k400:L", {}, 60.8, RECALLED, OTHER),
    Row("EVEREST", "everest_k400:S", {"mask.keep_ratio": 0.4}, 6.3, RECALLED),
    Row("EVEREST", "everest_k400:B", {"mask.keep_ratio": 0.4}, 21.5, RECALLED),
    Row("EVEREST", "everest_k400:L", {"mask.keep_ratio": 0.4}, 60.8, RECALLED),
    Row("EVEREST", "everest_ucf101", {}, 19.8, PLOT),
    Row(
        "EVEREST",
        "everest_k400:L",
        {"model.size": "H", "model.decoder_depth": 12},
        134.8,
        SHAPES,
    ),
    Row(
        "EVEREST, frames",
        "everest_oscc",
        note=f"{NONE}; 24 candidate frames are embedded, 1.5 times the 16 kept",
    ),
    Row("AdaMAE", "adamae_k400", {}, 43.0, SHAPES),
    Row("AdaMAE", "adamae_k400", {"mask.mask_ratio": 0.9}, 49.95, SHAPES),
    Row("AdaMAE", "adamae_k400", {"mask.mask_ratio": 0.8}, 64.6, SHAPES),
    Row("dual", "dual_ssv2", {"mask.decoder_ratio": 0.25}, 31.63, V2),
    Row("dual", "dual_ssv2", {}, 25.87, V2),
    Row("dual", "dual_ssv2", {"mask.decoder_ratio": 0.75}, 21.06, V2),
    Row("dual", "videomaev2_hybrid:L", {}, 68.27, SHAPES),
    Row("dual", "videomaev2_hybrid:H", {}, 122.09, SHAPES),
    Row("dual", "videomaev2_hybrid:g", {}, 241.61, V2),
    Row(
        "motion tubes",
        "motion_tube_ssv2",
        note=f"{NONE}; MGMAE's optical flow, which is not used here, comes on top of its own",
    ),
)
FINETUNE = (
    Row("all tokens", "videomae_k400:S,finetune", {}, 57.0, RECALLED),
    Row("all tokens", "videomae_k400:B,finetune", {}, 180.5, RECALLED),
    Row("all tokens", "videomae_k400:L,finetune", {}, 597.2, RECALLED),
    Row(
        "all tokens", "videomae_k400:H,finetune", {}, 1192.0, V2, "printed as 17.88 T over 15 views"
    ),
    Row(
        "all tokens",
        "videomaev2_k400:g,finetune",
        {},
        2544.0,
        V2,
        "printed as 38.16 T over 15 views",
    ),
    Row("EVEREST", "everest_k400:S,finetune", {}, 29.1, RECALLED),
    Row("EVEREST", "everest_k400:B,finetune", {}, 98.1, RECALLED),
    Row("EVEREST", "everest_k400:L,finetune", {}, 330.6, RECALLED),
    Row(
        "EVEREST",
        "everest_k400:L,finetune",
        {"model.size": "H"},
        666.9,
        SHAPES,
    ),
    Row(
        "EVEREST, frames",
        "everest_oscc:finetune",
        note=f"{NONE}; 24 candidate frames are embedded, 1.5 times the 16 kept",
    ),
)


class Line(NamedTuple):
    """A row with everything computed."""

    row: Row
    size: str
    visible: int
    target: int
    model_gmac: float
    """Of one clip forward, counted as published tables do."""
    executed_gmac: float
    """Of the products that our forward pass does."""
    parameters: int
    difference: float | None
    """Percent of the published figure; None without one."""


def config_of(row: Row) -> ml_collections.ConfigDict:
    """The recipe of a row with its changes."""
    leaf, _, argument = row.recipe.partition(":")
    module = importlib.import_module(f"configs.{leaf}")
    config = module.get_config(*([argument] if argument else [])).copy_and_resolve_references()
    config.update_from_flattened_dict(dict(row.changes))
    return config


def measure(row: Row) -> Line:
    """Builds a row's model, without weights, and counts."""
    config = config_of(row)
    task = tasks.build(config)
    model, executed = (sum(task.macs(done).values()) / 1e9 for done in (False, True))
    return Line(
        row,
        config.model.size,
        task.num_visible,
        task.num_target,
        model,
        executed,
        count(task.abstract),
        100 * (model / row.gmac - 1) if row.gmac else None,
    )


HEAD = ("method", "ViT", "visible", "decoded", "GMAC", "here", "M", "published", "off", "recipe")


def cells(line: Line) -> list[str]:
    """The columns of `HEAD` as text."""
    row = line.row
    off = "-" if line.difference is None else f"{round(line.difference, 1) + 0.0:+} %"
    changes = "".join(f" {key}={value}" for key, value in row.changes.items())
    return [
        row.method,
        line.size,
        str(line.visible),
        str(line.target or "-"),
        f"{line.model_gmac:.2f}",
        f"{line.executed_gmac:.2f}",
        f"{line.parameters / 1e6:.1f}",
        f"{row.gmac:g}" if row.gmac else "-",
        off,
        row.recipe + changes,
    ]


def text(lines: Iterable[Line]) -> str:
    """A table for the terminal; source and note of a row stand below it."""
    rows = [list(HEAD), *map(cells, lines)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    out = ["  ".join(cell.ljust(w) for cell, w in zip(rows[0], widths)).rstrip()]
    for line, row in zip(lines, rows[1:]):
        out.append("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip())
        said = "; ".join(part for part in (line.row.source, line.row.note) if part)
        out.append(f"    {said}")
    return "\n".join(out)


def table(lines: Iterable[Line]) -> str:
    """The same in Markdown, source and note as columns."""
    out = [f"| {' | '.join((*HEAD, 'source', 'note'))} |", "|---" * (len(HEAD) + 2) + "|"]
    for line in lines:
        *numbers, recipe = cells(line)
        row = [*numbers, f"`{recipe}`", line.row.source, line.row.note]
        out.append(f"| {' | '.join(row)} |")
    return "\n".join(out)


PAGE = """# What a clip costs

`{command}`
wrote this page. All numbers are counted from the shapes of models; no machine has a part in them.

GMAC: billions of multiply-accumulates in all matrix products of one forward pass, one clip of 16
frames of 224 px, counted as published tables do (`forward_macs` of `mvm/runtime/flops.py`).
Here: those
that our forward pass does (`executed_macs`). It embeds for the encoder only the visible tubelets,
all of them beforehand where a motion score is needed, and its last decoder block asks for the
decoded tokens alone. M: millions of parameters. Off: difference of GMAC from the published
figure; where it is more than {tolerance:g} %, a note says why.

Sources of the published figures:

{sources}

## Pre-training

{pretrain}

## Fine-tuning and inference, one view

{finetune}
"""


def page(pretrain: Iterable[Line], finetune: Iterable[Line]) -> str:
    """The whole of docs/cost.md."""
    return PAGE.format(
        command=COMMAND,
        tolerance=TOLERANCE,
        sources="\n".join(f"- {name}: {worth}" for name, worth in SOURCES.items()),
        pretrain=table(pretrain),
        finetune=table(finetune),
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--markdown", default="", help="file to write the tables to")
    flags = parser.parse_args()
    pretrain, finetune = [[measure(row) for row in rows] for rows in (PRETRAIN, FINETUNE)]
    print(f"Pre-training\n{text(pretrain)}\n\nFine-tuning and inference\n{text(finetune)}")
    if flags.markdown:
        pathlib.Path(flags.markdown).write_text(page(pretrain, finetune))


if __name__ == "__main__":
    main()
