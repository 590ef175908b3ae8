"""Charts: logged numbers over steps, and the answers of a classifier."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from etils import epath
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
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
) -> None:
    """Draws logged numbers over steps, one small chart per key, a colour per run.

    `runs` are rows of `metrics.jsonl` by name; each has `step` and some of the keys.
    """
    found = [key for key in keys if any(key in row for rows in runs.values() for row in rows)]
    lines, columns = -(-len(found) // _COLUMNS), min(len(found), _COLUMNS)
    high = 1.9 * lines + 0.09 * len(runs)
    figure = Figure(figsize=(WIDTH / _COLUMNS * columns, high), layout="constrained")
    charts = figure.subplots(lines, columns, squeeze=False).ravel()
    for chart in charts[len(found) :]:
        chart.set_axis_off()
    looks = [(SERIES[n % len(SERIES)], ("-", "--", ":")[n // len(SERIES) % 3]) for n in range(99)]
    for chart, key in zip(charts, found):
        title = key.replace("_", " ") + ("" if "loss" in key or "rate" in key else ", %")
        for (colour, line), rows in zip(looks, runs.values()):
            if pairs := [(row["step"], row[key]) for row in rows if key in row]:
                step, value = np.asarray(pairs, dtype=np.float64).T
                dot = "." if len(pairs) == 1 else ""
                chart.plot(step, value, line, color=colour, lw=1.2, marker=dot)
                title += f"   {value[-1]:.3g}" * (len(runs) == 1)
        chart.set_title(title, color=INK)
        chart.set_xlabel("step" if chart in charts[-columns:] else "")
        chart.grid(axis="y")
    if len(runs) > 1:
        keys_ = [Line2D([], [], color=c, ls=ls, label=name) for (c, ls), name in zip(looks, runs)]
        figure.legend(handles=keys_, loc="outside lower left", ncols=2, labelcolor=INK)
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
        colour = "white" if share[y, x] > 60 else "black"
        axes.text(
            x, y, shown[y, x], color=colour, size=8 if n < 16 else 6, ha="center", va="center"
        )
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
    axes, probable, said = figure.subplots(), np.asarray(sure), []
    for word, part in (("right", probable[hits]), ("wrong", probable[~hits])):
        said.append(f"{len(part)} {word}" + (f", mean {part.mean():.0f} %" if len(part) else ""))
    parts = [probable[hits], probable[~hits]]
    axes.hist(parts, range(0, 101, 5), stacked=True, color=SERIES[:2], label=said)
    axes.set(xlabel="probability of the answer, %", ylabel="videos", xlim=(0, 100))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")
    figure.legend(loc="outside upper left", ncols=2, labelcolor=INK)
    style.save(figure, path)
