"""What happens in long videos, and what was detected: one line of time each."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from etils import epath
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mvm.figures import style

_CLASSES = 12  # That a legend names.


class Timeline(NamedTuple):
    """A video: segments `[n, 2]` in seconds and the classes' names `[n]`; scores from 0 to 1."""

    name: str
    duration: float
    truth: np.ndarray
    classes: Sequence[str]
    found: np.ndarray
    found_classes: Sequence[str]
    scores: np.ndarray


@matplotlib.rc_context(style.STYLE)
def draw(path: epath.PathLike, videos: Sequence[Timeline]) -> None:
    """Draws the truth of each video and, below it, as many of the best detections as fit.

    Of each video twice as many detections as truths; the paler one is, the lower its score, as a
    fraction of the best of all.
    """
    names = sorted({name for v in videos for name in (*v.classes, *v.found_classes)})
    colours = dict(zip(names, itertools.cycle(style.SERIES)))
    best = max((float(v.scores.max(initial=0)) for v in videos), default=0) or 1.0
    figure = Figure(figsize=(style.WIDTH, 0.6 + 0.95 * len(videos)), layout="constrained")
    for axes, video in zip(figure.subplots(len(videos), squeeze=False)[:, 0], videos):
        shown = np.argsort(-video.scores, kind="stable")[: 2 * len(video.truth)][::-1]
        for (start, end), name in zip(video.truth, video.classes):
            axes.broken_barh([(start, end - start)], (1.1, 0.8), color=colours[name], lw=0)
        for row in shown:  # The best is drawn last.
            start, end = video.found[row]
            colour, alpha = colours[video.found_classes[row]], 0.1 + 0.8 * video.scores[row] / best
            axes.broken_barh([(start, end - start)], (0.1, 0.8), color=colour, alpha=alpha, lw=0)
        axes.set_yticks((1.5, 0.5), ("truth", "detected"), color=style.INK)
        axes.set(xlim=(0, video.duration), ylim=(0, 2))
        axes.set_title(video.name, loc="left")
        axes.spines["left"].set_visible(False)
    axes.set_xlabel(
        f"seconds. Detected: the best, twice as many as there are truths; pale is a low score, dark "
        f"the best of all, {best:.2g}."
    )
    handles = [Patch(color=colours[name], label=name[:30]) for name in names[:_CLASSES]]
    figure.legend(handles=handles, loc="outside right upper")
    style.save(figure, path)
