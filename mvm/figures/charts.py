"""Charts: logged numbers over steps, and accuracies as bars."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from mvm.figures import arrays, style
from mvm.figures.style import (
    DASHES,
    INK,
    LINE,
    MARGIN,
    MUTED,
    PALE,
    PAPER,
    RULE,
    SERIES,
    SOLID,
    STYLE,
    WIDTH,
)

Row = dict[str, Any]


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
                line, averaged = arrays.smooth(value, max(3, len(value) // 40) | 1), True
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
    style.save(figure, path)


def _bars(
    names: Sequence[str], step: float, right: float, caption: str
) -> tuple[Figure, Axes, float]:
    """Empty axes for horizontal bars `step` inches apart, and their width in inches."""
    lines, wide = style.caption(caption, WIDTH - 2 * MARGIN), WIDTH
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
    style.save(figure, path)


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
        beside: Any = {"transform": axes.get_yaxis_transform(), "va": "center", "ha": "right"}
        axes.text(1 + at / inner, -1, name, color=MUTED, **beside)
        for y, text in enumerate(column):
            axes.text(1 + at / inner, y, text, color=colour, **beside)
    if cut:
        axes.axhline(most // 2 - 0.5, color=INK, lw=0.8, ls=(0, (1, 3)))
    axes.axvline(mean, color=SERIES[1], lw=1)
    style.save(figure, path)


@matplotlib.rc_context(STYLE)
def compute(
    path: epath.PathLike,
    points: Mapping[str, Sequence[tuple[float, float]]],
    scratch: Sequence[float] = (),
    chance: float | None = None,
) -> None:
    """Draws accuracy against the compute of pre-training, one colour per strategy.

    Args:
        path: Where the PNG goes.
        points: `(TFLOP, accuracy in percent)` of each run by name of the strategy. Runs of equal
            compute are seeds, whose means a line connects from budget to budget.
        scratch: Accuracies without pre-training, whose mean is drawn as a dashed line.
        chance: Accuracy of a blind guess in percent, drawn as a dotted line.

    Raises:
        ValueError: if there is no point at all.
    """
    if not any(points.values()):
        raise ValueError("points is empty: pass at least one strategy with a run")
    caption = (
        "Compute: floating-point operations of the matrix products of all pre-training steps; "
        "fine-tuning, the same for all, is not counted. Dots: single runs; lines connect means."
    )
    lines = style.caption(caption, WIDTH - 2 * MARGIN)
    tall, low, left, right = 3.4, 0.62 + len(lines) * LINE, 0.55, 1.9
    figure = Figure(figsize=(WIDTH, tall + low + 0.15))
    high, inner = figure.get_size_inches()[1], WIDTH - left - right
    axes = figure.add_axes((left / WIDTH, low / high, inner / WIDTH, tall / high))
    ends = []
    for number, (name, runs) in enumerate(points.items()):
        colour, mark = SERIES[number % len(SERIES)], "os^"[number // len(SERIES) % 3]
        budgets = sorted({x for x, _ in runs})
        means = [float(np.mean([y for x, y in runs if x == budget])) for budget in budgets]
        axes.plot(budgets, means, color=colour, lw=1.3)
        axes.plot(*zip(*runs), mark, color=colour, ms=4.6, mec=PAPER, mew=0.7, clip_on=False)
        ends.append((means[-1], f"{name.replace('_', ' ')}  {means[-1]:.1f}", colour, budgets[-1]))
    most = max(x for runs in points.values() for x, _ in runs)
    levels = [(float(np.mean(scratch)), "--", "from scratch")] if scratch else []
    levels += [(chance, ":", "chance")] if chance is not None else []
    for level, dash, name in levels:
        axes.axhline(level, color=MUTED, lw=0.9, ls=dash)
        ends.append((level, f"{name}  {level:.1f}", MUTED, most))
    top = min(100.0, 10 * np.ceil(max(level for level, *_ in ends) / 10) + 5)
    axes.set(xlim=(0, 1.04 * most), ylim=(0, top))
    axes.set(xlabel="compute of pre-training, TFLOP", ylabel="test top-1, %")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    places = _apart(sorted(level for level, *_ in ends), 0.155 * top / tall)
    for (y, text, colour, x), place in zip(sorted(ends), places):
        axes.annotate(
            text, (x, y), (1.06 * most, place), color=colour, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": RULE, "lw": 0.6, "shrinkA": 0, "shrinkB": 4},
        )  # fmt: skip
    _foot(figure, lines)
    style.save(figure, path)


def _apart(values: Sequence[float], gap: float) -> NDArray[np.float64]:
    """Ascending values from 0, moved as little as makes them at least `gap` apart."""
    offsets = gap * np.arange(len(values))
    # Non-decreasing least squares of what is left without the gaps: pool neighbours that cross.
    pools: list[list[float]] = []
    for value in np.asarray(values, np.float64) - offsets:
        pools.append([float(value)])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    flat = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools])
    return np.maximum(flat, 0) + offsets
