"""What a run says about itself: metrics.jsonl, TensorBoard if installed, and a progress line."""

import json
import logging
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

log = logging.getLogger(__name__)


def replace_text(path: epath.PathLike, text: str) -> None:
    """Writes a file at once: a kill leaves the old one or the new one, never a part."""
    path = epath.Path(path)
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def read_rows(path: epath.PathLike) -> list[dict[str, Any]]:
    """Rows of a metrics file; a last line cut short by a crash is left out."""
    path = epath.Path(path)
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def last_values(path: epath.PathLike) -> dict[str, Any]:
    """The last value of every key in a metrics file."""
    last: dict[str, Any] = {}
    for row in read_rows(path):
        last |= row
    return last


def _tensorboard(workdir: epath.Path) -> Any:
    """clu's writer, where TensorFlow and TensorBoard are installed, else None."""
    try:
        from clu import metric_writers
    except ImportError:
        return None
    return metric_writers.SummaryWriter(str(workdir))


class Metrics:
    """Appends rows to `metrics.jsonl`: what depends on seed and data alone, never on the clock.

    Args:
        workdir: the run directory.
        step: where the run goes on; later rows of an earlier attempt are dropped.
        active: whether this process writes at all.
    """

    def __init__(self, workdir: epath.PathLike, step: int = 0, active: bool = True):
        self.active = active
        if not active:
            return
        self.path = epath.Path(workdir) / "metrics.jsonl"
        rows = [row for row in read_rows(self.path) if row["step"] <= step]
        replace_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self.board = _tensorboard(epath.Path(workdir))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row: the step and its values, keys in order."""
        if not self.active:
            return
        line = json.dumps({"step": step, **{k: values[k] for k in sorted(values)}})
        with self.path.open("a") as file:
            file.write(line + "\n")
        if self.board is not None:
            self.board.write_scalars(step, dict(values))
            self.board.flush()


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

    def lap(self, step: int) -> Lap:
        """Ends a lap at `step` and starts the next."""
        now = time.monotonic()
        lap = Lap(step, step - self._step, max(now - self._time, 1e-9), self.waited)
        self._step, self._time, self.waited = step, now, 0.0
        return lap


def progress(lap: Lap, total: int, batch_size: int, values: Mapping[str, float]) -> str:
    """One line about a lap: metrics, rate, share of time without data, time left."""
    rate = lap.num_steps / lap.seconds
    parts = [f"step {lap.step}/{total}"]
    parts += [f"{name} {values[name]:.4g}" for name in ("loss", "accuracy") if name in values]
    parts += [f"lr {values['learning_rate']:.2e}", f"{rate * batch_size:.1f} clips/s"]
    parts += [f"waiting for data {lap.waited / lap.seconds:.0%}"]
    parts += [f"skipped {values['skipped']:.0f}", f"ETA {duration((total - lap.step) / rate)}"]
    return "  ".join(parts)
