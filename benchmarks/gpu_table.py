"""What benchmarks.gpu measured, as tables and a figure."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import peers, results


def of_kind(rows: Sequence[results.Row], kind: str) -> list[results.Row]:
    """Those of the rows that have numbers."""
    return [row for row in rows if row["kind"] == kind and row["numbers"]]


def table(numbers: Mapping[str, Any]) -> str:
    """All that was measured, in Markdown, and why the rest was not."""
    rows, parts = (
        numbers["rows"],
        [f"{numbers['device'] or 'no device'}, commit {numbers['commit']}"],
    )
    parts += [f"tests: {line}" for line in numbers["tests"]]
    if steps := of_kind(rows, "step"):
        parts.append(results.markdown([_step_line(row["job"], row["numbers"]) for row in steps]))
    if inputs := of_kind(rows, "input"):
        parts.append(results.markdown([_input_line(row["job"], row["numbers"]) for row in inputs]))
    parts += [peers.table(row["numbers"]["rows"]) for row in of_kind(rows, "peers")]
    left: dict[str, list[str]] = {}
    for row in rows:
        if row["why"]:
            left.setdefault(f"{row['status']}: {row['why']}", []).append(row["job"])
    lines = [f"- {why}: {'; '.join(names)}" for why, names in left.items()]
    return "\n\n".join([*parts, *(["\n".join(lines)] if lines else [])])


def _step_line(name: str, n: Mapping[str, Any]) -> dict[str, str]:
    return {
        "step": name,
        "clips": str(n["clips"]),
        "dtype, remat": f"{n['dtype']}, {n['remat']}",
        "tokens": f"{n['visible']} + {n['target']}",
        "ms": results.shown(1e3 * n["step_median_s"], ".4g"),
        "clips/s": results.shown(n["clips_per_s"], ".4g"),
        "TFLOP/s": results.shown(n["model_tflop_per_s_per_device"], ".3g"),
        "MFU": results.shown(n["mfu"], ".1%"),
        "GB planned": results.shown(n["memory_planned_gb"], ".1f"),
        "GB peak": results.shown(n.get("memory_device_peak_gb"), ".1f"),
        "compile": results.shown(n["compile_s"], ".1f", " s"),
    }


def _input_line(name: str, n: Mapping[str, Any]) -> dict[str, str]:
    return {
        "end to end": name,
        "clips": str(n["clips"]),
        "read from": "ArrayRecord" if n["packed"] else "mp4 files",
        "step alone, clips/s": f"{n['step_clips_per_s']:.4g}",
        "reading alone": f"{n['loader_clips_per_s']:.4g}",
        "a core": f"{n['loader_clips_per_s_per_core']:.3g}",
        "both": f"{n['end_to_end_clips_per_s']:.4g}",
        "of the step": f"{n['end_to_end_over_step']:.1%}",
        "of the slower": f"{n['end_to_end_over_slower']:.1%}",
    }


def draw(path: pathlib.Path, device: str, rows: Sequence[results.Row]) -> None:
    """One bar for each step: MFU, or TFLOP/s where the peak of the device is not known."""
    known = all(row["numbers"]["mfu"] is not None for row in rows)
    bars, labels = {}, []
    for row in rows:
        n, what = row["numbers"], row["job"].partition(" ")[2]
        tflops = n["model_tflop_per_s_per_device"]
        bars[row["job"]] = {what: 100 * n["mfu"] if known else tflops}
        size = f"{100 * n['mfu']:.0f} %" if known else f"{tflops:.3g} TFLOP/s"
        labels.append(f"{size}, {n['clips_per_s']:.4g} clips/s, batch {n['clips']}")
    said = f"A training step on {device}, {rows[0]['numbers']['dtype']}, of the model as published."
    results.stacked(path, bars, labels, "MFU, %" if known else "TFLOP/s", said)
