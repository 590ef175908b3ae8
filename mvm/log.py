"""What a loop logs: rows in order, each when its steps have run. NaN and bad records end it."""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from mvm import config as keys
from mvm import data
from mvm.runtime import checkpoint, chip
from mvm.runtime import metrics as telemetry
from mvm.types import Metrics, UserError

log = logging.getLogger(__name__)

_IN_FLIGHT = 2
"""Steps handed to the device ahead of their results: keeps it busy and its memory bounded."""


class Counts(NamedTuple):
    """What a step takes, and where the run resumed."""

    begun: checkpoint.Place
    records: int
    """Of a step, all processes together."""
    clips: int
    total_steps: int

    def used(self, step: int) -> int:
        """Records consumed; earlier steps may have had batches of another size."""
        return self.begun.next_index + (step - self.begun.step) * self.records


class Log:
    """Metrics of steps under way, and the rows written once they have run.

    Attributes:
        skipped: records that could not be read so far.
    """

    def __init__(
        self,
        workdir: epath.Path,
        counts: Counts,
        failures: data.Failures,
        max_bad_fraction: float,
        checkpoints: checkpoint.Checkpoints,
    ):
        self._counts, self._failures, self._allowed = counts, failures, max_bad_fraction
        self._checkpoints, self._device = checkpoints, jax.local_devices()[0]
        self._rows = telemetry.Metrics(workdir, counts.begun.step, jax.process_index() == 0)
        self._clock = telemetry.Clock(counts.begun.step)
        self._pending: deque[Metrics] = deque()  # Of steps without a row.
        self._due: deque[telemetry.Lap] = deque()  # Without a row.
        self._work = chip.Work(0.0, None)
        self.skipped = counts.begun.skipped

    def start(self, work: chip.Work) -> None:
        """The step is compiled: its work, and time starts."""
        self._work = work
        self._clock.restart()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for a batch; counts it if the device has nothing to do meanwhile."""
        began = time.monotonic()
        yield
        if not self._pending or self._pending[-1]["loss"].is_ready():
            self._clock.waited += time.monotonic() - began

    def add(self, metrics: Metrics) -> None:
        """Metrics of a step that was handed to the device; waits for the step before the last."""
        self._pending.append(metrics)
        if len(self._pending) > _IN_FLIGHT:
            self._pending[-1 - _IN_FLIGHT]["loss"].block_until_ready()

    def lap(self, step: int, keep: int) -> None:
        """Ends a lap; writes rows that are due, except the newest `keep`: those may still run.

        Raises:
            UserError: for a loss that is not finite, or too many unreadable records.
        """
        self._due.append(self._clock.lap(step))
        while len(self._due) > keep:
            lap = self._due.popleft()
            rows = jax.device_get([self._pending.popleft() for _ in range(lap.num_steps)])
            self.skipped += sum(int(row.pop("skipped")) for row in rows)
            values = self._mean(rows, lap.step) | {"skipped": self.skipped}
            self._rows.write(lap.step, values)
            peak = chip.peak_bytes(self._device)
            rates = telemetry.speed(lap, self._counts.clips, self._work, peak)
            self._rows.write(lap.step, rates, "speed.jsonl")
            log.info(telemetry.progress(lap, self._counts.total_steps, values, rates))
            self._check_skipped(lap.step)

    def scores(self, step: int, scores: Mapping[str, float]) -> None:
        """A row of validation."""
        self._rows.write(step, scores)
        log.info("step %d  %s", step, "  ".join(f"{k} {v:.2f}" for k, v in scores.items()))

    def _mean(self, rows: list[dict[str, Any]], step: int) -> dict[str, float]:
        """Means over a lap; of the learning rate, its last value."""
        for offset, row in enumerate(rows, step - len(rows) + 1):
            if not (np.isfinite(row["loss"]) and np.isfinite(row["grad_norm"])):
                self._checkpoints.wait()
                kept = checkpoint.steps_in(self._checkpoints.workdir)
                raise UserError(
                    f"step {offset}: loss {row['loss']}, gradient norm {row['grad_norm']}; the "
                    f"last good checkpoint is {kept[0] if kept else 'none'}. Repeat with a lower "
                    f"--config.optim.base_lr or with --config.optim.clip_norm=1, and "
                    f"--config.{keys.ASK}=true, to resume from there; if that fails again at once, "
                    f"delete that checkpoint, too"
                )
        mean = {k: float(np.mean([row[k] for row in rows], dtype=np.float64)) for k in rows[0]}
        return mean | {"learning_rate": float(rows[-1]["learning_rate"])}

    def _check_skipped(self, step: int) -> None:
        seen = self._counts.used(step) + self.skipped
        if self.skipped > self._allowed * seen and self.skipped > 8:
            failed = self._failures.items
            name, reason = failed[0] if failed else ("see the log", "")
            raise UserError(
                f"{self.skipped} of {seen} records could not be read (first: {name}: {reason}); "
                f"mend the list or raise data.max_bad_fraction={self._allowed}"
            )
