"""What a loop logs: rows in order. NaN and bad records end it."""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from mvm import config as schema
from mvm import data, health
from mvm.runtime import checkpoint, chip, metrics
from mvm.types import Metrics, UserError

log = logging.getLogger(__name__)

_SOON = 60.0
"""Seconds after which a run that waits for data is told so."""
_IN_FLIGHT = 2
"""Steps handed to the device ahead of their results: keeps it busy and its memory bounded."""


class Log:
    """Metrics of the steps since the last row, and the files that rows go to."""

    def __init__(
        self,
        checkpoints: checkpoint.Checkpoints,
        start: checkpoint.Progress,
        *,
        watch: health.Watch,
        failures: data.Failures,
        max_bad_fraction: float,
        project: str = "",
    ):
        first = jax.process_index() == 0
        self._rows = metrics.Metrics(checkpoints.workdir, start.step, first, project)
        self._checkpoints, self._watch = checkpoints, watch
        self._total, self._clips = watch.schedule.total_steps, watch.clips
        if first:  # A run that resumes is judged as if nothing had been.
            for row in metrics.read_rows(checkpoints.workdir / "metrics.jsonl"):
                watch.add(row)
        self._failures, self._allowed = failures, max_bad_fraction
        self._since: list[Metrics] = []  # Of each step without a row.
        self._waited = 0.0
        self._spent, self._idle = 0.0, 0.0
        self.skipped = start.skipped

    def start_clock(self, tflop: float, peak: float | None) -> None:
        """Time starts: the step is compiled.

        `tflop` are those of a step on each device, of the model as published, 0 where they are not
        counted; `peak` is TFLOP/s of a device, None where it is not known.
        """
        self._tflop, self._peak = tflop, peak
        self._began, self._waited = time.monotonic(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for a batch; counts it if the device has nothing to do meanwhile."""
        began = time.monotonic()
        yield
        if not self._since or self._since[-1]["loss"].is_ready():
            self._waited += time.monotonic() - began

    def add(self, step_metrics: Metrics) -> None:
        """Metrics of a step that was handed to the device; waits for the step before the last."""
        self._since.append(step_metrics)
        if len(self._since) > _IN_FLIGHT:
            self._since[-1 - _IN_FLIGHT]["loss"].block_until_ready()

    def row(self, step: int, used: int) -> None:
        """Waits for the steps since the last row and writes their means.

        `used` are the records that the run has consumed.
        """
        rows = jax.device_get(self._since)
        self._since.clear()
        # From the end of the last row's steps to the end of these.
        now, waited = time.monotonic(), self._waited
        seconds = max(now - self._began, 1e-9)
        self._began, self._waited = now, 0.0
        self.skipped += sum(int(one.pop("skipped")) for one in rows)
        self._check_finite(rows, step)
        values = {k: float(np.mean([r[k] for r in rows], dtype=np.float64)) for k in rows[0]}
        values |= {"learning_rate": float(rows[-1]["learning_rate"]), "skipped": self.skipped}
        self._rows.write(step, values)
        rate = len(rows) / seconds
        speed = {
            "clips_per_s": rate * self._clips,
            "waiting_for_data": waited / seconds,
        }
        if self._tflop:
            speed["model_tflop_per_s"] = rate * self._tflop
        if self._tflop and self._peak:
            speed["mfu"] = rate * self._tflop / self._peak
        if peak_bytes := chip.peak_bytes(jax.local_devices()[0]):
            speed["memory_peak_gb"] = peak_bytes / 1e9
        self._rows.write(step, speed, "speed.jsonl")
        said = "  ".join(f"{key} {value:.4g}" for key, value in (values | speed).items())
        left = metrics.duration((self._total - step) / rate)
        log.info("step %d/%d  %s  ETA %s", step, self._total, said, left)
        self._warn(self._watch.add({"step": step, **values}))
        self._check_idle(seconds, waited)
        self._check_skipped(used + self.skipped)

    def scores(self, step: int, scores: Mapping[str, float]) -> None:
        """A row of validation."""
        self._rows.write(step, scores)
        log.info("step %d  %s", step, "  ".join(f"{k} {v:.4g}" for k, v in scores.items()))
        self._warn(self._watch.add({"step": step, **scores}))

    def end(self) -> None:
        """Says once more what was wrong, also in warnings.txt."""
        self._warn(lines := self._watch.last())
        if jax.process_index() == 0:
            text = "".join(f"{line}\n" for line in lines)
            metrics.replace_text(self._checkpoints.workdir / "warnings.txt", text)

    def _warn(self, lines: list[str]) -> None:
        for line in lines:
            log.warning("WARNING %s", line)

    def _check_idle(self, seconds: float, waited: float) -> None:
        """Says once that the device waits for data."""
        before, self._spent, self._idle = self._spent, self._spent + seconds, self._idle + waited
        if before < _SOON <= self._spent and (share := self._idle / self._spent) > 0.5:
            cure = "set data.cache_gb if all frames fit in memory, more data.workers, or pack them"
            self._warn([f"{share:.0%} of the time is spent waiting for data; {cure}"])

    def _check_finite(self, rows: list[dict[str, Any]], step: int) -> None:
        for number, row in enumerate(rows, step - len(rows) + 1):
            if np.isfinite(row["loss"]) and np.isfinite(row["grad_norm"]):
                continue
            self._checkpoints.wait()
            cure = "in another --workdir"
            if good := checkpoint.steps_in(self._checkpoints.workdir):
                cure = (
                    f"and --config.{schema.ASK}=true, to resume from checkpoint {good[0]}, the "
                    f"last good one; if that fails again at once, delete that, too"
                )
            raise UserError(
                f"step {number}: loss {row['loss']}, gradient norm {row['grad_norm']}; repeat "
                f"with a lower --config.optim.base_lr or --config.optim.clip_norm=1, {cure}"
            )

    def _check_skipped(self, seen: int) -> None:
        if self.skipped > self._allowed * seen and self.skipped > 8:
            name, reason = next(iter(self._failures.items()), ("see the log", ""))
            raise UserError(
                f"{self.skipped} of {seen} records could not be read (first: {name}: {reason}); "
                f"mend the list or raise data.max_bad_fraction={self._allowed}"
            )
