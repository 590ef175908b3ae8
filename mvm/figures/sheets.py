"""Sheets of frames as PNG files: masks, reconstructions, chosen frames and whole clips."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from etils import epath
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mvm.figures import overlays, style
from mvm.figures.overlays import Video
from mvm.types import Grid

Row = tuple[str, Video]  # a label and frames


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

    def draw(self, path: epath.PathLike) -> None:
        """Writes the sheet of `masks`."""
        masks(path, self)

    @property
    def every(self) -> int:
        """Frames of a slot."""
        return self.videos.shape[1] // self.grid.t


@matplotlib.rc_context(style.STYLE)
def _sheet(path: epath.PathLike, groups: Sequence[Sequence[Row]], every: int, caption: str) -> None:
    """Draws one of `every` frames of each row: one white image, whose ticks are the labels."""
    gap, y, strips, ticks = max(groups[0][0][1].shape[2] // 20, 1), 0, [], {}
    for group in groups:
        for label, video in group:
            count, height, width = video[::every].shape[:3]
            below = 3 * gap if video is group[-1][1] else gap
            padding = ((0, 0), (0, below), (0, gap), (0, 0))
            padded = np.pad(video[::every], padding, constant_values=255)
            strips.append(padded.transpose(1, 0, 2, 3).reshape(height + below, -1, 3))
            ticks[y + height / 2] = label
            y += height + below
    sheet, wide = np.concatenate(strips)[: -3 * gap, :-gap], style.WIDTH * min(1, count / 6)
    figure = Figure(figsize=(wide, wide * sheet.shape[0] / sheet.shape[1]))
    axes = figure.add_axes((0.1, 0, 0.9, 1))
    axes.imshow(sheet)
    axes.spines[:].set_visible(False)
    axes.set_yticks(list(ticks), list(ticks.values()), color=style.INK)
    axes.xaxis.tick_top()
    numbers = ["frame 0", *(str(i * every) for i in range(1, count))]
    axes.set_xticks(np.arange(count) * (width + gap) + width / 2, numbers)
    axes.set_xlabel(textwrap.fill(caption, round(15 * wide)), labelpad=8)
    style.save(figure, path)


def _mask(seen: Seen, b: int, label: str = "mask") -> Row:
    drawn = overlays.overlay(seen.videos[b], seen.visible[b], seen.target[b], seen.grid)
    return label, drawn


def _scores(seen: Seen, b: int) -> list[Row]:
    if seen.scores is None:
        return []
    low, high = np.percentile(seen.scores[b], (2, 98))
    return [("score", overlays.heat(seen.videos[b], seen.scores[b], seen.grid, low, high))]


def masks(path: epath.PathLike, seen: Seen) -> None:
    """Draws which tokens are visible, targets and neither, and what they were chosen by."""
    caption = (
        f"Of {seen.grid.n} tokens, {seen.visible.shape[1]} visible (as they are) and "
        f"{seen.target.shape[1]} targets (amber) per clip."
    )
    if seen.scores is not None:
        caption += " Score: pale is low, dark is high, scaled within each clip."
    groups = [[_mask(seen, b), *_scores(seen, b)] for b in range(len(seen.videos))]
    _sheet(path, groups, seen.every, caption)


def reconstruction(path: epath.PathLike, seen: Seen, count: int = 3) -> None:
    """Draws original, score, what the encoder saw, prediction and error of the first clips."""
    assert seen.predicted is not None
    grid, kind, groups = seen.grid, seen.kind, []
    parts = list(zip(seen.videos, seen.predicted, seen.target, seen.visible))[:count]
    errors = [overlays.token_errors(v, x, m, grid, kind) for v, x, m, _ in parts]
    high, mean = float(np.nanpercentile(errors, 98)), float(np.nanmean(errors))
    for b, (video, vector, index, shown) in enumerate(parts):
        drawn = {
            "encoder saw": overlays.seen(video, shown, grid),
            "predicted": overlays.paste(video, vector, index, shown, grid, kind),
            "error": overlays.heat(video, errors[b], grid, 0.0, high),
        }
        groups.append([("original", video), *_scores(seen, b), *drawn.items()])
    caption = (
        "Predicted: targets from the model, visible tokens from the clip, grey where neither. "
        f"Error: mean squared error per token, pale 0 to dark {high:.2g}; mean {mean:.3f} of "
    )
    flattered = (
        "normalised tubelets, where a flat guess scores 1. Predictions are drawn with the true "
        "mean and contrast of each tubelet, which the model does not know: this flatters them."
    )
    caption += "pixels in [0, 1]." if kind == "pixels" else flattered
    _sheet(path, groups, seen.every, caption)


def strategies(path: epath.PathLike, chosen: Mapping[str, Seen]) -> None:
    """Draws what every strategy chose of the same clip, the first."""
    first, rows = next(iter(chosen.values())), []
    for name, seen in chosen.items():
        counts = f"{seen.visible.shape[1]} + {seen.target.shape[1]}"
        rows.append(_mask(seen, 0, f"{name.replace('_', ' ')}\n{counts}"))
    caption = (
        f"Visible (as they are) + target (amber) tokens of {first.grid.n}. "
        "A visible target is shown as visible."
    )
    _sheet(path, [[("the clip", first.videos[0])], rows], first.every, caption)


def frames(path: epath.PathLike, videos: Video, slots: NDArray[Any], every: int) -> None:
    """Draws the candidates `[B, T, H, W, 3]` and which slots `[B, S]` of `every` were chosen."""
    drawn, count = videos.copy(), videos.shape[1] // every
    for video, chosen in zip(drawn, slots):
        faded = np.repeat(~np.isin(np.arange(count), chosen), every)
        video[faded] = np.rint(0.3 * video[faded] + 0.7 * 255)
    caption = f"The first of {every} candidate frames of each slot. Faded: not chosen."
    _sheet(path, [[("", video)] for video in drawn], every, caption)


def clips(path: epath.PathLike, videos: Video) -> None:
    """Draws at most eight evenly spaced frames of each clip `[B, T, H, W, 3]`."""
    total, height, width = videos.shape[1:4]
    caption = f"Of {total} frames of {width}x{height} pixels."
    _sheet(path, [[("", video)] for video in videos], -(-total // 8), caption)
