"""Sheets of frames: masks, reconstructions and whole clips, a row each."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from etils import epath
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from mvm.figures import arrays, style
from mvm.figures.arrays import GridLike
from mvm.figures.style import (
    DPI,
    FADE,
    GAP,
    GUTTER,
    INK,
    LINE,
    MARGIN,
    MUTED,
    PAPER,
    STYLE,
    TINT,
    WIDTH,
)


class Strip(NamedTuple):
    """One row of a sheet."""

    label: str
    frames: NDArray[np.uint8]  # [F, H, W, 3]
    outline: NDArray[np.bool_] | None = None  # [F, h, w]
    under: Sequence[str] = ()  # one text below each frame


SWATCHES = ((PAPER, "visible, as it is"), (TINT, "target"), (FADE, "neither"))


def _videos(videos: ArrayLike) -> NDArray[np.uint8]:
    array = np.asarray(videos)
    if array.dtype != np.uint8 or array.ndim != 5 or array.shape[-1] != 3:
        raise ValueError(
            f"videos must be uint8 [B, T, H, W, 3], got {array.dtype} {list(array.shape)}"
        )
    return array


def _sheet(
    path: epath.PathLike,
    groups: Sequence[Sequence[Strip]],
    caption: str,
    head: Sequence[str] = (),
    swatches: Sequence[tuple[str, str]] = (),
) -> None:
    """Draws groups of strips below each other; everything is placed in inches, y downwards."""
    count = max(len(strip.frames) for group in groups for strip in group)
    height, width = groups[0][0].frames.shape[1:3]
    gutter = GUTTER if any(strip.label for group in groups for strip in group) else 0.0
    side = min((WIDTH - 2 * MARGIN - gutter + GAP) / count - GAP, 1.9, 1.9 * width / height)
    tall = side * height / width
    left, y = MARGIN + gutter, MARGIN
    full = left + count * (side + GAP) - GAP + MARGIN
    lines = style.caption(caption, max(full, 5.0) - 2 * MARGIN)

    images, texts, segments, patches = [], [], [], []
    if swatches:
        x = left
        for colour, name in swatches:
            patches.append(Rectangle((x, y + 0.02), 0.12, 0.12, fc=colour, ec=INK, lw=0.5))
            texts.append((x + 0.18, y + 0.08, name, INK, "left"))
            x += 0.42 + 0.052 * len(name)
        y += 0.28
    for i, name in enumerate(head):
        texts.append((left + i * (side + GAP) + side / 2, y + 0.06, name, MUTED, "center"))
    y += 0.18 if head else 0.0
    for group in groups:
        for strip in group:
            broken = [textwrap.wrap(line, 13) for line in strip.label.splitlines()]
            name = "\n".join([part for line in broken for part in line][:4])
            texts.append((left - 0.12, y + tall / 2, name, INK, "right"))
            for i, frame in enumerate(strip.frames):
                x = left + i * (side + GAP)
                images.append((frame, (x, x + side, y + tall, y)))
                if strip.outline is not None:
                    h, w = strip.outline[i].shape
                    segments.append(
                        arrays.borders(strip.outline[i]) * [side / w, tall / h] + [x, y]
                    )
                if strip.under:
                    where = (x + side / 2, y + tall + 0.09)
                    texts.append((*where, strip.under[i], MUTED, "center"))
            y += tall + GAP + (0.16 if strip.under else 0.0)
        y += 0.1
    y += 0.04
    full = max(full, 5.0)
    figure = Figure(figsize=(full, y + len(lines) * LINE + MARGIN))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    # Few pixels per inch are a small clip: its pixels are shown as squares, not smeared.
    smooth = "antialiased" if width / side > DPI / 2 else "nearest"
    for frame, extent in images:
        axes.imshow(frame, extent=extent, interpolation=smooth, aspect="auto")
    if segments:
        axes.add_collection(LineCollection(list(np.concatenate(segments)), colors=INK, lw=0.7))
    for patch in patches:
        axes.add_patch(patch)
    for x, down, text, colour, align in texts:
        axes.text(x, down, text, color=colour, ha=align, va="center", fontsize=7.5)
    axes.text(MARGIN, y, "\n".join(lines), color=MUTED, va="top", fontsize=7.5, linespacing=1.4)
    axes.set(xlim=(0, full), ylim=(y + len(lines) * LINE + MARGIN, 0))
    style.save(figure, path)


def _firsts(video: NDArray[Any], grid: GridLike) -> NDArray[Any]:
    return video[:: video.shape[0] // grid[0]]


def _heat(
    video: NDArray[np.uint8],
    scores: NDArray[Any],
    grid: GridLike,
    scale: tuple[float, float] | None = None,
) -> NDArray[np.uint8]:
    """A clip under the colours of its scores `[N]`, from their 2nd to their 98th percentile."""
    row = np.where(np.isfinite(scores), scores.astype(np.float64), np.nan)
    if scale is None:
        scale = (0.0, 1.0) if np.isnan(row).all() else tuple(np.nanpercentile(row, (2, 98)))
    return arrays.heat(video, row, grid, *scale)


@matplotlib.rc_context(STYLE)
def masks(
    path: epath.PathLike,
    videos: ArrayLike,
    visible: Sequence[ArrayLike] | NDArray[Any],
    target: Sequence[ArrayLike] | NDArray[Any],
    grid: GridLike,
    scores: ArrayLike | None = None,
    scale: tuple[float, float] | None = None,
    meaning: str = "Score: pale is low, dark is high, scaled within each clip.",
) -> None:
    """Draws what a masking strategy chose, a row per clip and one frame per tubelet slot.

    Args:
        path: Where the PNG goes.
        videos: uint8 `[B, T, H, W, 3]`; two to four clips read best.
        visible: Token indices `[B, V]`, shown as they are within an outline.
        target: Token indices `[B, M]`, tinted. What is neither fades to near white.
        grid: Tubelets `(t, h, w)`.
        scores: `[B, N]`; adds a second row in colour.
        scale: Scores that are palest and darkest; None takes each clip's 2nd and 98th percentile.
        meaning: What the caption says of the scores.

    Raises:
        ValueError: for videos of another type or shape, a grid that does not divide them, or a
            token outside the grid; each message shows the value.
    """
    groups: list[list[Strip]] = []
    clips_ = _videos(videos)
    for b, video in enumerate(clips_):
        shown = arrays.members(visible[b], grid)
        drawn = _firsts(arrays.overlay(video, visible[b], target[b], grid), grid)
        groups.append([Strip("mask" if scores is not None else "", drawn, shown.reshape(grid))])
        if scores is not None:
            row = _heat(video, np.asarray(scores)[b], grid, scale)
            groups[-1].append(Strip("score", _firsts(row, grid)))
    tokens = int(np.prod(grid))
    counts = [len(np.unique(np.asarray(index[0]))) for index in (visible, target)]
    caption = f"Of {tokens} tokens, {counts[0]} visible and {counts[1]} targets per clip."
    caption += " One frame per tubelet, its first." if clips_.shape[1] > grid[0] else ""
    caption += "" if scores is None else f" {meaning}"
    every = clips_.shape[1] // grid[0]
    head = [f"frame {i * every}" for i in range(grid[0])]
    _sheet(path, groups, caption, head, SWATCHES)


@matplotlib.rc_context(STYLE)
def strategies(
    path: epath.PathLike,
    videos: ArrayLike,
    chosen: Mapping[str, tuple[ArrayLike, ArrayLike]],
    grid: GridLike,
) -> None:
    """Draws what every strategy chose of the same clips, a row each, the clips side by side.

    Args:
        path: Where the PNG goes.
        videos: uint8 `[B, T, H, W, 3]`; as many clips are drawn as make 16 frames, at least one.
        chosen: Visible and target token indices, `[B, V]` and `[B, M]`, by name of the strategy.
        grid: Tubelets `(t, h, w)`.
    """
    clips_ = _videos(videos)
    drawn = clips_[: max(1, 16 // grid[0])]
    space = np.full((1, *clips_.shape[2:]), 255, np.uint8)
    none = np.zeros((1, *grid[1:]), bool)

    def row(parts: Sequence[NDArray[Any]], gap: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([x for part in parts for x in (gap, part)][1:])

    rows = [Strip("the clip", row([_firsts(video, grid) for video in drawn], space))]
    for name, (visible, target) in chosen.items():
        seen_, aimed = np.asarray(visible), np.asarray(target)
        shown = [arrays.members(v, grid).reshape(grid) for v in seen_]
        frames = [
            _firsts(arrays.overlay(video, v, m, grid), grid)
            for video, v, m in zip(drawn, seen_, aimed)
        ]
        label = f"{name.replace('_', ' ')}\n{seen_.shape[1]} + {aimed.shape[1]}"
        outline = row(shown[: len(drawn)], none)
        rows.append(Strip(label, row(frames, space), outline))
    caption = (
        f"Visible + target tokens of {int(np.prod(grid))}; one frame per tubelet, its first. A "
        "token that is visible and a target is shown as visible."
    )
    _sheet(path, [[row] for row in rows[:1]] + [rows[1:]], caption, (), SWATCHES)


@matplotlib.rc_context(STYLE)
def reconstruction(
    path: epath.PathLike,
    videos: ArrayLike,
    predicted: ArrayLike,
    target_index: Sequence[ArrayLike] | NDArray[Any],
    visible: Sequence[ArrayLike] | NDArray[Any],
    grid: GridLike,
    tubelet: tuple[int, int, int],
    kind: str = "normalised",
    scores: ArrayLike | None = None,
) -> None:
    """Draws original, score, what the encoder saw, prediction and error of each clip.

    Args:
        path: Where the PNG goes.
        videos: uint8 `[B, T, H, W, 3]`.
        predicted: `[B, M, P]` tubelets flattened in the order (t, h, w, c).
        target_index: Token indices `[B, M]` of the predictions.
        visible: Token indices `[B, V]`.
        grid: Tubelets `(t, h, w)`.
        tubelet: Pixels `(p_t, p_h, p_w)` of one tubelet.
        kind: Of targets. Predictions that are normalised per tubelet are drawn with the true
            mean and deviation, which flatters them; the caption says so.
        scores: `[B, N]`, what the mask was drawn by; None leaves the row out.

    Raises:
        ValueError: if grid times tubelet is not the size of the videos, or P is not the tubelet's;
            shows the sizes.
    """
    clips_, vectors = _videos(videos), np.asarray(predicted, dtype=np.float64)
    size = tuple(g * p for g, p in zip(grid, tubelet))
    if clips_.shape[1:4] != size or vectors.shape[-1] != 3 * int(np.prod(tubelet)):
        raise ValueError(
            f"grid {tuple(grid)} of tubelets {tuple(tubelet)} is a clip {size} with vectors of "
            f"{3 * int(np.prod(tubelet))}, got videos {clips_.shape[1:4]} and {vectors.shape[-1]}"
        )
    parts = list(zip(clips_, vectors, target_index, visible))
    errors = [arrays.token_errors(v, x, m, grid, kind) for v, x, m, _ in parts]
    high = float(np.nanpercentile(np.stack(errors), 98))
    groups = []
    for b, ((video, vector, index, shown), error) in enumerate(zip(parts, errors)):
        rows = {"original": video}
        if scores is not None:
            rows["score"] = _heat(video, np.asarray(scores)[b], grid)
        rows |= {
            "encoder saw": arrays.seen(video, shown, grid),
            "predicted": arrays.paste(video, vector, index, shown, grid, kind),
            "error": arrays.heat(video, error, grid, 0.0, high),
        }
        groups.append([Strip(name, _firsts(row, grid)) for name, row in rows.items()])
    mean = float(np.nanmean(np.stack(errors)))
    caption = (
        f"Predicted: target tokens from the model, visible ones from the clip, grey where neither. "
        f"Error: mean squared error per token, pale 0 to dark {high:.2g}; mean {mean:.3f}"
    )
    if kind != "pixels":
        caption += (
            " of normalised tubelets, where a flat guess scores 1. The predictions are drawn with "
            "the true mean and contrast of each tubelet, which the model does not know: the "
            "picture flatters it."
        )
    else:
        caption += " of pixels in [0, 1]."
    every = clips_.shape[1] // grid[0]
    _sheet(path, groups, caption, [f"frame {i * every}" for i in range(grid[0])])


@matplotlib.rc_context(STYLE)
def clips(
    path: epath.PathLike,
    videos: ArrayLike,
    labels: Sequence[str] | None = None,
    times: ArrayLike | None = None,
) -> None:
    """Draws a contact sheet: at most eight evenly spaced frames of each clip.

    Args:
        path: Where the PNG goes.
        videos: uint8 `[B, T, H, W, 3]`.
        labels: One name per clip.
        times: `[B, T]` in seconds, written under the frames.
    """
    clips_ = _videos(videos)
    frames = clips_.shape[1]
    chosen = np.arange(0, frames, -(-frames // 8))
    when = None if times is None else np.asarray(times, dtype=np.float64)
    groups = []
    for b, video in enumerate(clips_):
        under = [] if when is None else [f"{when[b, i]:.2f} s" for i in chosen]
        groups.append([Strip(str(labels[b]) if labels else "", video[chosen], under=under)])
    caption = f"{len(chosen)} of {frames} frames" if len(chosen) < frames else f"{frames} frames"
    caption += f" of {clips_.shape[3]} by {clips_.shape[2]} pixels per clip."
    _sheet(path, groups, caption, () if when is not None else [f"frame {i}" for i in chosen])
