"""Frame selection along the time of long clips: which candidates were kept, and why."""

from typing import Any, NamedTuple

import matplotlib
import numpy as np
from etils import epath
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from mvm.figures import arrays, style
from mvm.figures.style import INK, LINE, MARGIN, MUTED, PALE, RULE, SERIES, STYLE, TINT, WIDTH


class Shares(NamedTuple):
    """How well a choice of slots meets events, as fractions."""

    inside: float
    """Of the chosen slots, those with an event."""
    busy: float
    """Of all slots, those with an event: what `inside` would be by chance."""
    found: float
    """Of the slots with an event, those chosen."""
    kept: float
    """Of all slots, those chosen: what `found` would be by chance."""


def shares(chosen: NDArray[np.bool_], busy: NDArray[np.bool_]) -> Shares:
    """Counts over all clips; NaN where there is nothing to count.

    Args:
        chosen: `[B, slots]`.
        busy: Whether an event shows in the slot, `[B, slots]`.
    """
    with np.errstate(invalid="ignore"):
        both, counts = np.sum(chosen & busy), np.array([chosen.sum(), busy.sum()], np.float64)
        inside, found = both / counts
        kept, share = counts / chosen.size
    return Shares(float(inside), float(share), float(found), float(kept))


@matplotlib.rc_context(STYLE)
def frames(
    path: epath.PathLike,
    videos: ArrayLike,
    counts: ArrayLike,
    slots: ArrayLike,
    busy: ArrayLike | None = None,
    most: int = 4,
) -> None:
    """Draws the candidate slots of each clip, how eventful they are and which were chosen.

    Args:
        path: Where the PNG goes.
        videos: All candidate frames, uint8 `[B, T, H, W, 3]`.
        counts: Informative tokens of each slot, `[B, slots]`.
        slots: Indices of those chosen, `[B, S]`.
        busy: Whether an event shows in a frame, `[B, T]`; None where nobody knows.
        most: Clips drawn; the caption counts over all.

    Raises:
        ValueError: if the slots do not divide the frames; shows both numbers.
    """
    clips, count = np.asarray(videos), np.asarray(counts)
    number, total = clips.shape[1], count.shape[1]
    if number % total:
        raise ValueError(f"{total} slots do not divide {number} frames")
    chosen = np.zeros(count.shape, bool)
    np.put_along_axis(chosen, np.asarray(slots), True, axis=1)
    lines = style.caption(_caption(chosen, busy, number), WIDTH - 2 * MARGIN)

    shown = min(most, len(clips))
    step = (WIDTH - 2 * MARGIN) / total
    side, tall = 0.92 * step, 0.92 * step * clips.shape[2] / clips.shape[3]
    bars, gap, top = 0.42, 0.2, 0.3
    height = MARGIN + top + shown * (tall + bars + gap) + len(lines) * LINE + MARGIN
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    _legend(axes, busy is not None)
    for b in range(shown):
        y = MARGIN + top + b * (tall + bars + gap)
        base = y + tall + bars
        if busy is not None:
            wide = step * total / number
            spans = [
                Rectangle((MARGIN + i * wide, y - 0.04), wide, tall + bars + 0.04)
                for i in np.flatnonzero(np.asarray(busy)[b])
            ]
            axes.add_collection(PatchCollection(spans, fc=TINT, lw=0, zorder=-1))
        axes.plot([MARGIN, WIDTH - MARGIN], [base, base], color=RULE, lw=0.6)
        for slot in range(total):
            x = MARGIN + slot * step + (step - side) / 2
            frame, kept = clips[b, slot * (number // total)], bool(chosen[b, slot])
            image = frame if kept else arrays.faded(frame)
            axes.imshow(image, extent=(x, x + side, y + tall, y), aspect="auto")
            colour = SERIES[0] if kept else MUTED
            edge: Any = {"ec": colour, "lw": 1.6} if kept else {"ec": RULE, "lw": 0.5}
            axes.add_patch(Rectangle((x, y), side, tall, fill=False, **edge))
            tip = (bars - 0.08) * count[b, slot] / max(1, count[b].max())
            bar: Any = {"fc": colour if kept else PALE, "ec": colour, "lw": 0.5}
            axes.add_patch(Rectangle((x, base - tip), side, tip, **bar))
    y = MARGIN + top + shown * (tall + bars + gap)
    axes.text(MARGIN, y, "\n".join(lines), color=MUTED, va="top", fontsize=7.5, linespacing=1.4)
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    style.save(figure, path)


def _legend(axes: Any, events: bool) -> None:
    marks = [(SERIES[0], SERIES[0], "chosen"), (PALE, MUTED, "not chosen")]
    marks += [(TINT, TINT, "an event")] if events else []
    x = MARGIN
    for face, edge, name in marks:
        axes.add_patch(Rectangle((x, MARGIN), 0.12, 0.12, fc=face, ec=edge, lw=0.5))
        axes.text(x + 0.18, MARGIN + 0.06, name, color=INK, va="center", fontsize=7.5)
        x += 0.42 + 0.058 * len(name)


def _caption(chosen: NDArray[np.bool_], busy: ArrayLike | None, number: int) -> str:
    total = chosen.shape[1]
    text = (
        f"The {number} candidate frames of each clip in {total} slots of {number // total}, the "
        "first of which is shown. Bars: tokens of a slot among the most moving ones of the clip, "
        "in parts of its highest bar. "
    )
    if busy is None:
        return text
    eventful = np.asarray(busy).reshape(len(chosen), total, -1).max(axis=-1)
    known = shares(chosen, eventful)
    return text + (
        f"Over {len(chosen)} clips, {known.found:.0%} of the slots with an event were chosen, by "
        f"chance {known.kept:.0%}; {known.inside:.0%} of the chosen slots have an event, by chance "
        f"{known.busy:.0%}."
    )
