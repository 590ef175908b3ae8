"""The look of every figure: colours, type, and how one becomes a PNG file."""

import io
from typing import Any

from etils import epath
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

INK, MUTED, RULE, PALE = "#1b2330", "#667085", "#d9dee5", "#cce3f0"
# Okabe and Ito's colours, which stay apart for every common colour blindness.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8a8f98")
HEAT = LinearSegmentedColormap.from_list("heat", ["#e6f1f8", "#86bfe0", "#0072b2", "#06294a"])
WIDTH = 9.6  # inches
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
    "axes.axisbelow": True,
    "xaxis.labellocation": "left",
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "text.parse_math": False,  # a class may be named with a dollar sign
}


def save(figure: Figure, path: epath.PathLike) -> None:
    """Writes a figure as a PNG file, wherever `path` is; makes the folder."""
    data, place = io.BytesIO(), epath.Path(path)
    figure.savefig(data, format="png", dpi=144, bbox_inches="tight", pad_inches=0.12)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data.getvalue())
