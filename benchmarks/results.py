"""What benchmarks share: where and at which commit they ran, and their numbers as files."""

import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
import matplotlib
import numpy as np
from absl import logging as absl_logging
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mvm.figures import style
from mvm.runtime import memory

Row = dict[str, Any]


def prepare(config: Any) -> None:
    """What a run does before it touches a device: quiet libraries, memory kept, CPU devices."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    memory.keep_freed()
    if config.train.cpu_devices > 1:
        jax.config.update("jax_num_cpu_devices", config.train.cpu_devices)


def where() -> dict[str, Any]:
    """The machine, the versions and the commit."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {"jax": jax.__version__, "flax": flax.__version__},
        "commit": commit(),
    }


def _cpu_name() -> str:
    """As Linux names it, else the architecture."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    known = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    fields = {key.strip(): value.strip() for key, value in known.items()}
    if "model name" not in fields:
        return platform.machine()
    return f"{fields['model name']}, family {fields.get('cpu family', '?')}"


def commit() -> str | None:
    """Commit of the code, "-dirty" appended if files differ from it; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    root = pathlib.Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def write(
    path: str, numbers: Any, table: str, draw: Callable[[pathlib.Path], None] | None = None
) -> None:
    """Writes the numbers to `path`; beside it, the table as .md and the figure as .png."""
    place = pathlib.Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(numbers, indent=2) + "\n")
    place.with_suffix(".md").write_text(table + "\n")
    if draw is not None:
        draw(place.with_suffix(".png"))


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of equal keys as a Markdown table, its columns aligned for the terminal."""
    names = list(rows[0])
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in names]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(w) for cell, w in zip(cells, widths)) + " |"

    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([line(names), rule, *(line([row[name] for name in names]) for row in rows)])


def shown(value: float | None, form: str = ".3g", unit: str = "") -> str:
    """A number for a table; a dash where there is none."""
    return "-" if value is None else f"{value:{form}}{unit}"


def _axes(caption: str, tall: float, left: float, right: float) -> tuple[Figure, Axes]:
    """Empty axes `tall` inches high under room for a legend, above a caption."""
    lines = style.caption(caption, style.WIDTH - 2 * style.MARGIN)
    low = 0.62 + len(lines) * style.LINE
    high = low + tall + 0.4
    figure = Figure(figsize=(style.WIDTH, high))
    spot = (left / style.WIDTH, low / high, 1 - (left + right) / style.WIDTH, tall / high)
    at = (style.MARGIN / style.WIDTH, style.MARGIN / high)
    figure.text(*at, "\n".join(lines), color=style.MUTED, fontsize=7.5, linespacing=1.4)
    return figure, figure.add_axes(spot)


@matplotlib.rc_context(style.STYLE)
def stacked(
    path: pathlib.Path,
    bars: Mapping[str, Mapping[str, float]],
    labels: Sequence[str],
    unit: str,
    caption: str,
) -> None:
    """Draws horizontal bars, each made of parts.

    Args:
        path: where the PNG goes.
        bars: size of every part by the part's name, by the bar's name; below 0 is drawn as 0.
        labels: what is written to the right of each bar.
        unit: of the sizes.
        caption: stands below.
    """
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    left = min(3.2, max(1.0, 0.068 * max(map(len, bars)) + 0.3))
    figure, axes = _axes(caption, 0.42 * len(bars), left, 2.2)
    colours = {part: style.SERIES[i % len(style.SERIES)] for i, part in enumerate(parts)}
    for y, (bar, label) in enumerate(zip(bars.values(), labels)):
        begins = 0.0
        for part, size in bar.items():
            shades: Any = {"color": colours[part], "alpha": 1.0 if parts.index(part) < 6 else 0.5}
            axes.barh(y, max(size, 0.0), left=begins, height=0.6, lw=0, **shades)
            begins += max(size, 0.0)
        beside = axes.get_yaxis_transform()
        axes.text(1.02, y, label, transform=beside, va="center", color=style.INK)
    axes.set(ylim=(len(bars) - 0.5, -0.5), xlabel=unit)
    axes.set_xlim(left=0)
    axes.set_yticks(range(len(bars)), list(bars), color=style.INK)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    if len(parts) > 1:
        patches = [
            Patch(color=colours[part], alpha=1.0 if i < 6 else 0.5) for i, part in enumerate(parts)
        ]
        figure.legend(
            patches, parts, ncols=len(parts), loc="upper left", borderaxespad=0, borderpad=0,
            bbox_to_anchor=(left / style.WIDTH, 1 - 0.08 / figure.get_figheight()),
            handlelength=0.9, handleheight=0.8, columnspacing=1.2,
        )  # fmt: skip
    style.save(figure, path)


@matplotlib.rc_context(style.STYLE)
def grown(
    path: pathlib.Path,
    panels: Mapping[str, Mapping[str, Sequence[tuple[str, float | None]]]],
    caption: str,
) -> None:
    """Draws how several things grow, as multiples of their first value, one panel per cause.

    Args:
        path: where the PNG goes.
        panels: `(value of the cause, size)` by the thing's name, by the cause; None is left out.
        caption: stands below.
    """
    figure, first = _axes(caption, 2.3, 0.5, 0.2)
    box, high = first.get_position(), figure.get_figheight()
    first.remove()
    gap, count = 0.45 / style.WIDTH, len(panels)
    wide = min((box.width - gap * (count - 1)) / count, 3.2 / style.WIDTH)
    names = list(dict.fromkeys(name for things in panels.values() for name in things))
    for place, (cause, things) in enumerate(panels.items()):
        left = box.x0 + place * (wide + gap)
        axes = figure.add_axes((left, box.y0, wide, box.height - 0.25 / high))
        for name, points in things.items():
            known = [(x, y) for x, y in points if y]
            if known:
                at = [[x for x, _ in points].index(x) for x, _ in known]
                base = known[0][1] or 1.0
                sizes = np.array([y for _, y in known], np.float64) / base
                axes.plot(at, sizes, "o-", color=style.SERIES[names.index(name)], lw=1.4, ms=3.5)
        ticks = [x for x, _ in next(iter(things.values()))]
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_title(cause, color=style.INK)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:g}x")
        axes.grid(axis="y")
    figure.legend(
        [Patch(color=style.SERIES[i]) for i in range(len(names))], names, ncols=len(names),
        loc="upper left", borderaxespad=0, borderpad=0, handlelength=0.9, handleheight=0.8,
        bbox_to_anchor=(box.x0, 1 - 0.08 / high),
    )  # fmt: skip
    style.save(figure, path)
