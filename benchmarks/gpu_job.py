"""One measurement of benchmarks.gpu in a process of its own: a step, or reading and steps together.

python -m benchmarks.gpu_job JOB RESULT, both JSON, the second a file; it begins at a line of stdin.
"""

import contextlib
import itertools
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
from etils import epath

from benchmarks import cases, cost, rates, results, step
from input_pipeline import encode, pack
from mvm import data, start, tasks
from mvm.runtime import chip, sharding
from mvm.types import UserError

NO_GPU = "JAX sees no GPU: install jax[cuda13], and see that nvidia-smi lists one"
BYTES = 130e9
"""Memory of a device for which `Job.clips` are meant."""
ROOMY = 0.45
"""Part of the memory: below, twice as many clips are tried."""
STEPS = 10
IN_FLIGHT = 2
"""Steps handed to the device ahead of their results, as a run does."""

Save = Callable[[dict[str, Any]], None]


class Job(NamedTuple):
    """What is measured."""

    name: str
    """Size and what is trained, such as "L tube"; a comma and what else is changed may follow."""
    kind: str
    """step, input or peers."""
    recipe: str = ""
    """A leaf of configs/ and its argument, such as "videomae_k400:L,finetune"."""
    changes: Mapping[str, Any] = {}
    """Keys that differ from the recipe."""
    clips: int = 8
    """The first batch that is tried."""
    environment: Mapping[str, str] = {}
    """Variables to set."""
    smoke: bool = False
    """Tiny models, on any device."""


def config_of(job: Job) -> Any:
    """The recipe with its changes, one clip of each video, from random weights."""
    recipe = job.recipe
    if job.smoke:
        recipe += ",smoke" if ":" in recipe else ":smoke"
    config = cost.config_of(cost.Row("", recipe, job.changes))
    config.init_from = config.init_head_rows = ""
    config.data.repeats = 1
    config.train.batch_size = job.clips
    return config


def first_batch(clips: int, limit: int | None) -> int:
    """`clips`, or the power of two that memory of `limit` bytes has room for in their place."""
    return clips if limit is None else 2 ** math.floor(math.log2(max(clips * limit / BYTES, 1)))


def search(
    measure: Callable[[int], dict[str, Any]], clips: int, limit: int | None, save: Save
) -> None:
    """Halves the batch until it fits, doubles it while memory is mostly free; saves the fastest.

    Args:
        measure: `step.measure` of a batch.
        clips: the first batch.
        limit: bytes of a device; None where nobody says: then nothing is doubled.
        save: gets the best numbers so far, with "tried", after every batch that runs.

    Raises:
        UserError: if no batch fits.
    """
    best: dict[str, Any] = {}
    tried: dict[int, float | None] = {}
    while clips >= 1 and clips not in tried:
        try:
            numbers = measure(clips)
        except jax.errors.JaxRuntimeError as error:
            if not step.out_of_memory(error):
                raise
            tried[clips] = None
            if best:
                break
            clips //= 2
            continue
        if tried:  # Peaks are those of all batches so far.
            numbers = step.without_peaks(numbers)
        tried[clips] = numbers["clips_per_s"]
        best = max(best or numbers, numbers, key=lambda n: n["clips_per_s"])
        save({**best, "tried": {str(batch): rate for batch, rate in tried.items()}})
        if limit is None or numbers["memory_planned_gb"] * 1e9 > ROOMY * limit:
            break
        clips *= 2
    if not best:
        raise UserError("not one clip fits into memory")


def measure_step(job: Job, save: Save) -> None:
    """The training step at the best batch."""
    config = config_of(job)

    def measure(clips: int) -> dict[str, Any]:
        config.train.batch_size = clips
        return step.measure(config, 1 if job.smoke else STEPS)

    limit = chip.limit_bytes(jax.local_devices()[0])
    search(measure, first_batch(job.clips, limit), limit, save)


def videos(folder: pathlib.Path, files: int, copies: int) -> tuple[str, bool]:
    """Writes H.264 files and packs `copies` of each into ArrayRecord, if the packages are there.

    Returns:
        What `data.train` takes, and whether that is packed.
    """
    made = cases.Case("made", cases.write_videos(folder, files), 4)
    quick = cases.reencoded(made, folder)
    lines = [f"{record.path} {record.label}\n" for record in quick.records] * copies
    listed = folder / "train.txt"
    listed.write_text("".join(lines))
    packed = folder / "packed"
    try:
        pack.pack(str(listed), packed, options=encode.Options("copy"))
    except ImportError:
        return str(listed), False
    return str(packed), True


