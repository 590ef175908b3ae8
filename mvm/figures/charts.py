"""Charts: logged numbers over steps, and accuracies."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from etils import epath
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mvm.figures import style
from mvm.figures.style import INK, MUTED, PALE, SERIES, STYLE, WIDTH

_MOST = 40  # Classes of one chart.


@matplotlib.rc_context(STYLE)
def curves(
    path: epath.PathLike, rows: Sequence[Mapping[str, Any]], keys: Sequence[str] = ("loss",)
) -> None:
    """Draws logged numbers over steps, one small chart per key that any row has.

    `rows` are those of `metrics.jsonl`; each has `step` and some of the keys.
    """
    found = [key for key in keys if any(key in row for row in rows)]
    figure = Figure(figsize=(min(3.2 * len(found), WIDTH), 2.4), layout="constrained")
    for chart, key in zip(figure.subplots(1, len(found), squeeze=False)[0], found):
        pairs = [(row["step"], row[key]) for row in rows if key in row]
        step, value = np.asarray(pairs, dtype=np.float64).T
        chart.plot(step, value, color=SERIES[0], lw=1.2, marker="." if len(pairs) == 1 else "")
        chart.set_title(f"{key.replace('_', ' ')}   {value[-1]:.3g}", color=INK)
        chart.set_xlabel("step")
        chart.grid(axis="y")
    style.save(figure, path)


def _bars(names: Sequence[str], values: ArrayLike, caption: str) -> tuple[Figure, Any]:
    """Horizontal bars of percentages, the first on top."""
    figure = Figure(figsize=(WIDTH, 0.9 + 0.25 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(names)), np.asarray(values), height=0.62, color=PALE)
    axes.set(ylim=(len(names) - 0.5, -0.5), xlim=(0, 100))
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_xlabel(f"accuracy, %\n{caption}")
    axes.grid(axis="x")
    return figure, axes


@matplotlib.rc_context(STYLE)
def accuracies(
    path: epath.PathLike, results: Mapping[str, Sequence[float]], chance: float | None = None
) -> None:
    """Draws the accuracies of each arm, one per seed, and their mean, in percent."""
    means = [float(np.mean(values)) for values in results.values()]
    caption = "Bar and number: mean. Dots: seeds."
    caption += "" if chance is None else f" Dashed: chance, {chance:.3g}."
    names = [f"{name}   {mean:.1f}" for name, mean in zip(results, means)]
    figure, axes = _bars(names, means, caption)
    for y, values in enumerate(results.values()):
        axes.plot(values, [y] * len(values), "o", color=SERIES[0], ms=5, mec="white", mew=0.7)
    if chance is not None:
        axes.axvline(chance, color=MUTED, lw=0.9, ls="--")
    style.save(figure, path)


@matplotlib.rc_context(STYLE)
def per_class(path: epath.PathLike, rows: Iterable[Mapping[str, str]]) -> None:
    """Draws the accuracy of each class in percent, best on top, and how many videos it counts.

    `rows` are those of `per_class.csv`. A class without videos is left out; of many, the best and
    the worst are drawn.
    """
    found = [(float(row["accuracy"]), row) for row in rows if row["accuracy"]]
    found.sort(key=lambda pair: -pair[0])
    mean = float(np.mean([value for value, _ in found]))
    caption = f"Line: mean over {len(found)} classes, {mean:.1f}."
    if len(found) > _MOST:
        caption += f" Only the best and the worst {_MOST // 2} are drawn."
        found = found[: _MOST // 2] + found[-_MOST // 2 :]
    names = [f"{row['class'][:40]}   {value:.0f} % of {row['videos']}" for value, row in found]
    figure, axes = _bars(names, [value for value, _ in found], caption)
    axes.axvline(mean, color=SERIES[1], lw=1)
    style.save(figure, path)


@matplotlib.rc_context(STYLE)
def compute(
    path: epath.PathLike,
    points: Mapping[str, Sequence[tuple[float, float]]],
    scratch: Sequence[float] = (),
    chance: float | None = None,
) -> None:
    """Draws accuracy against the compute of pre-training, one colour per strategy.

    `points` are `(TFLOP, accuracy in percent)` of each run by name of the strategy, of which those
    of equal compute are seeds; `scratch` are accuracies without pre-training.
    """
    figure = Figure(figsize=(WIDTH, 4), layout="constrained")
    axes = figure.subplots()
    for colour, (name, runs) in zip(itertools.cycle(SERIES), points.items()):
        budgets = sorted({x for x, _ in runs})
        means = [float(np.mean([y for x, y in runs if x == budget])) for budget in budgets]
        label = f"{name.replace('_', ' ')}  {means[-1]:.1f}"
        axes.plot(budgets, means, "_-", color=colour, lw=1.4, ms=12, label=label)
        axes.plot(*zip(*runs), "o", color=colour, ms=4)
    if len(scratch):
        level = float(np.mean(scratch))
        axes.axhline(level, color=MUTED, lw=0.9, ls="--", label=f"from scratch  {level:.1f}")
    if chance is not None:
        axes.axhline(chance, color=MUTED, lw=0.9, ls=":", label=f"chance  {chance:.1f}")
    figure.legend(loc="outside right upper", labelspacing=0.8)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("test top-1, %")
    axes.set_xlabel(
        "compute of pre-training, TFLOP\nMatrix products of all steps; fine-tuning, the same for "
        "all, is not counted. Dots: runs; dashes: means."
    )
    axes.grid(axis="y")
    style.save(figure, path)
