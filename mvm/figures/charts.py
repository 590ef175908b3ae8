"""Charts: logged numbers over steps, and accuracies."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from etils import epath
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mvm.figures import style
from mvm.figures.style import INK, MUTED, PALE, SERIES, STYLE, WIDTH


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
        chart.plot(step, value, color=SERIES[0], lw=1.2)
        chart.plot(step[-1:], value[-1:], "o", color=SERIES[0], ms=3.5, clip_on=False)
        chart.set_title(f"{key.replace('_', ' ')}   {value[-1]:.3g}", color=INK)
        chart.set_xlabel("step")
        chart.grid(axis="y")
        chart.margins(x=0)
        chart.locator_params(nbins=5)
        chart.yaxis.set_major_formatter("{x:g}")
    style.save(figure, path)


def _bars(
    names: Sequence[str], values: ArrayLike, notes: Sequence[str], step: float, caption: str
) -> tuple[Figure, Any]:
    """Horizontal bars of percentages, named on the left, with a note on the right."""
    figure = Figure(figsize=(WIDTH, 0.9 + step * len(names)), layout="constrained")
    axes, places = figure.subplots(), range(len(names))
    axes.barh(places, np.asarray(values), height=0.62, color=PALE)
    axes.set(ylim=(len(names) - 0.5, -0.5), xlim=(0, 100))
    axes.set_xlabel(f"accuracy, %\n{style.caption(caption)}", linespacing=1.6)
    axes.set_yticks(places, names, color=INK)
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(places, notes, color=INK)
    for spines in (axes.spines, beside.spines):
        spines[:].set_visible(False)
    axes.grid(axis="x")
    return figure, axes


@matplotlib.rc_context(STYLE)
def accuracies(
    path: epath.PathLike, results: Mapping[str, Sequence[float]], chance: float | None = None
) -> None:
    """Draws the accuracies of each arm, one per seed, and their mean, in percent."""
    means = [float(np.mean(values)) for values in results.values()]
    notes = [
        f"{mean:.1f}" + (f"   ({min(each):.1f} to {max(each):.1f})" if len(each) > 1 else "")
        for mean, each in zip(means, results.values())
    ]
    caption = "Bar and number: mean. Dots: seeds."
    caption += "" if chance is None else f" Dashed: chance, {chance:.3g}."
    figure, axes = _bars(list(results), means, notes, 0.42, caption)
    for y, values in enumerate(results.values()):
        axes.plot(values, [y] * len(values), "o", color=SERIES[0], ms=5, mec="white", mew=0.7)
    if chance is not None:
        axes.axvline(chance, color=MUTED, lw=0.9, ls=(0, (4, 3)))
    style.save(figure, path)


@matplotlib.rc_context(STYLE)
def per_class(
    path: epath.PathLike,
    names: Sequence[str],
    accuracy: ArrayLike,
    counts: Sequence[Any],
    most: int = 40,
) -> None:
    """Draws the accuracy of each class in percent, best on top, and how many videos it counts.

    A class without videos, NaN, is left out. Of more than `most` classes, the best and the worst
    are drawn.
    """
    values = np.asarray(accuracy, dtype=np.float64)
    order = np.argsort(-values, kind="stable")[: int(np.isfinite(values).sum())]
    cut = len(order) > most
    kept = np.concatenate([order[: most // 2], order[-(most // 2) :]]) if cut else order
    mean = float(np.nanmean(values))
    caption = f"Line: mean over {len(order)} classes, {mean:.1f}. Right: accuracy and videos."
    caption += f" Only the best and the worst {most // 2} are drawn." if cut else ""
    notes = [f"{values[i]:.0f} % of {counts[i]}" for i in kept]
    figure, axes = _bars([names[i][:40] for i in kept], values[kept], notes, 0.19, caption)
    if cut:
        axes.axhline(most // 2 - 0.5, color=INK, lw=0.8, ls=(0, (1, 3)))
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
    drawn = []
    for number, (name, runs) in enumerate(points.items()):
        colour, budgets = SERIES[number % len(SERIES)], sorted({x for x, _ in runs})
        means = [float(np.mean([y for x, y in runs if x == budget])) for budget in budgets]
        (line,) = axes.plot(budgets, means, "_-", color=colour, lw=1.4, ms=12)
        axes.plot(*zip(*runs), "o", color=colour, ms=4)
        drawn.append((means[-1], line, name.replace("_", " ")))
    levels = [("from scratch", "--", float(np.mean(scratch)))] if len(scratch) else []
    levels += [("chance", ":", chance)] if chance is not None else []
    for name, dash, level in levels:
        drawn.append((level, axes.axhline(level, color=MUTED, lw=0.9, ls=dash), name))
    drawn.sort(key=lambda row: -row[0])  # The legend is in the order of the lines.
    handles, texts = [row[1] for row in drawn], [f"{name}  {y:.1f}" for y, _, name in drawn]
    figure.legend(handles, texts, loc="outside right upper", labelspacing=0.8)
    axes.set_xlim(0, 1.04 * max(x for runs in points.values() for x, _ in runs))
    axes.set_ylim(0, None)
    axes.set_ylabel("test top-1, %")
    axes.set_xlabel(
        "compute of pre-training, TFLOP\nMatrix products of all steps; fine-tuning, the same for "
        "all, is not counted. Dots: runs; dashes: means.",
        linespacing=1.6,
    )
    axes.grid(axis="y")
    style.save(figure, path)
