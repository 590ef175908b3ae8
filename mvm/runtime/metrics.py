"""What a run says about itself: rows of numbers, TensorBoard if installed, a progress line."""

import json
import logging
import os
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from mvm.runtime.chip import Work

log = logging.getLogger(__name__)


def replace_text(path: epath.PathLike, text: str) -> None:
    """Writes a file at once: a kill leaves the old one or the new one, never a part."""
    path = epath.Path(path)
    if "://" in os.fspath(path):  # There an object appears whole, and nothing can be renamed.
        path.write_text(text)
        return
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def read_rows(path: epath.PathLike) -> list[dict[str, Any]]:
    """Rows of a metrics file; what is no row is left out, such as a line cut short by a crash."""
    path = epath.Path(path)
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), 1):
        try:
            row = json.loads(line)
            rows.append({**row, "step": int(row["step"])})
        except (ValueError, TypeError, LookupError):
            log.warning("%s: line %d is no row, it is left out", path, number)
    return rows


def last_values(path: epath.PathLike) -> dict[str, Any]:
    """The last value of every key in a metrics file."""
    last: dict[str, Any] = {}
    for row in read_rows(path):
        last |= row
    return last


def _tensorboard(workdir: epath.Path) -> Any:
    """clu's writer of a new file, where TensorFlow and TensorBoard are installed, else None."""
    try:
        from clu import metric_writers
    except ImportError:
        return None
    for old in workdir.glob("events.out.tfevents*"):
        old.unlink()
    return metric_writers.SummaryWriter(str(workdir))


class Metrics:
    """Appends rows to the files of a run, and to TensorBoard's.

    `metrics.jsonl` is the same however often a run is interrupted, so it holds nothing that depends
    on the clock; that goes into `speed.jsonl`.

    Args:
        workdir: the run directory.
        step: where the run goes on; later rows of an earlier attempt are dropped.
        active: whether this process writes at all.
    """

    def __init__(self, workdir: epath.PathLike, step: int = 0, active: bool = True):
        self.active = active
        if not active:
            return
        self._folder, self._texts = epath.Path(workdir), {}
        self._board = _tensorboard(self._folder)
        for name in ("metrics.jsonl", "speed.jsonl"):
            rows = [row for row in read_rows(self._folder / name) if row["step"] <= step]
            self._texts[name] = "".join(json.dumps(row) + "\n" for row in rows)
            replace_text(self._folder / name, self._texts[name])
            for row in rows:
                self._show(row)

    def write(self, step: int, values: Mapping[str, float], name: str = "metrics.jsonl") -> None:
        """One row: the step and its values, keys in order."""
        if not self.active:
            return
        row = {"step": step, **{k: values[k] for k in sorted(values)}}
        line, path = json.dumps(row) + "\n", self._folder / name
        if "://" in os.fspath(path):  # Cloud storage cannot append: it would replace.
            self._texts[name] += line
            path.write_text(self._texts[name])
        else:
            with path.open("a") as file:
                file.write(line)
        self._show(row)

    def _show(self, row: Mapping[str, float]) -> None:
        if self._board is not None:
            self._board.write_scalars(row["step"], {k: row[k] for k in row if k != "step"})
            self._board.flush()


def duration(seconds: float) -> str:
    """Such as "4s", "3m20s" or "5h07m"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


class Lap(NamedTuple):
    """Steps of a loop between two looks at the clock."""

    step: int
    """The last of them."""
    num_steps: int
    seconds: float
    waited: float
    """Seconds in which the device had nothing to do, for want of data."""


class Clock:
    """Times a loop in laps.

    Args:
        start: the step the loop starts after.
    """

    def __init__(self, start: int):
        self._step, self._time = start, time.monotonic()
        self.waited = 0.0

    def restart(self) -> None:
        """Starts the lap anew: what went before was no part of the loop."""
        self._time, self.waited = time.monotonic(), 0.0

    def lap(self, step: int) -> Lap:
        """Ends a lap at `step` and starts the next."""
        now = time.monotonic()
        lap = Lap(step, step - self._step, max(now - self._time, 1e-9), self.waited)
        self._step, self._time, self.waited = step, now, 0.0
        return lap


def speed(lap: Lap, clips: int, work: Work, peak_bytes: int | None) -> dict[str, float]:
    """Rates of a lap, for a row of `speed.jsonl`.

    `clips` are those of a step on all devices, `work` that of each; "mfu" and "memory_peak_gb" are
    there where they are known.
    """
    rate = lap.num_steps / lap.seconds
    out = {"clips_per_s": rate * clips, "waiting_for_data": lap.waited / lap.seconds}
    out["model_tflop_per_s"] = rate * work.tflop
    if work.peak:
        out["mfu"] = rate * work.tflop / work.peak
    if peak_bytes is not None:
        out["memory_peak_gb"] = peak_bytes / 1e9
    return out


def progress(lap: Lap, total: int, values: Mapping[str, float], rates: Mapping[str, float]) -> str:
    """One line about a lap: metrics, rates from `speed`, time without data, time left."""
    parts = [f"step {lap.step}/{total}"]
    parts += [f"{name} {values[name]:.4g}" for name in ("loss", "accuracy") if name in values]
    parts += [f"lr {values['learning_rate']:.2e}", f"{rates['clips_per_s']:.1f} clips/s"]
    parts += [f"{rates['model_tflop_per_s']:.3g} TFLOP/s a device"]
    parts += [f"MFU {rates['mfu']:.1%}"] if "mfu" in rates else []
    parts += [f"peak {rates['memory_peak_gb']:.1f} GB"] if "memory_peak_gb" in rates else []
    parts += [f"waiting for data {rates['waiting_for_data']:.0%}"]
    left = (total - lap.step) * lap.seconds / lap.num_steps
    parts += [f"skipped {values['skipped']:.0f}", f"ETA {duration(left)}"]
    return "  ".join(parts)
