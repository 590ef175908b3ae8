"""What happens in long videos, and what was detected: a line of time each."""

import itertools
from collections.abc import Mapping

import matplotlib
from etils import epath
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mvm.detections.temporal import Rows
from mvm.figures import style

_VIDEOS, _CLASSES = 4, 12


@matplotlib.rc_context(style.STYLE)
def draw(path: epath.PathLike, shown: Mapping[str, float], truth: Rows, found: Rows) -> None:
    """Draws truths and, below them, twice as many detections, those of the highest scores.

    `shown` are durations in seconds by video, of which the first four with a truth are drawn.
    """
    names = [name for name in shown if truth.get(name)][:_VIDEOS]
    known = sorted({row["label"] for rows in truth.values() for row in rows})
    classes = dict(zip(known, itertools.cycle(style.SERIES)))
    figure = Figure(figsize=(style.WIDTH, 0.7 + 0.9 * len(names)), layout="constrained")
    for axes, name in zip(figure.subplots(max(len(names), 1), squeeze=False)[:, 0], names):
        best = sorted(found.get(name, ()), key=lambda row: -row["score"])[: 2 * len(truth[name])]
        top = best[0]["score"] if best else 1.0
        for y, rows in ((1.1, truth[name]), (0.1, best[::-1])):
            for row in rows:
                alpha = 0.1 + 0.9 * (row.get("score", top) / top)
                (start, end), colour = row["segment"], classes.get(row["label"], style.INK)
                axes.broken_barh([(start, end - start)], (y, 0.8), color=colour, alpha=alpha, lw=0)
        axes.set_yticks((1.5, 0.5), ("truth", "detected"), color=style.INK)
        axes.set(xlim=(0, shown[name]), ylim=(0, 2))
        axes.set_title(f"{name}, highest score {top:.2f}", loc="left")
        axes.set_xlabel("seconds" if name == names[-1] else "")
        axes.spines["left"].set_visible(False)
    handles = [Patch(color=c, label=name[:30]) for name, c in list(classes.items())[:_CLASSES]]
    figure.legend(handles=handles, loc="outside right upper")
    style.save(figure, path)
