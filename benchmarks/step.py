"""Speed, memory and cost of whole training steps, built as runs build them, on random clips.

python -m benchmarks.step everest_ucf101 videomae_k400:B everest_ucf101:finetune
python -m benchmarks.step everest_k400:L --set mask.keep_ratio=0.4 --steps 0
python -m benchmarks.step benchmarks/strategies:L,tube benchmarks/strategies:L,everest --rounds 3

A recipe is a file of configs/ and its variant. Each is measured in a process of its own, on all
devices: its peak of memory is its own, and one that fails costs its row. --steps 0 only counts.
Rounds measure all of them in turn, and a row is its median round.
"""

import importlib
import itertools
import json
import multiprocessing
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import ml_collections
import numpy as np

from benchmarks import table
from mvm import config as schema
from mvm.types import UserError, first_line

WARMUP = 2
"""Steps that are not timed: the first touch new memory."""


def load(recipe: str, changes: Mapping[str, Any] = {}) -> ml_collections.ConfigDict:
    """A recipe such as "everest_k400:L,finetune" with some keys changed."""
    name, _, variant = recipe.partition(":")
    room, name = pathlib.PurePath(name).parent.name or "configs", pathlib.PurePath(name).stem
    if not (table.ROOT / room / f"{name}.py").is_file():
        raise UserError(f"recipe {recipe!r}: there is no {room}/{name}.py")
    given = importlib.import_module(f"{room}.{name}").get_config(*[variant][: bool(variant)])
    config = given.copy_and_resolve_references()
    for key, value in changes.items():
        if key not in schema.KEYS:
            raise UserError(f"--set {key} is no key of a configuration; see mvm/config.py")
        kind = type(schema.KEYS[key].default)
        text = isinstance(value, str) and kind is not str
        config.update_from_flattened_dict({key: kind(json.loads(value) if text else value)})
    schema.validate(config)
    return config


