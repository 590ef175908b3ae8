"""What happens in long videos, and what was detected: a line of time each."""

import itertools
from collections.abc import Mapping

import matplotlib
import numpy as np
from etils import epath
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mvm.detections.temporal import Segments
from mvm.figures import style

_VIDEOS, _CLASSES = 4, 12


@matplotlib.rc_context(style.STYLE)
def draw(
    path: epath.PathLike, shown: Mapping[str, float], truth: Segments, found: Segments
) -> None:
    """Draws truths and, below them, twice as many detections, those of the highest scores.

    `shown` are durations in seconds by video, of which the first four with a truth are drawn.
    """
    rows, best = truth.of_videos(), found.of_videos()
    names = [name for name in shown if name in rows][:_VIDEOS]
    classes = dict(zip(sorted({*truth.label}), itertools.cycle(style.SERIES)))
    figure = Figure(figsize=(style.WIDTH, 0.7 + 0.9 * len(names)), layout="constrained")
    for axes, name in zip(figure.subplots(max(len(names), 1), squeeze=False)[:, 0], names):
        mine, said = truth.at(rows[name]), found.at(best.get(name, []))
        said = said.at(np.argsort(-said.score, kind="stable")[: 2 * len(rows[name])][::-1])
        top = max(said.score, default=1.0)
        for y, part, alphas in ((1.1, mine, mine.score), (0.1, said, 0.1 + 0.8 * said.score / top)):
            for (start, end), label, alpha in zip(part.segment, part.label, alphas):
                look = {"color": classes.get(label, style.MUTED), "alpha": alpha, "lw": 0}
                axes.broken_barh([(start, end - start)], (y, 0.8), **look)
        axes.set_yticks((1.5, 0.5), ("truth", "detected"), color=style.INK)
        axes.set(xlim=(0, shown[name]), ylim=(0, 2))
        axes.set_title(f"{name}, highest score {top:.2f}", loc="left")
        axes.set_xlabel("seconds" if name == names[-1] else "")
        axes.spines["left"].set_visible(False)
    handles = [Patch(color=c, label=name[:30]) for name, c in list(classes.items())[:_CLASSES]]
    figure.legend(handles=handles, loc="outside right upper")
    style.save(figure, path)
