"""Sheets of frames as PNG files: masks, reconstructions, chosen frames and whole clips."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from etils import epath
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from mvm.figures import overlays, style
from mvm.figures.overlays import Video
from mvm.figures.style import FADE, INK, SERIES, TINT
from mvm.types import Grid

MASK = {"visible": "white", "target": TINT, "neither": FADE}


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
    """What the mask is drawn by, `[B, N]`: motion, or a sampler's log2 probability times N."""
    predicted: NDArray[Any] | None = None
    """Targets `[B, M, P]`, flattened in the order (t, h, w, c)."""
    sampler: bool = False
    """Whether the scores are probabilities."""
    kind: str = "normalised"
    """Of the targets, see `mvm.models.tubelets.Targets`."""

    def firsts(self, video: NDArray[Any]) -> NDArray[Any]:
        """The first frame of every slot."""
        return video[:: len(video) // self.grid.t]

    def head(self) -> list[str]:
        every = self.videos.shape[1] // self.grid.t
        return [f"frame {i * every}" for i in range(self.grid.t)]


class Row(NamedTuple):
    """One row of a sheet."""

    label: str
    frames: Video  # [F, H, W, 3]
    outline: NDArray[np.bool_] | None = None  # [F, h, w]
    under: Sequence[str] = ()  # one text below each frame


@matplotlib.rc_context(style.STYLE)
def _sheet(
    path: epath.PathLike,
    groups: Sequence[Sequence[Row]],
    caption: str,
    head: Sequence[str] = (),
    legend: Mapping[str, str] = {},
) -> None:
    """Draws groups of rows below each other: one white image, whose ticks are the labels."""
    rows = [row for group in groups for row in group]
    count, (height, width) = max(len(row.frames) for row in rows), rows[0].frames.shape[1:3]
    gap, low = max(width // 20, 1), max(height // 20, 1)
    wide = style.WIDTH * min(1, count / 6)
    line = round(0.2 / wide * count * (width + gap))  # 0.2 inches in pixels of the clip.
    tops, y = [], 0
    for group in groups:
        for row in group:
            tops.append(y)
            y += height + low + (line if row.under else 0)
        y += 2 * low
    lefts = np.arange(count) * (width + gap)
    sheet = np.full((y - 3 * low, lefts[-1] + width, 3), 255, np.uint8)
    figure = Figure(figsize=(wide, wide * sheet.shape[0] / sheet.shape[1] + 0.5))
    axes = figure.add_axes((0.1, 0, 0.9, 1))
    lines: list[NDArray[Any]] = []
    for top, row in zip(tops, rows):
        for i, (left, frame) in enumerate(zip(lefts, row.frames)):
            sheet[top : top + height, left : left + width] = frame
            if row.outline is not None:
                h, w = row.outline[i].shape
                corner = (left - 0.5, top - 0.5)
                lines.extend(_borders(row.outline[i]) * [width / w, height / h] + corner)
            if row.under:
                spot = (left + width / 2, top + height + low / 2)
                axes.text(*spot, row.under[i], color=style.MUTED, ha="center", va="top", size=7)
    axes.imshow(sheet)
    axes.add_collection(LineCollection(lines, colors=INK, lw=0.6))
    axes.spines[:].set_visible(False)
    axes.set_yticks([top + height / 2 for top in tops], [row.label for row in rows], color=INK)
    axes.xaxis.tick_top()
    axes.set_xticks(lefts[: len(head)] + width / 2, head)
    axes.set_xlabel(style.caption(caption, round(15 * wide)), labelpad=8)
    if legend:
        names = [Patch(fc=colour, ec=INK, lw=0.5, label=name) for name, colour in legend.items()]
        above: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderpad": 0}
        above |= {"ncols": len(names), "borderaxespad": 2.4 if head else 0.8}
        axes.legend(handles=names, handlelength=1.1, handleheight=1.1, **above)
    style.save(figure, path)


def _borders(region: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Segments `[S, 2, 2]` of (x, y), in cells, that part true from false cells of `[h, w]`."""
    padded = np.pad(region, 1)
    y, x = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    upright = np.stack([x, y, x, y + 1], 1)
    y, x = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    level = np.stack([x, y, x + 1, y], 1)
    return np.concatenate([upright, level]).reshape(-1, 2, 2).astype(np.float64)


def _mask(seen: Seen, b: int, label: str = "mask") -> Row:
    drawn = overlays.overlay(seen.videos[b], seen.visible[b], seen.target[b], seen.grid)
    outline = overlays.members(seen.visible[b], seen.grid).reshape(seen.grid)
    return Row(label, seen.firsts(drawn), outline)


def _scores(seen: Seen, b: int) -> list[Row]:
    if seen.scores is None:
        return []
    low, high = (-2.0, 2.0) if seen.sampler else np.percentile(seen.scores[b], (2, 98))
    drawn = overlays.heat(seen.videos[b], seen.scores[b], seen.grid, low, high)
    return [Row("score", seen.firsts(drawn))]


def masks(path: epath.PathLike, seen: Seen) -> None:
    """Draws which tokens are visible, targets and neither, and what they were chosen by."""
    count = seen.grid.n, seen.visible.shape[1], seen.target.shape[1]
    caption = f"Of {count[0]} tokens, {count[1]} visible and {count[2]} targets per clip."
    if seen.sampler:
        caption += " Score: probability of a token, from 1/4 (pale) to 4 times a uniform choice."
    elif seen.scores is not None:
        caption += " Score: pale is low, dark is high, scaled within each clip."
    groups = [[_mask(seen, b), *_scores(seen, b)] for b in range(len(seen.videos))]
    _sheet(path, groups, caption, seen.head(), MASK)


def reconstruction(path: epath.PathLike, seen: Seen, count: int = 3) -> None:
    """Draws original, score, what the encoder saw, prediction and error of the first clips."""
    assert seen.predicted is not None
    grid, kind, groups = seen.grid, seen.kind, []
    parts = list(zip(seen.videos, seen.predicted, seen.target, seen.visible))[:count]
    errors = [overlays.token_errors(v, x, m, grid, kind) for v, x, m, _ in parts]
    high, mean = float(np.nanpercentile(errors, 98)), float(np.nanmean(errors))
    for b, (video, vector, index, shown) in enumerate(parts):
        more = {
            "encoder saw": overlays.seen(video, shown, grid),
            "predicted": overlays.paste(video, vector, index, shown, grid, kind),
            "error": overlays.heat(video, errors[b], grid, 0.0, high),
        }
        drawn = [Row(name, seen.firsts(frames)) for name, frames in more.items()]
        groups.append([Row("original", seen.firsts(video)), *_scores(seen, b), *drawn])
    caption = (
        "Predicted: targets from the model, visible tokens from the clip, grey where neither. "
        f"Error: mean squared error per token, pale 0 to dark {high:.2g}; mean {mean:.3f} of "
    )
    flattered = (
        "normalised tubelets, where a flat guess scores 1. Predictions are drawn with the true "
        "mean and contrast of each tubelet, which the model does not know: this flatters them."
    )
    caption += "pixels in [0, 1]." if kind == "pixels" else flattered
    _sheet(path, groups, caption, seen.head())


def strategies(path: epath.PathLike, chosen: Mapping[str, Seen]) -> None:
    """Draws what every strategy chose of the same clips, which stand side by side.

    As many clips are drawn as make 16 frames, at least one.
    """
    first = next(iter(chosen.values()))
    count = min(len(first.videos), max(1, 16 // first.grid.t))

    def side(parts: Sequence[Row], label: str) -> Row:
        blank, none = 255 * np.ones_like(parts[0].frames[:1]), np.zeros((1, *first.grid[1:]), bool)
        joined = [x for part in parts for x in (Row("", blank, none), part)][1:]
        outlines = [row.outline for row in joined if row.outline is not None]
        outline = np.concatenate(outlines) if parts[0].outline is not None else None
        return Row(label, np.concatenate([row.frames for row in joined]), outline)

    clips = [Row("", first.firsts(video)) for video in first.videos[:count]]
    rows = []
    for name, seen in chosen.items():
        counts = f"{seen.visible.shape[1]} + {seen.target.shape[1]}"
        label = f"{name.replace('_', ' ')}\n{counts}"
        rows.append(side([_mask(seen, b) for b in range(count)], label))
    caption = f"Visible + target tokens of {first.grid.n}. A visible target is shown as visible."
    _sheet(path, [[side(clips, "the clip")], rows], caption, legend=MASK)


def frames(
    path: epath.PathLike,
    videos: NDArray[np.uint8],
    counts: NDArray[Any],
    slots: NDArray[Any],
    busy: NDArray[np.bool_] | None = None,
) -> None:
    """Draws the candidate frames `[B, T, H, W, 3]` of each clip and which slots were chosen.

    Args:
        path: where the PNG goes.
        videos: the candidates.
        counts: informative tokens of each slot, `[B, slots]`.
        slots: those chosen, `[B, S]`.
        busy: whether an event shows in a frame, `[B, T]`; None where nobody knows.
    """
    number = counts.shape[1]
    every, groups = videos.shape[1] // number, []
    for b, video in enumerate(videos):
        chosen = np.isin(np.arange(number), slots[b])
        drawn = video[::every].copy()
        drawn[~chosen] = np.rint(0.3 * drawn[~chosen] + 0.7 * 255)
        if busy is not None:
            eventful = busy[b].reshape(number, every).any(axis=1)
            drawn[eventful, -max(video.shape[1] // 10, 1) :] = 255 * np.array(to_rgb(SERIES[1]))
        groups.append([Row("", drawn, chosen[:, None, None], list(map(str, counts[b])))])
    caption = (
        f"The {videos.shape[1]} candidate frames of each clip in {number} slots. Outlined: chosen. "
        "Numbers: tokens of a slot among the most moving ones of the clip."
    )
    _sheet(path, groups, caption, legend={} if busy is None else {"an event": SERIES[1]})


def clips(
    path: epath.PathLike,
    videos: NDArray[np.uint8],
    labels: Sequence[str] = (),
    under: Sequence[Sequence[str]] = (),
) -> None:
    """Draws at most eight evenly spaced frames of each clip `[B, T, H, W, 3]`.

    `labels` are one per clip, `under` are texts `[B, T]` below the frames.
    """
    total = videos.shape[1]
    shown = np.arange(0, total, -(-total // 8))
    groups = []
    for b, video in enumerate(videos):
        texts = [under[b][i] for i in shown] if under else ()
        groups.append([Row(labels[b] if labels else "", video[shown], under=texts)])
    caption = f"{len(shown)} of {total} frames of {videos.shape[3]}x{videos.shape[2]} pixels."
    _sheet(path, groups, caption, () if under else [f"frame {i}" for i in shown])
