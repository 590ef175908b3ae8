"""The look of every figure: colours, measures, and how one becomes a PNG file."""

import io
import textwrap
from typing import Any

import numpy as np
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

PAPER, INK, MUTED, RULE, GREY = "#ffffff", "#1b2330", "#667085", "#d9dee5", "#e6e8ec"
# Okabe and Ito's colours, which stay apart for every common colour blindness.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
PALE, SOLID = "#cce3f0", "#5aa2cc"  # of the first series
TINT, FADE = "#fbcf7a", "#f4f5f6"
HEAT = LinearSegmentedColormap.from_list("heat", ["#e6f1f8", "#86bfe0", "#0072b2", "#06294a"])
DASHES = ("-", "--", ":")
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": PAPER,
    "legend.frameon": False,
    "text.parse_math": False,  # a class may be named with a dollar sign
}
WIDTH, MARGIN, GUTTER, GAP, LINE = 9.6, 0.12, 0.95, 0.05, 0.165  # inches
DPI, MAX_BYTES = 160, 480_000


def save(figure: Figure, path: epath.PathLike) -> None:
    """Writes a figure as a PNG of at most `MAX_BYTES`, unless 60 dots per inch are still more."""
    # Photographs do not compress: fewer dots per inch until the file is light enough for a report.
    dpi, canvas = float(DPI), FigureCanvasAgg(figure)
    while True:
        figure.set_dpi(dpi)
        canvas.draw()
        buffer = io.BytesIO()
        Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(buffer, "PNG")
        if buffer.tell() <= MAX_BYTES or dpi <= 60:
            break
        dpi = max(60.0, dpi * min(0.95, 0.97 * (MAX_BYTES / buffer.tell()) ** 0.55))
    place = epath.Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(buffer.getvalue())


def caption(text: str, width: float) -> list[str]:
    """Breaks a caption into lines that fit `width` inches."""
    return textwrap.wrap(text, int(width * 17.5))
