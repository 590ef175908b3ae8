"""Steps of a run on disk: which there are, how far the run was, and which is the best."""

import math
import re
from typing import NamedTuple

from etils import epath


class Best(NamedTuple):
    """The best check of a run so far."""

    by: str
    """The metric, `train.keep_best`."""
    step: int
    value: float
    since: int = 0
    """Checks after it."""


def better(best: Best | None, by: str, step: int, value: float) -> Best:
    """The best after one more check: the first of equals, losses are to fall."""
    sign = -1 if "loss" in by else 1
    if best is None or sign * value > sign * best.value or math.isnan(best.value):
        return Best(by, step, value)
    return best._replace(since=best.since + 1)


class Progress(NamedTuple):
    """How far a run is."""

    step: int
    next_index: int
    """Position of the data iterator: training records consumed by all hosts together."""
    skipped: int
    """Records that could not be read so far."""
    records: str = ""
    """Number and digest of the training list; "" in checkpoints older than it."""
    best: Best | None = None
    """Of the checks until then, with `train.keep_best`."""

    def __str__(self) -> str:
        b = self.best
        best = f", the best by {b.by} {b.value:.4g}" if b and b.step == self.step else ""
        return f"step {self.step}{best}"


def is_step(path: epath.PathLike) -> bool:
    """Whether a folder is one step of a run, written to its end."""
    path = epath.Path(path)
    number = re.fullmatch("0|[1-9][0-9]*", path.name)
    return number is not None and (path / "_CHECKPOINT_METADATA").exists()


def steps_in(workdir: epath.PathLike) -> list[int]:
    """Steps of a run that were written to their end, newest first."""
    folder = epath.Path(workdir) / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted((int(p.name) for p in folder.iterdir() if is_step(p)), reverse=True)


def is_run(path: epath.PathLike) -> bool:
    """Whether a folder is a run directory or one of its steps."""
    return is_step(path) or (epath.Path(path) / "checkpoints").exists()
