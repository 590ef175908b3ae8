"""What a run says about itself: metrics.jsonl, TensorBoard if installed, and a progress line."""

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

log = logging.getLogger(__name__)


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
        self.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
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


class Clock:
    """Times a loop: rate, share of time without data, and the time that is left.

    Args:
        total: steps of the run.
        start: the step the clock starts at.
    """

    def __init__(self, total: int, start: int):
        self.total, self.last_step = total, start
        self.last_time = time.monotonic()
        self.waited = 0.0

    def progress(self, step: int, batch_size: int, values: Mapping[str, float]) -> str:
        """One line about the steps since the last call."""
        now = time.monotonic()
        seconds, steps = now - self.last_time, step - self.last_step
        rate = steps / max(seconds, 1e-9)
        parts = [f"step {step}/{self.total}"]
        parts += [f"{name} {values[name]:.4g}" for name in ("loss", "accuracy") if name in values]
        parts += [f"lr {values['learning_rate']:.2e}", f"{rate * batch_size:.1f} clips/s"]
        parts += [f"waiting for data {self.waited / max(seconds, 1e-9):.0%}"]
        if values.get("skipped"):
            parts.append(f"skipped {values['skipped']:.0f}")
        parts.append(f"ETA {duration((self.total - step) / max(rate, 1e-9))}")
        self.last_time, self.last_step, self.waited = now, step, 0.0
        return "  ".join(parts)
