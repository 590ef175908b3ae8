"""Charts: logged numbers over steps, and the answers of a classifier."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from etils import epath
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from mvm.figures import style
from mvm.figures.style import HEAT, INK, SERIES, STYLE, WIDTH

_MOST = 30  # Classes of one chart.
_COLUMNS = 3


@matplotlib.rc_context(STYLE)
def curves(
    path: epath.PathLike,
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    keys: Sequence[str] = ("loss", "val_loss", "accuracy", "val_top1", "val_knn", "learning_rate"),
) -> bool:
    """Draws logged numbers over steps, one small chart per key, a colour per run.

    `runs` are rows of `metrics.jsonl` by name; each has `step` and some of the keys. False, and
    nothing is drawn, if no run has two values of a key.
    """
    found = [k for k in keys if any(sum(k in row for row in rows) > 1 for rows in runs.values())]
    if not found:
        return False
    lines, columns = -(-len(found) // _COLUMNS), min(len(found), _COLUMNS)
    high = 1.9 * lines + 0.09 * len(runs)
    figure = Figure(figsize=(WIDTH / _COLUMNS * columns, high), layout="constrained")
    charts = figure.subplots(lines, columns, squeeze=False).ravel()
    for chart in charts[len(found) :]:
        chart.set_axis_off()
    for chart, key in zip(charts, found):
        unit = "" if "loss" in key or "rate" in key else ", %"
        for name, rows in runs.items():
            kept = [row for row in rows if key in row]
            step, value = ([row[k] for row in kept] for k in ("step", key))
            chart.plot(step, value, lw=1.2, marker="." if len(kept) == 1 else "", label=name)
        last = f"   {value[-1]:.3g}" if len(runs) == 1 else ""
        chart.set_title(key.replace("_", " ") + unit + last, color=INK)
        chart.set_xlabel("step" if chart in charts[-columns:] else "")
        chart.grid(axis="y")
    if len(runs) > 1:
        figure.legend(*charts[0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
    style.save(figure, path)
    return True


@matplotlib.rc_context(STYLE)
def against_cost(path: epath.PathLike, arms: Sequence[Any]) -> None:
    """Draws means (`mvm.compare.Arm`) over the cost of training, their intervals, and each run.

    One chart for each judge; an arm without cost is a dashed line.
    """
    judges = list(dict.fromkeys(arm.judge for arm in arms))
    names = list(dict.fromkeys(arm.name for arm in arms))
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    charts = figure.subplots(1, len(judges), squeeze=False, sharey=True).ravel()
    for chart, judge in zip(charts, judges):
        for number, name in enumerate(names):
            own = sorted(a for a in arms if (a.name, a.judge) == (name, judge))
            look: Any = {"color": SERIES[number % len(SERIES)], "label": name}
            if own and not own[0].cost:
                mean, error, look["color"] = own[0].mean, own[0].error, INK
                chart.axhline(mean, lw=1.2, ls="--", **look)
                chart.axhspan(mean - error, mean + error, color=INK, alpha=0.15, lw=0)
            elif own:
                x = [a.cost * 1.08 ** (number - len(names) / 2) for a in own]  # Side by side.
                y, e = [a.mean for a in own], [a.error for a in own]
                chart.plot(x, y, lw=0.8, alpha=0.6, color=look["color"])
                chart.errorbar(x, y, e, lw=1, alpha=0.6, ls="", marker="_", ms=8, **look)
                each = [(at, score) for at, a in zip(x, own) for score in a.scores]
                chart.scatter(*zip(*each), s=9, color=look["color"], lw=0)
        chart.set_xscale("log")
        chart.set_xticks(costs := sorted({a.cost for a in arms} - {0.0}), map("{:g}".format, costs))
        chart.minorticks_off()
        chart.set_xlim(min(costs) / 1.5, max(costs) * 1.5)
        chart.set_title(f"{judge}, %", color=INK)
        chart.set_xlabel("cost of pre-training" if chart is charts[0] else "")
        chart.grid(axis="y")
    charts[0].set_ylim(np.clip(charts[0].get_ylim(), 0, 100))  # That of two runs may be beyond.
    drawn = [pair for chart in charts for pair in zip(*chart.get_legend_handles_labels())]
    legend = {label: handle for handle, label in reversed(drawn)}
    legend = {name: legend[name] for name in names}
    figure.legend(legend.values(), legend, loc="outside lower left", ncols=5)
    style.save(figure, path)


@matplotlib.rc_context(STYLE)
def accuracies(path: epath.PathLike, arms: Sequence[Any]) -> None:
    """Draws the mean of each `mvm.compare.Arm`, its interval, and the scores that it has."""
    figure = Figure(figsize=(WIDTH, 0.5 + 0.3 * len(arms)), layout="constrained")
    axes, several = figure.subplots(), len({arm.judge for arm in arms}) > 1
    for row, arm in enumerate(arms):
        told, end = (f" ± {arm.error:.1f}", arm.error) if arm.error == arm.error else ("", 0.0)
        axes.barh(row, arm.mean, 0.6, xerr=arm.error, color=SERIES[4], ecolor=INK, capsize=3)
        axes.plot(arm.scores, [row] * len(arm.scores), ls="", marker=".", color=SERIES[0])
        beside = min(max(arm.mean + end, *arm.scores) + 1, 90)
        axes.text(beside, row, f"{arm.mean:.1f}{told}", va="center")
    names = [f"{arm.name}, {arm.judge}" if several else arm.name for arm in arms]
    axes.set_yticks(range(len(arms)), names)
    axes.set(xlabel="bar: mean; line: its 95 % interval; dots: runs", xlim=(0, 100))
    axes.invert_yaxis()
    axes.grid(axis="x")
    style.save(figure, path)


@matplotlib.rc_context(STYLE)
def confusion(path: epath.PathLike, counts: NDArray[Any], classes: Sequence[str]) -> None:
    """Draws how many videos of each class, a row, were taken for each class, a column: `[C, C]`.

    Of many classes those of the pairs that are confused most.
    """
    wrong = counts - np.diag(np.diag(counts))
    worst = np.maximum(wrong.max(axis=0), wrong.max(axis=1))
    chosen = np.sort(np.argsort(-worst, kind="stable")[:_MOST])
    shown, n = counts[np.ix_(chosen, chosen)], len(chosen)
    share = 100 * shown / np.maximum(counts[chosen].sum(axis=1, keepdims=True), 1)
    side = min(1.2 + 0.4 * n, 5.6)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(np.ma.masked_equal(share, 0), HEAT, vmin=0, vmax=100)
    for y, x in zip(*np.nonzero(shown)):
        look: Any = {"size": 8 if n < 16 else 6, "ha": "center", "va": "center"}
        axes.text(x, y, shown[y, x], color="white" if share[y, x] > 60 else "black", **look)
    names = [classes[c][:24] for c in chosen]
    axes.set_xticks(range(n), names, rotation=90)
    axes.set_yticks(range(n), names)
    few = f"\n{n} of {len(classes)} classes: the most confused" * (n < len(classes))
    axes.set(ylabel="true class", xlabel=f"predicted class; numbers: videos{few}")
    axes.spines[:].set_visible(False)
    figure.colorbar(image, label="of the true class, %", shrink=0.6).outline.set_visible(False)
    style.save(figure, path)


@matplotlib.rc_context(STYLE)
def confidence(path: epath.PathLike, sure: ArrayLike, hits: NDArray[np.bool_]) -> None:
    """Draws how probable the answers were said to be, in percent: right ones and wrong ones."""
    figure = Figure(figsize=(WIDTH * 2 / 3, 2.2), layout="constrained")
    axes, parts = figure.subplots(), [np.asarray(sure)[which] for which in (hits, ~hits)]
    means = [f", mean {part.mean():.0f} %" if len(part) else "" for part in parts]
    said = [f"{len(p)} {word}{mean}" for p, word, mean in zip(parts, ("right", "wrong"), means)]
    axes.hist(parts, range(0, 101, 5), stacked=True, color=SERIES[:2], label=said)
    axes.set(xlabel="probability of the answer, %", ylabel="videos", xlim=(0, 100))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")
    figure.legend(loc="outside upper left", ncols=2)
    style.save(figure, path)
