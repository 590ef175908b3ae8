"""Figures: masks, reconstructions, curves, accuracies and contact sheets, written as PNG.

Small functions from arrays to arrays (`overlay`, `seen`, `paste`, `heat`) compute what is shown and
the figures lay it out. No window system, no global figure. Paths may be local or `gs://`.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray
from PIL import Image

GridLike = tuple[int, int, int]
Row = dict[str, Any]

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
EPSILON = 1e-6


# --- from arrays to arrays -----------------------------------------------------------------------


def split(video: NDArray[Any], grid: GridLike) -> NDArray[Any]:
    """Cuts a clip `[T, H, W, 3]` into its tubelets `[N, pixels, 3]`, token order t-major.

    Raises:
        ValueError: if the grid does not divide the clip; shows both.
    """
    size, channels = video.shape[:3], video.shape[3]
    if any(s % g for s, g in zip(size, grid)):
        raise ValueError(f"grid {tuple(grid)} does not divide a clip of T, H, W = {size}")
    (t, h, w), (dt, dh, dw) = grid, (s // g for s, g in zip(size, grid))
    blocks = video.reshape(t, dt, h, dh, w, dw, channels).transpose(0, 2, 4, 1, 3, 5, 6)
    return blocks.reshape(t * h * w, dt * dh * dw, channels)


def join(tubelets: NDArray[Any], grid: GridLike, size: Sequence[int]) -> NDArray[Any]:
    """Puts tubelets `[N, pixels, C]` back to a clip `[T, H, W, C]`; the inverse of `split`."""
    (t, h, w), (dt, dh, dw) = grid, (s // g for s, g in zip(size, grid))
    blocks = tubelets.reshape(t, h, w, dt, dh, dw, -1).transpose(0, 3, 1, 4, 2, 5, 6)
    return blocks.reshape(*size, -1)


def members(index: ArrayLike, grid: GridLike) -> NDArray[np.bool_]:
    """Turns token indices into a boolean `[N]`.

    Raises:
        ValueError: if an index lies outside the grid; shows it and N.
    """
    count, found = int(np.prod(grid)), np.asarray(index, dtype=np.int64).reshape(-1)
    outside = found[(found < 0) | (found >= count)]
    if outside.size:
        raise ValueError(f"token {outside[0]} is outside grid {tuple(grid)} of {count} tokens")
    result = np.zeros(count, dtype=bool)
    result[found] = True
    return result


def _rgb(colour: str) -> NDArray[np.float64]:
    return np.asarray([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float64)


def _luma(pixels: NDArray[Any]) -> NDArray[np.float64]:
    return (pixels @ np.asarray([0.299, 0.587, 0.114]))[..., None] / 255


def overlay(
    video: NDArray[np.uint8], visible: ArrayLike, target: ArrayLike, grid: GridLike
) -> NDArray[np.uint8]:
    """Shows a mask on its clip `[T, H, W, 3]`: visible as it is, targets tinted, the rest faded.

    A token that is both visible and a target (VideoMAE V2) is shown as visible.
    """
    shown, aimed = members(visible, grid), members(target, grid)
    tubelets = split(video, grid)
    faded = _rgb(FADE) * (0.86 + 0.14 * _luma(tubelets))
    tinted = _rgb(TINT) * (0.62 + 0.38 * _luma(tubelets))
    drawn = np.where(aimed[:, None, None], tinted, faded)
    drawn = np.where(shown[:, None, None], tubelets, np.rint(drawn)).astype(np.uint8)
    return join(drawn, grid, video.shape[:3])


def seen(video: NDArray[np.uint8], visible: ArrayLike, grid: GridLike) -> NDArray[np.uint8]:
    """The clip as the encoder gets it: visible tokens, all others one flat grey."""
    shown = members(visible, grid)[:, None, None]
    drawn = np.where(shown, split(video, grid), _rgb(GREY)).astype(np.uint8)
    return join(drawn, grid, video.shape[:3])


def normalise(tubelets: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Per tubelet and channel `(x - mean) / (sqrt(unbiased variance) + 1e-6)`, x in [0, 1]."""
    x = tubelets / 255.0
    return (x - x.mean(1, keepdims=True)) / (x.std(1, ddof=1, keepdims=True) + EPSILON)


