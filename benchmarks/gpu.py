"""Everything that one GPU can tell, within a budget of time: steps, reading, the PyTorch peer.

python -m benchmarks.gpu --out runs/gpu --minutes 9 [--only "L tube" "B everest"]

Each job has a process of its own, so one that crashes costs a row. The most important come first;
those that time is too short for are listed. gpu.json is written anew after each.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import gpu_table, peers, results
from benchmarks.gpu_job import NO_GPU, Job

LONGEST_S = 150.0
"""Of one job; a compiler that hangs must not take the time of all others."""

# Clips of a step that take about half of 130 GB in bfloat16 with nothing computed again.
CLIPS = {
    "L": {"everest": 256, "tube": 128, "dual": 256, "adamae": 256, "finetune": 64},
    "B": {"everest": 512, "tube": 256, "dual": 512, "adamae": 256, "finetune": 128},
    "g": {"everest": 128, "tube": 128, "dual": 128, "adamae": 128, "finetune": 16},
    "S": {"everest": 1024, "tube": 512, "dual": 512, "adamae": 512, "finetune": 256},
}
KEPT = 64
"""Clips of EVEREST's fine-tuning, which keeps 940 of 1568 tokens, for L; B takes twice as many."""
FLAGS = {
    "latency hiding": "--xla_gpu_enable_latency_hiding_scheduler=true",
    "any product by Triton": "--xla_gpu_triton_gemm_any=true",
}
"""Flags of XLA that JAX's page on GPU performance names."""


def _recipe(size: str, what: str) -> tuple[str, dict[str, Any]]:
    """Where a model is trained in some way, and what is changed there."""
    if size == "g":
        if what == "finetune":
            return "videomaev2_k400:g,finetune", {"model.remat": "none"}
        changes = {"mask.name": what, "mask.mask_ratio": 0.95 if what == "adamae" else 0.9}
        return "videomaev2_hybrid:g", {**changes, "model.remat": "none"}
    return {
        "everest": (f"everest_k400:{size}", {}),
        "tube": (f"videomae_k400:{size}", {}),
        # There are no recipes of these for every size.
        "dual": ("videomaev2_hybrid:B", {"model.size": size}),
        "adamae": ("adamae_k400", {"model.size": size}),
        "finetune": (f"videomae_k400:{size},finetune", {}),
    }[what]


def jobs(smoke: bool = False) -> list[Job]:
    """All jobs, the most important first."""

    def of_size(size: str) -> list[Job]:
        return [
            Job(f"{size} {what}", "step", *_recipe(size, what), clips)
            for what, clips in CLIPS[size].items()
        ]

    def reading(size: str, what: str) -> Job:
        recipe, changes = _recipe(size, what)
        return Job(f"{size} {what}, from files", "input", recipe, changes, CLIPS[size][what])

    def kept(size: str, clips: int) -> Job:
        return Job(f"{size} everest finetune", "step", f"everest_k400:{size},finetune", {}, clips)

    def flagged(name: str, flag: str) -> Job:
        recipe, changes = _recipe("L", "tube")
        given = " ".join([os.environ.get("XLA_FLAGS", ""), flag]).strip()
        return Job(
            f"L tube, {name}", "step", recipe, changes, CLIPS["L"]["tube"], {"XLA_FLAGS": given}
        )

    found = [
        *of_size("L"),
        *of_size("B"),
        reading("L", "tube"),
        *of_size("g"),
        Job("B peers", "peers", clips=32),
        *of_size("S"),
        kept("L", KEPT),
        kept("B", 2 * KEPT),
        reading("B", "everest"),
        *(flagged(name, flag) for name, flag in FLAGS.items()),
    ]
    return [job._replace(smoke=True, clips=8) for job in found] if smoke else found


