"""What the rows of a run tell when it does not learn: one line each, with the likeliest cure."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

from mvm.optim import Schedule

Row = Mapping[str, Any]

FEW = 20  # Steps; a shorter run tries whether a recipe works at all.
FAIR, SOON = 0.3, 2000  # Part of the run, steps: this long after warm-up something is learnt.
RECENT = 0.1  # Part of the run whose rows are averaged: single batches scatter.
MARGIN = 0.003  # Of a loss; the mean over RECENT scatters by less while nothing is learnt.
HIGH = 2.0  # Times a constant answer's loss; no model is that bad before it is trained.
SLOW, HALF = 0.01, 0.5  # Of a classifier's loss; part of the run: by then it has fallen by more.
WARM, FALLEN = 0.5, 0.5  # Of the run (recipes: a fifth at most); of the peak of the learning rate.
ROWS, WINDOW = 5, 200  # At least and at most so many before a row make the usual gradient.
EXPLODED, VANISHED = 10.0, 0.01  # Of that one; healthy rows keep within a factor of 5.
# Gradients grow when learning begins, and vanish when all is learnt: they tell nothing where the
# loss is not above its median by that factor, or is below that part of the first one.
WORSE, SOLVED = 1.1, 0.5
CHECKS = 3  # In a row have to be worse than the best before, since single ones scatter: by
RISEN, ERRORS = 0.1, 2.0  # this part of the loss of a constant answer; so many standard errors.
EVENTS = ("explode", "vanish")  # Told again at the end even if they have passed.


class Watch:
    """Judges a run by its rows, in order: the same rows make the same lines.

    `constant` is that of the task, `clips` are those of a step, `videos` those of data.val.
    """

    def __init__(self, schedule: Schedule, constant: Mapping[str, float], clips: int, videos: int):
        self.schedule, self.clips, self._videos = schedule, clips, videos
        self._train = {k: v for k, v in constant.items() if not k.startswith("val_")}
        self._val = {k: v for k, v in constant.items() if k.startswith("val_")}
        self._rows, self._checks, self._said = list[Row](), list[Row](), dict[str, str]()
        total = schedule.total_steps
        self._due = min(schedule.warmup_steps + min(FAIR * total, SOON), total)

    def add(self, row: Row) -> list[str]:
        """Takes a row of training or validation; returns the lines that are new."""
        if {"grad_norm", "loss", *self._train} <= row.keys():  # Older runs may lack some.
            self._rows.append(row)
        elif self._val and self._val.keys() <= row.keys():
            self._checks.append(row)
        found = self._judged()
        new = [line for kind, line in found.items() if kind not in self._said]
        self._said |= found
        return new

    def last(self) -> list[str]:
        """Lines to end with: those that hold still, and what happened once."""
        now = self._judged()
        return [now.get(k, line) for k, line in self._said.items() if k in now or k in EVENTS]

    def _judged(self) -> dict[str, str]:
        """Lines by kind."""
        if self.schedule.total_steps < FEW or not self._rows:
            return {}
        found = {"schedule": self._planned(), "constant": self._constant(), **self._gradients()}
        if self._checks and not found["constant"] and "constant" not in self._said:
            found["validation"] = self._falling() or self._constant_val()
        return {kind: line for kind, line in found.items() if line}

    def _planned(self) -> str:
        peak, end, warmup, total = self.schedule
        if warmup >= WARM * total:
            return (
                f"warm-up takes {warmup} of {total} steps, the learning rate is hardly ever at its "
                f"peak; shorten it (optim.warmup_steps, optim.warmup_epochs), or train longer"
            )
        still = f"the learning rate ends at {end:.3g}, near its peak {peak:.3g}; lower optim.min_lr"
        return f"{still} to optim.base_lr / 100" if 0 < FALLEN * peak <= end else ""

    def _constant(self) -> str:
        rows, now = self._rows, self._rows[-1]["step"]
        since = now - RECENT * self.schedule.total_steps
        recent = [row for row in rows[-WINDOW:] if row["step"] > since] or rows[-1:]
        before = rows[-len(recent) - 1]["step"] if len(recent) < len(rows) else 0
        said = _no_better(recent, self._train, (now - before) * self.clips)
        rate = f"the rate {self.schedule.peak:.2g} (optim.base_lr * train.batch_size / 256)"
        cure = f"train longer, start from weights, or change {rate} by a factor of 10"
        high = any("loss" in k and rows[-1][k] > HIGH * v for k, v in self._train.items())
        if high:  # Waiting makes nothing better.
            cure = f"lower {rate}, or set optim.clip_norm=1"
        if said and (high or now >= self._due):
            return f"step {now}: {said}; {cure}"
        level, loss = self._train.get("loss", 0.0), statistics.fmean(r["loss"] for r in recent)
        slow = "accuracy" in self._train and (1 - SLOW) * level <= loss < (1 + SLOW) * level
        if not slow or now < max(self._due, HALF * self.schedule.total_steps):
            return ""
        return f"step {now}: loss is {loss:.4g}, a constant answer's is {level:.4g}; raise {rate}"

    def _gradients(self) -> dict[str, str]:
        *before, last = self._rows[-WINDOW - 1 :]
        norm, loss = last["grad_norm"], last["loss"]
        if len(before) < ROWS or loss < SOLVED * self._rows[0]["loss"]:
            return {}
        usual, level = (statistics.median(row[k] for row in before) for k in ("grad_norm", "loss"))
        said = f"step {last['step']}: the gradient norm is {norm:.3g}, its median {usual:.3g}"
        cure = f"lower optim.base_lr, or set optim.clip_norm={2 * usual:.2g}"
        if norm > EXPLODED * usual and loss > WORSE * level:
            return {"explode": f"{said}, and the loss rises; {cure}"}
        vanished = f"{said}: nothing is learnt any more; {cure}, and start again"
        return {"vanish": vanished} if norm <= VANISHED * usual else {}

    def _constant_val(self) -> str:
        recent = [row for row in self._checks[-CHECKS:] if row["step"] >= self._due]
        said = _no_better(recent, self._val, self._videos) if len(recent) > 1 else ""
        cure = "data.train is too small, or data.val has other classes or another kind of videos"
        return said and f"step {recent[-1]['step']}: {said}, but training does better; {cure}"

    def _falling(self) -> str:
        before, late, fell = self._checks[:-CHECKS], self._checks[-CHECKS:], ""
        step, now = late[-1]["step"], self._rows[-1]["loss"]
        for name, level in self._val.items() if before and step >= self._due else ():
            sign = -1 if "loss" in name else 1
            best = max(before, key=lambda row: sign * row[name])
            gain = max(sign * (row[name] - best[name]) for row in late)
            if gain > 0:
                return ""
            least = RISEN * level if "loss" in name else ERRORS * error(best[name], self._videos)
            then = [row["loss"] for row in self._rows if row["step"] <= best["step"]]
            if not fell and -gain >= least and then and now < then[-1]:
                fell = (
                    f"step {step}: {name} is {late[-1][name]:.4g} after {best[name]:.4g} at step "
                    f"{best['step']}, but the loss of training falls; keep the best "
                    f"(train.keep_best), train fewer epochs, or augment more"
                )
        return fell


def _no_better(rows: list[Row], constant: Mapping[str, float], count: int) -> str:
    """In words, if no metric is better than a constant answer's; `count` clips made them."""
    said = []
    for name, level in constant.items():
        value, loss = statistics.fmean(row[name] for row in rows), "loss" in name
        if value < (1 - MARGIN) * level if loss else value > level + ERRORS * error(level, count):
            return ""
        what = "predicting the mean" if loss else "always answering the most frequent class"
        said.append(f"{name} is {value:.4g}, {what} gives {level:.4g}")
    return ", ".join(said)


def error(percent: float, count: int) -> float:
    """Standard error of an accuracy, not 0 where all or none is right."""
    share = (percent / 100 * count + 1) / (count + 2)
    return 100 * math.sqrt(share * (1 - share) / count)
