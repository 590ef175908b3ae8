"""Key frames with the boxes of people and what they do."""

from collections.abc import Mapping, Sequence

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
        sides = np.tile(image.shape[1::-1], 2)
        for boxes, colour, line in ((found, style.SERIES[4], "-"), (truth, style.SERIES[5], "--")):
            for box, text in boxes.items():
                x1, y1, x2, y2 = np.array(box) * sides
                width, height = x2 - x1, y2 - y1
                axes.add_patch(
                    Rectangle((x1, y1), width, height, fill=False, ec=colour, ls=line, lw=1.4)
                )
                place = ("top", y1) if line == "-" else ("bottom", y2)
                ground = {"facecolor": colour, "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
                drawn = axes.text(x1, place[1], text[:40], fontsize=5.5, va=place[0], bbox=ground)
                drawn.set_color("black")
    caption = "Solid: detected, with its score. Dashed: annotated."
    figure.supxlabel(caption, color=style.INK, fontsize=8, x=0, ha="left")
    style.save(figure, path)