def batch_shapes(config: Any) -> dict[str, Any]:
    """Every entry that the recipe's real batches have."""
    import jax

    from mvm import tasks

    d = config.data
    b = config.train.batch_size * d.repeats
    video = (b, d.num_candidates or d.num_frames, d.image_size, d.image_size, 3)
    shapes: dict[str, Any] = {"video": (video, np.uint8)}
    shapes |= {name: ((b,), np.int32) for name in ("label", "skipped")}
    if d.erasing:
        shapes["erase"] = (b, 4), np.int32
    if tasks.spec(config.task).mixes and (d.mixup or d.cutmix):
        shapes["lam"], shapes["box"] = ((b,), np.float32), ((b, 4), np.int32)
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def random_batch(config: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Noise in every entry that the recipe's real batches have."""
    batch = {name: np.zeros(x.shape, x.dtype) for name, x in batch_shapes(config).items()}
    batch["video"] = rng.integers(0, 256, batch["video"].shape, np.uint8)
    classes = max(config.data.num_classes, 1)
    batch["label"] = rng.integers(0, classes, batch["label"].shape, np.int32)
    if "erase" in batch:
        batch["erase"] += config.data.image_size // 4
    if "lam" in batch:
        batch["lam"] += np.float32(0.7)  # Of an empty box: mixup.
    return batch


def placed(config: Any, mesh: Any) -> Any:
    """The step of a configuration by shape and place, of its task; call it under the mesh."""
    from mvm import train
    from mvm.runtime import sharding

    if config.evaluate:
        raise UserError("an evaluation has no training step; choose another variant")
    videos, repeats = config.train.batch_size, config.data.repeats
    sharding.check_batch(videos, config.train.accumulate, repeats=repeats, devices=mesh.size)
    return train.build_step(config, train.planned(config, 100 * videos), mesh)


class Running:
    """A step on all devices of this process, with random weights and one random batch."""

    def __init__(self, config: Any):
        import jax

        from mvm.runtime import memory, sharding

        memory.tune_allocator()  # As `main.py` does before it meets a device.
        if config.train.cpu_devices > 1:
            jax.config.update("jax_num_cpu_devices", config.train.cpu_devices)
        self.mesh = sharding.make_mesh(config.train.fsdp)
        self.clips = random_batch(config, np.random.default_rng(0))
        with jax.set_mesh(self.mesh):
            program = placed(config, self.mesh)
            self.task, self.state = program.task, program.init()
            self.batch = sharding.put(self.clips, self.mesh)
            lower = program.step.lower
            compiled = table.timed(lambda: lower(self.state, self.batch).compile())
        self.program, self.compiling = compiled

    def step(self) -> dict[str, float]:
        """One update, until its results are there: loss, norm, and what `timed` says of it."""
        import jax

        def update() -> Any:
            return jax.block_until_ready(self.program(self.state, self.batch))

        with jax.set_mesh(self.mesh):
            (self.state, metrics), took = table.timed(update)
        return took | {name: float(metrics[name]) for name in ("loss", "grad_norm")}


def measure(recipe: str, changes: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Counts, compiles and times the step of a recipe in this process, from random weights.

    Numbers are by the head of their column; None where unknown.
    """
    config = load(recipe, changes)
    running = Running(config) if steps else None

    from mvm import tasks
    from mvm.runtime import chip
    from mvm.step import count

    task = tasks.build_vit(config)
    numbers: dict[str, Any] = {
        "tokens": f"{task.num_visible} + {task.num_target}",
        "M": count(task.abstract) / 1e6,
        "GMAC": sum(task.macs().values()) / 1e9,
        "here": sum(task.macs(executed=True).values()) / 1e9,
    }
    if not running:
        return numbers
    taken = [running.step() for _ in range(WARMUP + steps)][WARMUP:]
    times = [step["s"] for step in taken]
    seconds = statistics.median(times)
    clips, chips = len(running.clips["video"]), running.mesh.devices.flat
    device, dtype = chips[0], np.dtype(task.run.dtype).name
    tflops = task.work() * clips / seconds / len(chips) / 1e12
    peak, used = chip.peak_tflops(device.device_kind, dtype), chip.peak_bytes(device)
    return numbers | {
        "device": f"{len(chips)} x {device.device_kind}, {dtype}",
        "clips": clips,
        "compile s": running.compiling["s"],
        "step s, median / min": [seconds, min(times)],
        "host CPU s": statistics.median(step["cpu_s"] for step in taken),
        "s a clip": seconds / clips,
        "clips/s": clips / seconds,
        "TFLOP/s": tflops,
        "MFU": tflops / peak if peak else None,
        "GB planned": chip.planned(running.program)[1] / 1e9,
        "GB peak, device": None if used is None else used / 1e9,
        "GB peak, process": taken[-1]["gb"],
    }


def alone(recipe: str, changes: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """`measure` in a process of its own, to count in this one; {"error": one line} on failure."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            if not steps:
                return measure(recipe, changes, 0)
            return pool.submit(measure, recipe, changes, steps).result()
        # RuntimeError of XLA: out of memory. ValueError of a recipe or its variant.
        except (BrokenProcessPool, RuntimeError, ValueError) as error:
            return {"error": f"{recipe}: {first_line(error)}"}


def median(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The round whose steps took the median time; the error of one that failed."""
    if failed := [n for n in rounds if "clips" not in n]:
        return failed[0]
    times = [n["step s, median / min"] for n in rounds]
    middle = sorted(times)[len(times) // 2]
    least = min(least for _, least in times)
    own = {"step s, median / min": [middle[0], least]}
    more = {"s of each round": [s for s, _ in times]} if len(times) > 1 else {}
    return rounds[times.index(middle)] | own | more


def main(argv: Sequence[str] | None = None) -> None:
    parser = table.parser(__doc__)
    parser.add_argument("recipes", nargs="+", help="such as everest_k400:L,finetune")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="in each of them")
    parser.add_argument("--steps", type=int, default=10, help="timed, after two others; 0 = none")
    parser.add_argument("--rounds", type=int, default=1, help="of all recipes, in turn")
    flags = parser.parse_args(argv)
    changes: dict[str, Any] = dict(pair.partition("=")[::2] for pair in flags.set)
    found: dict[str, list[dict[str, Any]]] = {recipe: [] for recipe in flags.recipes}
    for _, recipe in itertools.product(range(flags.rounds), found):
        name = recipe
        if flags.smoke:
            name += ",smoke" if ":" in recipe else ":smoke"
        found[recipe].append(alone(name, changes, 1 if flags.smoke else flags.steps))
    measured = {recipe: median(rounds) for recipe, rounds in found.items()}
    rows = [{"recipe": recipe} | n for recipe, n in measured.items() if "error" not in n]
    heads = ("here", "s a clip", "GB planned") if flags.steps or flags.smoke else ()
    table.show(table.beside(rows, *heads), measured, flags.json, "jax", "flax")
    if failed := [n["error"] for n in measured.values() if "error" in n]:
        raise SystemExit("\n".join(f"error: {message}" for message in failed))


if __name__ == "__main__":
    main()
