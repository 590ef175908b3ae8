"""Sheets of frames as PNG files: masks, reconstructions, chosen frames and whole clips."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from etils import epath
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from numpy.typing import NDArray

from mvm.figures import overlays, style
from mvm.figures.overlays import Video
from mvm.types import Grid

Row = tuple[str, Video]  # a label and frames
Group = tuple[str, Sequence[Row]]  # the name of a clip, and what is shown of it


class Seen(NamedTuple):
    """What a model does with a few clips."""

    videos: NDArray[np.uint8]
    """`[B, T, H, W, 3]`"""
    grid: Grid
    visible: NDArray[Any]
    """Token indices `[B, V]`."""
    target: NDArray[Any]
    """Token indices `[B, M]`."""
    scores: NDArray[Any] | None = None
    """What the mask is drawn by, `[B, N]`."""
    predicted: NDArray[Any] | None = None
    """Targets `[B, M, P]`, flattened in the order (t, h, w, c)."""
    kind: str = "normalised"
    """Of the targets, see `mvm.models.tubelets.Targets`."""
    names: Sequence[str] = ()
    """Of the clips, where they are known."""

    @property
    def every(self) -> int:
        """Frames of a slot."""
        return self.videos.shape[1] // self.grid.t

    def scored(self, b: int) -> list[Row]:
        """The scores of a clip, if there are any."""
        if self.scores is None:
            return []
        low, high = np.percentile(self.scores[b], (2, 98))
        return [("score", overlays.heat(self.videos[b], self.scores[b], self.grid, low, high))]

    def draw(self, path: epath.PathLike) -> None:
        """Draws which tokens are visible, targets and neither, and what they were chosen by."""
        hidden, shown = self.target.shape[1], self.visible.shape[1]
        caption = f"Of {self.grid.n} tokens, {shown} visible and {hidden} targets per clip."
        bar = None if self.scores is None else ("score, of the range within each clip", 0.0, 1.0)
        groups = []
        for b, video in enumerate(self.videos):
            drawn = overlays.overlay(video, self.visible[b], self.target[b], self.grid)
            name = self.names[b] if self.names else ""
            groups.append((name, [("mask", drawn), *self.scored(b)]))
        _sheet(path, groups, self.every, caption, (_VISIBLE, _TARGET, _NEITHER), bar)


@matplotlib.rc_context(style.STYLE)
def _sheet(
    path: epath.PathLike,
    groups: Sequence[Group],
    every: int,
    caption: str,
    legend: Sequence[Patch] = (),
    bar: tuple[str, float, float] | None = None,
) -> None:
    """Draws one of `every` frames of each row side by side.

    `bar` is what the colours of `overlays.heat` mean, and the numbers at its two ends.
    """
    rows = [(name * (not i), row) for name, rows in groups for i, row in enumerate(rows)]
    count, height, width = rows[0][1][1][::every].shape[:3]
    wide, gap = style.WIDTH * min(1, count / 6), max(width // 20, 1)
    high = len(rows) * wide / count * height / width + 0.2 * len(groups) + 0.5 + 0.5 * bool(bar)
    layout = ConstrainedLayoutEngine(h_pad=0.02, compress=True)
    figure = Figure(figsize=(wide, high), layout=layout)
    for axes, (name, (label, video)) in zip(figure.subplots(len(rows), squeeze=False).flat, rows):
        opaque = np.insert(video[::every], 3, 255, axis=-1)
        padded = np.pad(opaque, ((0, 0), (0, 0), (0, gap), (0, 0)))
        axes.imshow(padded.transpose(1, 0, 2, 3).reshape(height, -1, 4)[:, :-gap])
        axes.spines[:].set_visible(False)
        axes.set_title(name, size=8, weight="bold", loc="left")
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(label, rotation=0, ha="right", va="center")
    figure.axes[0].xaxis.tick_top()
    numbers = ["frame 0", *(str(i * every) for i in range(1, count))]
    figure.axes[0].set_xticks(np.arange(count) * (width + gap) + width / 2, numbers)
    figure.supxlabel(textwrap.fill(caption, round(16 * wide)), x=0, ha="left", size=8)
    if legend:
        figure.legend(handles=legend, loc="outside upper left", ncols=3)
    if bar:
        scale = ScalarMappable(Normalize(*bar[1:]), style.HEAT)
        drawn = figure.colorbar(scale, ax=figure.axes, location="bottom", label=bar[0], shrink=0.3)
        drawn.outline.set_visible(False)
    style.save(figure, path)


_VISIBLE = Patch(fc="none", ec=style.INK, hatch="....", label="visible: as it is")
_TARGET, _NEITHER, _HIDDEN = (
    Patch(color=f"#{bytes(colour.tolist()).hex()}", label=label)
    for colour, label in (
        (overlays.AMBER, "target"),
        (overlays.FADED, "neither"),
        (overlays.GREY, "neither visible nor predicted"),
    )
)


def reconstruction(path: epath.PathLike, seen: Seen, count: int = 3) -> None:
    """Draws original, score, what the encoder saw, prediction and error of the first clips."""
    assert seen.predicted is not None
    grid, kind, groups = seen.grid, seen.kind, []
    clips = list(zip(seen.videos, seen.predicted, seen.target, seen.visible))[:count]
    painted = [overlays.predictions(*clip, grid, kind) for clip in clips]
    errors = [error for _, error in painted]
    high, mean = float(np.nanpercentile(errors, 98)), float(np.nanmean(errors))
    for b, (predicted, error) in enumerate(painted):
        rows = [("original", seen.videos[b]), *seen.scored(b)]
        rows.append(("encoder saw", overlays.seen(seen.videos[b], seen.visible[b], grid)))
        rows.append(("predicted", predicted))
        rows.append(("error", overlays.heat(seen.videos[b], error, grid, 0.0, high)))
        groups.append((seen.names[b] if seen.names else "", rows))
    flattered = (
        "normalised tubelets, where a flat guess scores 1. Predictions are drawn with the true "
        "mean and contrast of each tubelet, which the model does not know: this flatters them."
    )
    of = "pixels in [0, 1]." if kind == "pixels" else flattered
    caption = f"Predicted: targets; visible tokens are the clip's. Mean error {mean:.3f} of {of}"
    if seen.scores is not None:
        caption += " Score: pale is low, dark high, within each clip."
    bar = "error: mean squared, per token", 0.0, high
    _sheet(path, groups, seen.every, caption, (_HIDDEN,), bar)


def masks(path: epath.PathLike, seen: Mapping[str, Seen]) -> None:
    """Draws what several models, by name, choose of the first clip of each, which is the same."""
    first = next(iter(seen.values()))
    rows = [("the clip", first.videos[0])]
    for name, of in seen.items():
        counts = f"{of.visible.shape[1]} + {of.target.shape[1]}"
        drawn = overlays.overlay(of.videos[0], of.visible[0], of.target[0], of.grid)
        rows.append((f"{name}\n{counts}", drawn))
    caption = f"Visible + target of {first.grid.n} tokens; what is both is shown as visible."
    _sheet(path, [("", rows)], first.every, caption, (_VISIBLE, _TARGET, _NEITHER))


def frames(
    path: epath.PathLike, videos: Video, slots: NDArray[Any], every: int, names: Sequence[str]
) -> None:
    """Draws the candidates `[B, T, H, W, 3]` and which slots `[B, S]` of `every` were chosen."""
    drawn, count = videos.copy(), videos.shape[1] // every
    for video, chosen in zip(drawn, slots):
        faded = np.repeat(~np.isin(np.arange(count), chosen), every)
        video[faded] = np.rint(0.3 * video[faded] + 0.7 * 255)
    caption = f"The first of {every} candidate frames of each slot. Faded: not chosen."
    _sheet(path, [(name, [("", video)]) for name, video in zip(names, drawn)], every, caption)


def clips(path: epath.PathLike, videos: Video, names: Sequence[str]) -> None:
    """Draws at most eight evenly spaced frames of each clip `[B, T, H, W, 3]`."""
    total, height, width = videos.shape[1:4]
    caption = f"Of {total} frames of {width}x{height} pixels."
    groups = [(name, [("", video)]) for name, video in zip(names, videos)]
    _sheet(path, groups, -(-total // 8), caption)
