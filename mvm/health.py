"""What the rows of a run tell when it does not learn: one line each, with the likeliest cure."""

import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from mvm.optim import Schedule

Row = Mapping[str, Any]

FEW = 20  # Steps; a shorter run tries whether a recipe works at all.
FAIR, SOON = 0.3, 2000  # Part of the run and steps after warm-up; by the first something is learnt.
RECENT = 0.1  # Part of the run whose rows are averaged: single batches scatter.
MARGIN = 0.02  # Of a loss; that of a constant answer scatters by less.
WARM, FALLEN = 0.5, 0.5  # Of the run (recipes: a fifth at most); of the peak of the learning rate.
ROWS, WINDOW = 5, 200  # Before a row: at least and at most so many make the usual gradient.
EXPLODED, VANISHED, DEAD = 10.0, 1e-3, 1e-9  # Of it: healthy rows keep within a factor of 5.
# Where the loss is not that much above its median, or that far below the first one, gradients tell
# nothing: they grow when learning begins, and vanish when all is learnt.
WORSE, SOLVED = 1.1, 0.5
CHECKS = 3  # In a row have to be worse than the best before, since single ones scatter: by
RISEN, ERRORS = 0.1, 2.0  # this part of the loss of a constant answer; so many standard errors.
EVENTS = ("explode", "vanish")  # Told again at the end even if they have passed.


class Watch:
    """Judges a run by its rows, in order: the same rows make the same lines.

    Args:
        schedule: of the learning rate.
        constant: see `Task.constant`.
        clips: of a step.
        videos: of data.val.
    """

    def __init__(self, schedule: Schedule, constant: Mapping[str, float], clips: int, videos: int):
        self._schedule, self._clips, self._videos = schedule, clips, videos
        self._of_train = {k: v for k, v in constant.items() if not k.startswith("val_")}
        self._of_val = {k: v for k, v in constant.items() if k.startswith("val_")}
        self._rows, self._checks, self._said = list[Row](), list[Row](), dict[str, str]()
        fair = schedule.warmup_steps + min(FAIR * schedule.total_steps, SOON)
        self._due = min(fair, schedule.total_steps)

    def add(self, row: Row) -> list[str]:
        """Takes a row of training or validation, {} before the first; returns what is new."""
        if row:
            (self._rows if "grad_norm" in row else self._checks).append(row)
        found = self._judged()
        new = [line for kind, line in found.items() if kind not in self._said]
        self._said |= found
        return new

    def last(self) -> list[str]:
        """Lines to end with: those that hold still, and what happened once."""
        now = self._judged()
        return [now.get(k, line) for k, line in self._said.items() if k in now or k in EVENTS]

    def _judged(self) -> dict[str, str]:
        if self._schedule.total_steps < FEW:
            return {}
        found = dict(self._planned())
        if self._rows:
            found |= dict(self._gradients())
            if same := self._same_as_constant():
                found["constant"] = same
            elif self._checks and (worse := self._val_same() or self._falling()):
                found["validation"] = worse
        return found

    def _planned(self) -> Iterator[tuple[str, str]]:
        peak, end, warmup, total = self._schedule
        if warmup >= WARM * total:
            yield (
                "warm-up",
                f"warm-up takes {warmup} of {total} steps, the learning rate is hardly ever at its "
                f"peak; lower optim.warmup_epochs, or train longer",
            )
        elif 0 < FALLEN * peak <= end:
            yield (
                "rate",
                f"the learning rate ends at {end:.3g}, {end / peak:.0%} of its peak; lower "
                f"optim.min_lr to a hundredth of optim.base_lr",
            )

    def _same_as_constant(self) -> str:
        rows, now = self._rows, self._rows[-1]["step"]
        since = now - RECENT * self._schedule.total_steps
        recent = [row for row in rows[-WINDOW:] if row["step"] > since] or rows[-1:]
        before = rows[-len(recent) - 1]["step"] if len(recent) < len(rows) else 0
        said = _no_better(recent, self._of_train, (now - before) * self._clips)
        if not said or now < self._due:
            return ""
        rate = f"the rate {self._schedule.peak:.2g} (optim.base_lr * train.batch_size / 256)"
        cure = f"change {rate} by a factor of 10, train longer, or start from weights"
        if any("loss" in k and rows[-1][k] > 1.5 * v for k, v in self._of_train.items()):
            cure = f"lower {rate}, or set optim.clip_norm=1"
        return f"step {now}: {said}; {cure}"

    def _val_same(self) -> str:
        recent = [row for row in self._checks[-CHECKS:] if row["step"] >= self._due]
        said = _no_better(recent, self._of_val, self._videos) if len(recent) > 1 else ""
        cure = "see whether data.train and data.val have the same classes and kind of videos"
        return said and f"step {recent[-1]['step']}: {said}, but training does better; {cure}"

    def _gradients(self) -> Iterator[tuple[str, str]]:
        *before, last = self._rows[-WINDOW - 1 :]
        norm, loss, warmup = last["grad_norm"], last["loss"], self._schedule.warmup_steps
        solved = loss < SOLVED * self._rows[0]["loss"]
        if len(before) < ROWS or last["step"] <= warmup or solved:
            return
        usual, level = (statistics.median(row[k] for row in before) for k in ("grad_norm", "loss"))
        said = f"step {last['step']}: the gradient norm is {norm:.3g}, its median {usual:.3g}"
        cure = f"lower optim.base_lr, or set optim.clip_norm={2 * usual:.1g}"
        if norm > EXPLODED * usual and loss > WORSE * level:
            yield "explode", f"{said}, and the loss rises; {cure}"
        elif norm <= max(VANISHED * usual, DEAD):
            yield "vanish", f"{said}: nothing is learnt any more; {cure}, and start again"

    def _falling(self) -> str:
        before, late, now = self._checks[:-CHECKS], self._checks[-CHECKS:], self._rows[-1]["loss"]
        if not before or late[-1]["step"] < self._due:
            return ""
        fell = []
        for name, level in self._of_val.items():
            sign = -1 if "loss" in name else 1
            best = max(before, key=lambda row: sign * row[name])
            gain = max(sign * (row[name] - best[name]) for row in late)
            if gain > 0:
                return ""
            least = RISEN * level if "loss" in name else ERRORS * _error(best[name], self._videos)
            then = [row["loss"] for row in self._rows if row["step"] <= best["step"]]
            if -gain >= least and then and now < then[-1]:
                fell.append(
                    f"step {late[-1]['step']}: {name} is {late[-1][name]:.4g}, at step "
                    f"{best['step']} it was {best[name]:.4g}, but the loss of training falls; keep "
                    f"the best by train.keep_best={name}, train fewer epochs, or augment more"
                )
        return (*fell, "")[0]


def _no_better(rows: list[Row], constant: Mapping[str, float], count: int) -> str:
    """In words, if each metric is as a constant answer's, an accuracy that of `count` clips."""
    said = []
    for name, level in constant.items():
        value, loss = statistics.fmean(row[name] for row in rows), "loss" in name
        if value < (1 - MARGIN) * level if loss else value > level + _error(level, count):
            return ""
        what = "predicting the mean" if loss else "always answering the most frequent class"
        said.append(f"{name} is {value:.4g}, {what} gives {level:.4g}")
    return ", ".join(said)


def _error(percent: float, count: int) -> float:
    """Standard error of an accuracy, which is not 0 where all or none is right."""
    share = (percent / 100 * count + 1) / (count + 2)
    return 100 * math.sqrt(share * (1 - share) / max(count, 1))