def unnormalise(
    values: NDArray[np.floating[Any]], tubelets: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Inverse of `normalise`, with the true mean and deviation of `tubelets`; not clipped."""
    x = tubelets / 255.0
    return values * (x.std(1, ddof=1, keepdims=True) + EPSILON) + x.mean(1, keepdims=True)


def paste(
    video: NDArray[np.uint8],
    predicted: ArrayLike,
    target: ArrayLike,
    visible: ArrayLike,
    grid: GridLike,
    normalised: bool = True,
) -> NDArray[np.uint8]:
    """Puts predicted tubelets into the clip: visible tokens as they are, the rest grey.

    Args:
        video: The true clip `[T, H, W, 3]`.
        predicted: `[M, P]`, each a tubelet flattened in the order (t, h, w, c).
        target: Token index `[M]` of each prediction. A visible target shows its prediction.
        visible: Token indices `[V]`.
        grid: Tubelets `(t, h, w)`.
        normalised: Predictions are normalised per tubelet and are scaled back with its true mean
            and deviation, which a model does not know; else they are in [0, 1].
    """
    tubelets, index = split(video, grid), np.asarray(target, dtype=np.int64)
    values = np.asarray(predicted, dtype=np.float64).reshape(len(index), *tubelets.shape[1:])
    pixels = unnormalise(values, tubelets[index]) if normalised else values
    drawn = split(seen(video, visible, grid), grid)
    drawn[index] = np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
    return join(drawn, grid, video.shape[:3])


def token_errors(
    video: NDArray[np.uint8],
    predicted: ArrayLike,
    target: ArrayLike,
    grid: GridLike,
    normalised: bool = True,
) -> NDArray[np.float64]:
    """Mean squared error of each predicted tubelet, `[N]`; NaN where nothing was predicted.

    In the space the loss lives in: of normalised tubelets, where 1 is a flat grey guess, or of
    pixels in [0, 1].
    """
    tubelets, index = split(video, grid), np.asarray(target, dtype=np.int64)
    true = normalise(tubelets[index]) if normalised else tubelets[index] / 255.0
    values = np.asarray(predicted, dtype=np.float64).reshape(true.shape)
    errors = np.full(len(tubelets), np.nan)
    errors[index] = np.square(values - true).mean(axis=(1, 2))
    return errors


def heat(
    video: NDArray[np.uint8], values: ArrayLike, grid: GridLike, low: float, high: float
) -> NDArray[np.uint8]:
    """Colours the clip by one number per token `[N]`, pale `low` to dark `high`; NaN is grey."""
    x = np.asarray(values, dtype=np.float64)[:, None, None]
    unit = np.clip((x - low) / (high - low if high > low else 1.0), 0, 1)
    colour = 255 * np.asarray(HEAT(np.nan_to_num(unit[:, :, 0])))[..., :3]
    mixed = colour * (0.7 + 0.3 * _luma(split(video, grid)))
    drawn = np.where(np.isnan(x), _rgb(GREY), np.rint(mixed)).astype(np.uint8)
    return join(drawn, grid, video.shape[:3])


def borders(region: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Segments `[S, 2, 2]` of (x, y), in cells, that part true from false cells of `[h, w]`."""
    padded = np.pad(region, 1)
    y, x = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    upright = np.stack([np.stack([x, y], 1), np.stack([x, y + 1], 1)], 1)
    y, x = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    level = np.stack([np.stack([x, y], 1), np.stack([x + 1, y], 1)], 1)
    return np.concatenate([upright, level]).astype(np.float64)


# --- sheets of frames ----------------------------------------------------------------------------


class Strip(NamedTuple):
    """One row of a sheet."""

    label: str
    frames: NDArray[np.uint8]  # [F, H, W, 3]
    outline: NDArray[np.bool_] | None = None  # [F, h, w]
    under: Sequence[str] = ()  # one text below each frame


def _save(figure: Figure, path: epath.PathLike) -> None:
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


def _videos(videos: ArrayLike) -> NDArray[np.uint8]:
    array = np.asarray(videos)
    if array.dtype != np.uint8 or array.ndim != 5 or array.shape[-1] != 3:
        raise ValueError(
            f"videos must be uint8 [B, T, H, W, 3], got {array.dtype} {list(array.shape)}"
        )
    return array


def _caption(text: str, width: float) -> list[str]:
    return textwrap.wrap(text, int(width * 17.5))


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
    lines = _caption(caption, max(full, 5.0) - 2 * MARGIN)

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
            name = "\n".join(textwrap.wrap(strip.label, 13)[:4])
            texts.append((left - 0.12, y + tall / 2, name, INK, "right"))
            for i, frame in enumerate(strip.frames):
                x = left + i * (side + GAP)
                images.append((frame, (x, x + side, y + tall, y)))
                if strip.outline is not None:
                    h, w = strip.outline[i].shape
                    segments.append(borders(strip.outline[i]) * [side / w, tall / h] + [x, y])
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
    smooth = "antialiased" if width / side > DPI / 2.5 else "nearest"
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
    _save(figure, path)


def _firsts(video: NDArray[Any], grid: GridLike) -> NDArray[Any]:
    return video[:: video.shape[0] // grid[0]]


@matplotlib.rc_context(STYLE)
def masks(
    path: epath.PathLike,
    videos: ArrayLike,
    visible: Sequence[ArrayLike] | NDArray[Any],
    target: Sequence[ArrayLike] | NDArray[Any],
    grid: GridLike,
    scores: ArrayLike | None = None,
) -> None:
    """Draws what a masking strategy chose, a row per clip and one frame per tubelet slot.

    Args:
        path: Where the PNG goes.
        videos: uint8 `[B, T, H, W, 3]`; two to four clips read best.
        visible: Token indices `[B, V]`, shown as they are within an outline.
        target: Token indices `[B, M]`, tinted. What is neither fades to near white.
        grid: Tubelets `(t, h, w)`.
        scores: `[B, N]`; adds a second row in colour, from each clip's 2nd to 98th percentile.

    Raises:
        ValueError: for videos of another type or shape, a grid that does not divide them, or a
            token outside the grid; each message shows the value.
    """
    groups: list[list[Strip]] = []
    clips_ = _videos(videos)
    for b, video in enumerate(clips_):
        shown = members(visible[b], grid)
        drawn = _firsts(overlay(video, visible[b], target[b], grid), grid)
        groups.append([Strip("mask" if scores is not None else "", drawn, shown.reshape(grid))])
        if scores is not None:
            row = np.asarray(scores, dtype=np.float64)[b]
            row = np.where(np.isfinite(row), row, np.nan)
            low, high = (0.0, 1.0) if np.isnan(row).all() else np.nanpercentile(row, (2, 98))
            groups[-1].append(Strip("score", _firsts(heat(video, row, grid, low, high), grid)))
    tokens = int(np.prod(grid))
    counts = [len(np.unique(np.asarray(index[0]))) for index in (visible, target)]
    caption = f"Of {tokens} tokens, {counts[0]} visible and {counts[1]} targets per clip."
    caption += " One frame per tubelet, its first." if clips_.shape[1] > grid[0] else ""
    caption += (
        "" if scores is None else " Score: pale is low, dark is high, scaled within each clip."
    )
    every = clips_.shape[1] // grid[0]
    head = [f"frame {i * every}" for i in range(grid[0])]
    swatches = [(PAPER, "visible, as it is"), (TINT, "target"), (FADE, "neither")]
    _sheet(path, groups, caption, head, swatches)


@matplotlib.rc_context(STYLE)
def reconstruction(
    path: epath.PathLike,
    videos: ArrayLike,
    predicted: ArrayLike,
    target_index: Sequence[ArrayLike] | NDArray[Any],
    visible: Sequence[ArrayLike] | NDArray[Any],
    grid: GridLike,
    tubelet: tuple[int, int, int],
    normalised: bool = True,
) -> None:
    """Draws original, what the encoder saw, prediction and error of each clip.

    Args:
        path: Where the PNG goes.
        videos: uint8 `[B, T, H, W, 3]`.
        predicted: `[B, M, P]` tubelets flattened in the order (t, h, w, c).
        target_index: Token indices `[B, M]` of the predictions.
        visible: Token indices `[B, V]`.
        grid: Tubelets `(t, h, w)`.
        tubelet: Pixels `(p_t, p_h, p_w)` of one tubelet.
        normalised: Predictions are normalised per tubelet. They are drawn with the true mean and
            deviation, which flatters them; the caption says so.

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
    errors = [token_errors(v, x, m, grid, normalised) for v, x, m, _ in parts]
    high = float(np.nanpercentile(np.stack(errors), 98))
    groups = []
    for (video, vector, index, shown), error in zip(parts, errors):
        rows = {
            "original": video,
            "encoder saw": seen(video, shown, grid),
            "predicted": paste(video, vector, index, shown, grid, normalised),
            "error": heat(video, error, grid, 0.0, high),
        }
        groups.append([Strip(name, _firsts(row, grid)) for name, row in rows.items()])
    mean = float(np.nanmean(np.stack(errors)))
    caption = (
        f"Predicted: target tokens from the model, visible ones from the clip, grey where neither. "
        f"Error: mean squared error per token, pale 0 to dark {high:.2g}; mean {mean:.3f}"
    )
    if normalised:
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


# --- charts --------------------------------------------------------------------------------------


def _foot(figure: Figure, lines: Sequence[str]) -> None:
    width, height = figure.get_size_inches()
    figure.text(
        MARGIN / width,
        MARGIN / height,
        "\n".join(lines),
        color=MUTED,
        fontsize=7.5,
        linespacing=1.4,
    )


def smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean over up to `window` values centred on each; shorter at the ends, NaN left out."""
    finite = np.isfinite(values)
    sums = np.convolve(np.where(finite, values, 0.0), np.ones(window), "same")
    counts = np.convolve(finite.astype(float), np.ones(window), "same")
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


@matplotlib.rc_context(STYLE)
def curves(
    path: epath.PathLike,
    runs: Mapping[str, Sequence[Row]],
    keys: Sequence[str] = ("loss", "learning_rate"),
) -> None:
    """Draws logged numbers over steps, one small chart per key.

    Args:
        path: Where the PNG goes.
        runs: Rows of `metrics.jsonl` by name of the run; each has `step` and some of the keys.
        keys: What to draw; a key that no row has is left out.

    Raises:
        ValueError: if no row has any of the keys; names the keys.
    """
    found = [key for key in keys if any(key in row for rows in runs.values() for row in rows)]
    if not found:
        raise ValueError(f"no row of {list(runs)} has any of {list(keys)}; name a logged key")
    columns = 2 if len(found) == 4 else min(len(found), 3)
    wide = (6.4, WIDTH / 2, WIDTH / 3)[columns - 1]
    left, right, tall, low = 0.55, (0.65 if len(runs) == 1 else 0.2), 2.3, 0.62
    top = 0.32 if len(runs) > 1 else 0.0
    count = -(-len(found) // columns)
    figure = Figure(figsize=(columns * wide, top + count * (tall + low) + 0.3))
    width, height = figure.get_size_inches()
    averaged = False
    for place, key in enumerate(found):
        x, y = place % columns * wide + left, height - top - place // columns * (tall + low) - tall
        spot = (x / width, y / height, (wide - left - right) / width, (tall - 0.3) / height)
        chart = figure.add_axes(spot)
        for number, rows in enumerate(runs.values()):
            pairs = [(row["step"], row[key]) for row in rows if key in row]
            if not pairs:
                continue
            step, value = np.asarray(pairs, dtype=np.float64).T
            colour = SERIES[number % len(SERIES)]
            dash = DASHES[number // len(SERIES) % 3]
            line = value
            if len(value) >= 60 and key != "learning_rate":
                chart.plot(step, value, color=colour, lw=0.6, alpha=0.28)
                line, averaged = smooth(value, max(3, len(value) // 40) | 1), True
            chart.plot(step, line, dash, color=colour, lw=1.5, solid_capstyle="round")
            if len(runs) == 1:
                chart.plot(step[-1:], line[-1:], "o", color=colour, ms=3.5, clip_on=False)
                chart.annotate(
                    f"{line[-1]:.3g}", (step[-1], line[-1]), (5, 0), textcoords="offset points",
                    color=colour, va="center", annotation_clip=False,
                )  # fmt: skip
        chart.set_title(key.replace("_", " "), color=INK)
        chart.set_xlabel("step")
        chart.grid(axis="y")
        chart.margins(x=0)
        chart.locator_params(nbins=5)
        chart.yaxis.set_major_formatter("{x:g}")
    if len(runs) > 1:
        looks = [(SERIES[i % len(SERIES)], DASHES[i // len(SERIES) % 3]) for i in range(len(runs))]
        figure.legend(
            [Line2D([], [], color=colour, ls=dash) for colour, dash in looks], list(runs),
            ncols=min(len(runs), 5), loc="upper left", borderaxespad=0, borderpad=0,
            bbox_to_anchor=(left / width, 1 - 0.1 / height), handlelength=1.6,
        )  # fmt: skip
    _foot(figure, ["Bold: centred running mean. Faint: every logged value."] if averaged else [])
    _save(figure, path)


def _bars(
    names: Sequence[str], step: float, right: float, caption: str
) -> tuple[Figure, Axes, float]:
    """Empty axes for horizontal bars `step` inches apart, and their width in inches."""
    lines, wide = _caption(caption, WIDTH - 2 * MARGIN), WIDTH
    left = min(3.2, max(1.0, 0.068 * max(map(len, names)) + 0.3))
    inner, bars, low = wide - left - right, len(names) * step, 0.62 + len(lines) * LINE
    figure = Figure(figsize=(wide, bars + low + 0.28))
    high = figure.get_size_inches()[1]
    axes = figure.add_axes((left / wide, low / high, inner / wide, bars / high))
    axes.set(ylim=(len(names) - 0.5, -0.5), xlim=(0, 100), xlabel="accuracy, %")
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.spines["left"].set_color(RULE)
    axes.spines["bottom"].set_visible(False)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    _foot(figure, lines)
    return figure, axes, inner


@matplotlib.rc_context(STYLE)
def accuracies(
    path: epath.PathLike, results: Mapping[str, Sequence[float]], chance: float | None = None
) -> None:
    """Draws the accuracy of each arm: mean, single seeds, and the line from lowest to highest.

    Args:
        path: Where the PNG goes.
        results: Accuracies in percent, one per seed, by name of the arm; drawn in this order.
        chance: Accuracy of a blind guess in percent, drawn as a dashed line.

    Raises:
        ValueError: if there is no arm, an arm has no value, or one outside 0 to 100; names it.
    """
    if not results:
        raise ValueError("results is empty: pass at least one arm with its accuracies")
    for name, values in results.items():
        if not len(values) or not all(0 <= value <= 100 for value in values):
            raise ValueError(f"arm {name!r} needs accuracies in percent, got {list(values)}")
    several = max(map(len, results.values())) > 1
    caption = "One seed per arm."
    if several:
        caption = "Bar and number: mean. Dots: seeds. Line and range: lowest to highest seed."
    caption += "" if chance is None else f" Dashed: chance, {chance:.3g}%."
    figure, axes, inner = _bars(list(results), 0.46, 1.5 if several else 0.7, caption)
    for y, values in enumerate(results.values()):
        mean, low, high = sum(values) / len(values), min(values), max(values)
        axes.barh(y, mean, height=0.56, color=PALE, lw=0)
        axes.plot([mean, mean], [y - 0.28, y + 0.28], color=SERIES[0], lw=2, solid_capstyle="butt")
        right = axes.get_yaxis_transform()
        axes.text(
            1 + 0.15 / inner, y, f"{mean:.1f}", transform=right, va="center", size=10, weight="bold"
        )
        if len(values) > 1:
            axes.plot([low, high], [y, y], color=SERIES[0], lw=1)
            # Neighbouring seeds are moved apart vertically; the offset means nothing.
            shift = np.resize([-0.1, 0.1, 0.0], len(values))[np.argsort(np.argsort(values))]
            axes.plot(list(values), y + shift, "o", color=SERIES[0], ms=4.2, mec=PAPER, mew=0.7)
            text = f"{low:.1f} to {high:.1f}"
            axes.text(1 + 0.65 / inner, y, text, transform=right, va="center", color=MUTED)
    if chance is not None:
        axes.axvline(chance, color=MUTED, lw=0.9, ls=(0, (4, 3)))
    _save(figure, path)


@matplotlib.rc_context(STYLE)
def per_class(
    path: epath.PathLike,
    names: Sequence[str],
    accuracy: Sequence[float] | NDArray[Any],
    counts: Sequence[int] | NDArray[Any],
    most: int = 40,
) -> None:
    """Draws the accuracy of each class, best on top, with how many videos it stands on.

    Args:
        path: Where the PNG goes.
        names: Class names `[C]`.
        accuracy: In percent `[C]`; NaN for a class without videos, which is left out and counted.
        counts: Videos `[C]`.
        most: With more classes than this, only the best and the worst half of it are drawn.

    Raises:
        ValueError: if the three lengths differ or no class has a video; shows them.
    """
    values, videos = np.asarray(accuracy, dtype=np.float64), np.asarray(counts)
    if not len(names) == len(values) == len(videos) or not np.isfinite(values).any():
        shape = f"{len(names)} names, {len(values)} accuracies, {len(videos)} counts"
        raise ValueError(f"need one name, accuracy and count per class and one video, got {shape}")
    order = np.argsort(-values, kind="stable")[: int(np.isfinite(values).sum())]
    cut = len(order) > most
    kept = np.concatenate([order[: most // 2], order[-(most // 2) :]]) if cut else order
    labels = [textwrap.shorten(str(names[i]), 38, placeholder=" …") for i in kept]
    mean, empty = float(np.nanmean(values)), len(names) - len(order)
    caption = f"Line: mean over classes, {mean:.1f}%."
    caption += f" The best and the worst {most // 2} of {len(order)} classes." if cut else ""
    caption += f" {empty} classes without videos left out." if empty else ""
    figure, axes, inner = _bars(labels, 0.19, 1.1, caption)
    axes.barh(range(len(kept)), values[kept], height=0.68, color=SOLID, lw=0)
    shown = [f"{values[i]:.0f}" for i in kept], [f"{videos[i]:d}" for i in kept]
    for at, name, colour, column in zip((0.38, 0.88), ("%", "videos"), (INK, MUTED), shown):
        style: Any = {"transform": axes.get_yaxis_transform(), "va": "center", "ha": "right"}
        axes.text(1 + at / inner, -1, name, color=MUTED, **style)
        for y, text in enumerate(column):
            axes.text(1 + at / inner, y, text, color=colour, **style)
    if cut:
        axes.axhline(most // 2 - 0.5, color=INK, lw=0.8, ls=(0, (1, 3)))
    axes.axvline(mean, color=SERIES[1], lw=1)
    _save(figure, path)
