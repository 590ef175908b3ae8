"""The look of every figure: colours, type, and how one becomes a file."""

import io
from typing import Any

import matplotlib
from etils import epath
from matplotlib.colors import LinearSegmentedColormap, same_color
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.text import Text

# Grounds are transparent: this grey stands out from white and from black, 4.3 to 1.
INK, RULE = "#737a86", "#8a8f9855"
# Okabe and Ito's colours, which stay apart for every common colour blindness.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8a8f98")
HEAT = LinearSegmentedColormap.from_list("heat", ["#e6f1f8", "#86bfe0", "#0072b2", "#06294a"])
WIDTH = 7.2  # inches
STYLE: Any = {
    "font.size": 8,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(ls=["-", "--", ":"]) * cycler(color=SERIES),
    "xaxis.labellocation": "left",
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text that can be searched and edited
    "savefig.transparent": True,
    "text.parse_math": False,  # a class may be named with a dollar sign
}


def save(figure: Figure, path: epath.PathLike) -> None:
    """Writes a figure as a PNG file, wherever `path` is; makes the folder.

    Also, with black text, in matplotlib's `savefig.format` (`report.format`), if that is another.
    """
    place = epath.Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    for kind in dict.fromkeys(("png", matplotlib.rcParams["savefig.format"])):
        if kind != "png":
            for text in figure.findobj(Text):
                if same_color(text.get_color(), INK):
                    text.set_color("black")
        data = io.BytesIO()
        figure.savefig(data, format=kind, dpi=144, bbox_inches="tight", pad_inches=0.12)
        place.with_suffix(f".{kind}").write_bytes(data.getvalue())