def steps_per_s(advance: Any, current: Any, inputs: Iterator[Any], seconds: float) -> Any:
    """Steps a second over at least `seconds`, the first four left out, and the last state."""
    done, began = 0, 0.0
    pending: deque[Any] = deque()
    for count in itertools.count():
        if count == 4:
            jax.block_until_ready(current)
            began = time.perf_counter()
        current, metrics = advance(current, next(inputs))
        pending.append(metrics["loss"])
        if len(pending) > IN_FLIGHT:
            pending.popleft().block_until_ready()
        done = count - 3
        if done >= 4 and time.perf_counter() - began > seconds:
            break
    jax.block_until_ready(current)
    return done / (time.perf_counter() - began), current


def measure_input(job: Job, save: Save) -> None:
    """Videos read, decoded and trained on, beside the step alone and the reading alone."""
    config, seconds = config_of(job), 0.2 if job.smoke else 10.0
    if not job.smoke:
        config.train.batch_size = first_batch(job.clips, chip.limit_bytes(jax.local_devices()[0]))
    config.data.threads, clips = rates.cpus(), config.train.batch_size
    mesh = step.mesh_of(config.train.fsdp)
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = pathlib.Path(name)
        files, copies = (2, 8) if job.smoke else (16, math.ceil(clips / 16) * 4)
        config.data.train, packed = videos(folder, files, copies)
        found = data.records(config, "train")
        batches = data.train_batches(config, found, 0, data.Failures())
        stack.enter_context(contextlib.closing(batches))
        for _ in range(2):  # The workers start.
            next(batches)
        began, began_cpu, count = time.perf_counter(), rates.cpu_seconds(), 0
        while count < 4 or time.perf_counter() - began < seconds:
            next(batches)
            count += 1
        loader = count * clips / (time.perf_counter() - began)
        cpu_ms = 1e3 * (rates.cpu_seconds() - began_cpu) / (count * clips)
        run = start.run(config, epath.Path(folder / "run"), tasks.plan(config, len(found)), mesh)
        run.checkpoints.close()

        def put(batch: data.Batch) -> Any:
            return sharding.put({k: v for k, v in batch.items() if k != "index"}, mesh)

        inputs = put(next(batches))
        advance = run.step.lower(run.state, inputs).compile()  # type: ignore[attr-defined]
        rate = partial(steps_per_s, advance, seconds=seconds)
        alone, last = rate(run.state, itertools.repeat(inputs))
        together, _ = rate(last, map(put, batches))
    slower = min(alone * clips, loader)
    save(
        {
            "config": config.name,
            "mask": config.mask.name or "none",
            "clips": clips,
            "packed": packed,
            "cores": rates.cpus(),
            "step_clips_per_s": alone * clips,
            "loader_clips_per_s": loader,
            "loader_clips_per_s_per_core": loader / rates.cpus(),
            "loader_cpu_ms_per_clip": cpu_ms,
            "end_to_end_clips_per_s": together * clips,
            "end_to_end_over_step": together / alone,
            "end_to_end_over_slower": together * clips / slower,
        }
    )


def measure_peers(job: Job, save: Save) -> None:
    """`benchmarks.peers`, in processes that import neither side's library before they need it."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "peers.json"
        flags = ["--rows", "everest,tube", "--json", str(path)]
        flags += ["--smoke", "--batch_size", "8", "--steps", "1"] if job.smoke else [
            *("--batch_size", str(job.clips), "--steps", "10", "--dtype", "bfloat16")
        ]  # fmt: skip
        done = subprocess.run([sys.executable, "-m", "benchmarks.peers", *flags])
        if done.returncode:
            raise UserError("benchmarks.peers failed; its own message is in gpu.log")
        save(json.loads(path.read_text()))


MEASURES = {"step": measure_step, "input": measure_input, "peers": measure_peers}


def main(argv: list[str]) -> None:
    """Command line."""
    text, result = argv[1:]
    job = Job(**json.loads(text))
    # Importing took a while; only now may it touch the device, which an earlier job has used.
    if not sys.stdin.readline():
        return
    if job.kind != "peers" and not job.smoke and jax.default_backend() != "gpu":
        raise SystemExit(f"error: {NO_GPU}")

    def save(numbers: dict[str, Any]) -> None:
        kind = None if job.kind == "peers" else jax.local_devices()[0].device_kind
        whole = pathlib.Path(result).with_suffix(".part")
        whole.write_text(json.dumps({"device_kind": kind, **numbers}))
        whole.replace(result)

    try:
        if job.kind != "peers":
            results.prepare(config_of(job))
        MEASURES[job.kind](job, save)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main(sys.argv)