class Child:
    """A job in a process of its own, which has imported what it needs and waits for `run`."""

    def __init__(self, job: Job, folder: pathlib.Path) -> None:
        self.job = job
        self._result = folder / f"{job.name}.json"
        self._log = folder / f"{job.name}.log"
        environment = {
            # What the allocator keeps is not there for cudnn and the loading of programs.
            "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
            "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path.home() / ".cache" / "mvm" / "gpu"),
            **os.environ,
            **job.environment,
        }
        command = [sys.executable, "-m", "benchmarks.gpu_job", json.dumps(job._asdict())]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, str(self._result)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                process_group=0,
            )

    def run(self, seconds: float) -> results.Row:
        """Lets it measure for so long at most; what it had found counts if it did not end well."""
        began, why = time.monotonic(), ""
        try:
            self._process.communicate(b"go\n", timeout=seconds)
        except subprocess.TimeoutExpired:
            why = f"stopped after {seconds:.0f} s"
        self.close()
        if not why and self._process.returncode:
            why = self.last_line() or f"exit code {self._process.returncode}"
        numbers = json.loads(self._result.read_text()) if self._result.is_file() else None
        row = {"job": self.job.name, "kind": self.job.kind, "seconds": time.monotonic() - began}
        return row | {"status": "done" if numbers else "failed", "why": why, "numbers": numbers}

    def last_line(self) -> str:
        """Of what it printed."""
        lines = [line for line in self.log().splitlines() if line.strip()]
        return lines[-1].removeprefix("error: ") if lines else ""

    def log(self) -> str:
        """All that it printed."""
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        """Ends it and the processes it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def skipped(job: Job, why: str) -> results.Row:
    """The row of a job that was not begun."""
    return {
        "job": job.name,
        "kind": job.kind,
        "seconds": 0.0,
        "status": "skipped",
        "why": why,
        "numbers": None,
    }


def measure(todo: Sequence[Job], out: pathlib.Path, seconds: float) -> dict[str, Any]:
    """Runs jobs in order while there is time, and writes what is known after each.

    Args:
        todo: what to measure.
        out: folder for gpu.json, gpu.md, gpu.png and gpu.log.
        seconds: for all of it.

    Returns:
        What gpu.json holds: "rows", one for each job with "status" done, failed or skipped, "why",
        "seconds" and "numbers", and where it was measured.
    """
    deadline, stop = time.monotonic() + seconds, "no time left"
    out.mkdir(parents=True, exist_ok=True)
    tests = out / "tests.txt"  # Of the script.
    lines = tests.read_text().strip().splitlines() if tests.is_file() else []
    numbers: dict[str, Any] = {
        "device": None,
        "budget_s": seconds,
        "tests": [line for line in lines if line.startswith(("FAILED", "ERROR"))] + lines[-1:],
        "rows": [],
        **results.where(),
    }
    rows: list[results.Row] = numbers["rows"]
    absent = peers.missing()
    reasons = {
        job.name: f"{' and '.join(absent)} not installed"
        for job in todo
        if job.kind == "peers" and absent
    }
    waiting = [job for job in todo if job.name not in reasons]
    log = out / "gpu.log"
    log.write_text("")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:

        def started() -> Child | None:
            """The next one, which imports while another still runs."""
            if not waiting or time.monotonic() >= deadline:
                return None
            child = Child(waiting.pop(0), pathlib.Path(name))
            stack.callback(child.close)
            return child

        child = started()
        while child and time.monotonic() < deadline:
            following = started()
            row = child.run(min(LONGEST_S, max(deadline - time.monotonic(), 0.0)))
            rows.append(row)
            with log.open("a") as file:
                file.write(f"== {row['job']}, {row['seconds']:.1f} s {row['why']}\n{child.log()}\n")
            device = (row["numbers"] or {}).get("device_kind")
            numbers["device"] = numbers["device"] or device
            print(
                f"{row['job']}: {row['status']} in {row['seconds']:.0f} s {row['why']}", flush=True
            )
            write(out, numbers)
            if row["why"] == NO_GPU:
                stop = NO_GPU
                break
            child = following
    begun = {row["job"] for row in rows}
    left = [job for job in todo if job.name not in begun]
    rows += [skipped(job, reasons.get(job.name, stop)) for job in left]
    write(out, numbers, figure=True)
    return numbers


def write(out: pathlib.Path, numbers: dict[str, Any], figure: bool = False) -> None:
    """gpu.json and gpu.md and, if asked for and a step has been measured, gpu.png."""
    bars = [row for row in gpu_table.of_kind(numbers["rows"], "step") if "," not in row["job"]]
    draw = (lambda path: gpu_table.draw(path, numbers["device"], bars)) if bars and figure else None
    results.write(str(out / "gpu.json"), numbers, gpu_table.table(numbers), draw)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=pathlib.Path, default="runs/gpu", help="folder to write")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all jobs together")
    parser.add_argument("--spent", type=float, default=0.0, help="seconds of them already gone")
    parser.add_argument("--only", nargs="+", default=[], metavar="JOB", help="these, in this order")
    parser.add_argument("--smoke", action="store_true", help="tiny models, on any device")
    flags = parser.parse_args(argv)
    todo = {job.name: job for job in jobs(flags.smoke)}
    names = flags.only or list(todo)
    if unknown := [name for name in names if name not in todo]:
        raise SystemExit(f"error: --only {unknown[0]!r}: choose from {'; '.join(todo)}")
    # So that a scheduler's request to end takes the job that runs along.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    seconds = 60 * flags.minutes - flags.spent
    numbers = measure([todo[name] for name in names], flags.out, seconds)
    print(gpu_table.table(numbers))


if __name__ == "__main__":
    main()
