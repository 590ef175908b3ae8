"""Key frames with the boxes of people and what they do."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from etils import epath
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mvm.figures import style

Named = Mapping[tuple[float, ...], str]
"""What is said of each box (x1, y1, x2, y2), fractions of the frame."""

_COLUMNS = 3


@matplotlib.rc_context(style.STYLE)
def draw(path: epath.PathLike, frames: Sequence[tuple[str, np.ndarray, Named, Named]]) -> None:
    """Draws detections (solid, at the top of a box) and annotations (dashed, at its bottom).

    A frame is a name, an image uint8 `[H, W, 3]`, detections and annotations.
    """
    rows = -(-len(frames) // _COLUMNS)
    high = max(len(image) / image.shape[1] for _, image, *_ in frames)
    size = style.WIDTH, rows * (style.WIDTH / _COLUMNS * high + 0.3) + 0.3
    figure = Figure(figsize=size, layout="constrained")
    for axes in figure.subplots(rows, _COLUMNS, squeeze=False).flat:
        axes.set_axis_off()
    for axes, (name, image, found, truth) in zip(figure.axes, frames):
        axes.imshow(image)
        axes.set_title(name, color=style.INK)
        _boxes(axes, image, truth, style.SERIES[5], "--", "bottom")
        _boxes(axes, image, found, style.SERIES[4], "-", "top")
    caption = "Solid: detected, with its score. Dashed: annotated."
    figure.supxlabel(caption, color=style.INK, fontsize=8, x=0, ha="left")
    style.save(figure, path)


def _boxes(axes: Any, image: np.ndarray, boxes: Named, colour: str, line: str, place: str) -> None:
    label = {"facecolor": colour, "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
    for box, text in boxes.items():
        x1, y1, x2, y2 = np.array(box) * np.tile(image.shape[1::-1], 2)
        patch = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, ls=line, lw=1.4)
        axes.add_patch(patch)
        y = y1 if place == "top" else y2
        axes.text(x1, y, text[:40], fontsize=5.5, color="black", va=place, bbox=label)
