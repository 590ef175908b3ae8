"""The same optimiser steps here and in PyTorch: model, weights, clips and masks, in one run.

python -m benchmarks.peers --rows everest tube --steps 4 --json peers.json

A step normalises targets, runs forward and backward, takes the norm of the gradient and updates by
AdamW, on CPU in float32. Sides must agree in loss and gradient before they are timed. Each is a
process of its own, and they take steps in turn. The peers are `benchmarks.torch_models`, which
follow the released codes, and transformers as it is.
"""

import contextlib
import importlib.util
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.managers import BaseManager
from typing import Any

import numpy as np

# Not PyTorch: the processes of both sides import this file again, and with it JAX.
from benchmarks import table
from benchmarks.step import WARMUP, Running, load

BATCH = 2  # Clips of a step.
RATE = 1e-4  # Of learning, in all steps.
PAUSE_S = 0.25  # Between turns: OpenMP's threads go on waiting for work for a while.
TOLERANCES = {"loss": 1e-4, "grad_norm": 1e-3}
ROWS = {
    "everest": ("everest_ucf101", ["released"]),
    "tube": ("videomae_ssv2_800", ["released", "transformers"]),
}
"""The recipe and its peers."""


class Ours(Running):
    """The step that a run builds."""

    def __init__(self, recipe: str):
        changes = {"model.dtype": "float32", "data.repeats": 1, "train.batch_size": BATCH}
        self.config = load(recipe, changes)
        rates = dict.fromkeys(("base_lr", "min_lr"), RATE * 256 / BATCH)
        self.config.optim.update(rates, warmup_epochs=0.0)
        super().__init__(self.config)

        import jax

        self.draw = jax.jit(self.drawn)

    def drawn(self, params: Any, key: Any, step: Any, video: Any) -> Any:
        """The mask of a step."""
        import jax
        from flax import nnx

        from mvm.models import tubelets

        encoder = nnx.merge(self.task.graphdef, params).encoder
        pixels, grid = tubelets.split(video, self.task.tubelet)
        key = jax.random.fold_in(jax.random.wrap_key_data(key), step)
        return encoder.select(key, pixels, grid, self.task.strategy)

    def mask(self) -> tuple[np.ndarray, np.ndarray]:
        """Visible and target tokens `[B, V]`, `[B, M]` of the next step."""
        state = (self.state[name] for name in ("params", "key", "step"))
        mask = self.draw(*state, self.batch["video"])
        return np.asarray(mask.visible), np.asarray(mask.target)

    def export(self, path: str) -> dict[str, Any]:
        """Writes weights and clips where the peers read them; returns what else they must know."""
        from mvm.weights import convert, describe, huggingface

        task, config = self.task, self.config
        encoder, decoder, strategy = task.encoder, task.decoder, task.strategy
        weights = convert.from_params(self.state["params"], task.tubelet)
        given = {"model.heads": encoder.heads, "model.decoder_heads": decoder.heads}
        given |= {f"data.{key}": config.data[key] for key in ("num_frames", "image_size")}
        theirs, _ = huggingface.from_official(weights)
        arrays: dict[str, Any] = {f"released/{key}": value for key, value in weights.items()}
        arrays |= {f"transformers/{key}": value for key, value in theirs.items()}
        np.savez(path, **arrays, video=self.clips["video"])
        return {
            "shape": {
                "grid": tuple(task.grid),
                "tubelet": tuple(task.tubelet),
                "encoder": (encoder.width, encoder.depth, encoder.heads),
                "decoder": (decoder.width, decoder.depth, decoder.heads),
                "everest": strategy.name == "everest",
                "num_visible": strategy.num_visible,
                "num_target": strategy.num_target,
            },
            "huggingface": huggingface.config_of(weights, describe.describe(weights, given)),
            "betas": (0.9, config.optim.b2),
            "weight_decay": config.optim.weight_decay,
        }


class Peer:
    """PyTorch's side, "released" (`torch_models`) or "transformers": one whole update.

    `job` and the file at `path` are those of `Ours.export`.
    """

    def __init__(self, side: str, job: Mapping[str, Any], path: str):
        import torch

        from benchmarks import torch_models

        self.torch, self.side = torch, side
        shape = torch_models.Shape(**job["shape"])
        self.num_tokens = math.prod(shape.grid)
        with np.load(path) as arrays:
            keys = [key for key in arrays if key.startswith(side)]
            weights = {key.partition("/")[2]: torch.from_numpy(arrays[key]) for key in keys}
            mean, std = (np.array(x, np.float32) for x in (torch_models.MEAN, torch_models.STD))
            video = (arrays["video"] / np.float32(255) - mean) / std
        if side == "transformers":
            import transformers

            config = transformers.VideoMAEConfig(**job["huggingface"])
            self.model: Any = transformers.VideoMAEForPreTraining(config)
            if not any(key.endswith(".q_bias") for key in self.model.state_dict()):  # Release 5.
                for old, new in ((".q_bias", ".query.bias"), (".v_bias", ".value.bias")):
                    weights = {key.replace(old, new): value for key, value in weights.items()}
        else:
            self.model = torch_models.Autoencoder(shape)
        self.model.load_state_dict(weights)
        self.model.train()
        # Clips come normalised from the loader; transformers has frames before channels.
        axes = (0, 1, 4, 2, 3) if side == "transformers" else (0, 4, 1, 2, 3)
        self.video = torch.from_numpy(video.transpose(axes).copy())
        groups = torch_models.groups(self.model, job["weight_decay"])
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=job["betas"], eps=1e-8)

    def step(self, mask: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
        """As `Running.step`."""
        (loss, norm), took = table.timed(self.update, mask)
        return took | {"loss": loss, "grad_norm": norm}

    def update(self, mask: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
        """Forward, backward, norm of the gradient as released engines report it, AdamW.

        A model that draws its own mask does so, and takes this one in its place.
        """
        flags = np.zeros((2, len(mask[0]), self.num_tokens), bool)
        for out, index in zip(flags, mask):
            np.put_along_axis(out, index, True, axis=1)
        visible, target = self.torch.from_numpy(flags)
        if self.side == "transformers":
            loss = self.model(self.video, bool_masked_pos=target).loss
        else:
            loss = self.model.loss(self.video, (visible, target))
        self.optimizer.zero_grad()
        loss.backward()
        norms = [p.grad.norm(2) for p in self.model.parameters() if p.grad is not None]
        self.optimizer.step()
        return loss.item(), float(self.torch.stack(norms).norm(2))


class Process(BaseManager):
    """One side in a process of its own."""


Process.register("Ours", Ours)
Process.register("Peer", Peer)


def measure(row: str, steps: int, smoke: bool) -> list[dict[str, Any]]:
    """Has all sides take the same steps in turn; the first are compared, the later ones timed.

    A row for each side; "x" says how many times ours it takes.
    """
    recipe, peers = ROWS[row]
    recipe += ":smoke" if smoke else ""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = os.path.join(folder, "clips.npz")

        def process() -> Any:
            context = multiprocessing.get_context("spawn")  # Threads do not survive a fork.
            return stack.enter_context(Process(ctx=context))

        exporter = process()  # It goes, so that its copies are not in the peak of memory.
        job = exporter.Ours(recipe).export(path)
        exporter.shutdown()
        ours = process().Ours(recipe)
        sides = {"ours": ours, **{side: process().Peer(side, job, path) for side in peers}}
        taken: dict[str, list[Any]] = {side: [] for side in sides}
        for number in range(WARMUP + steps):
            mask = ours.mask()
            for side, model in sides.items():
                time.sleep(PAUSE_S)
                taken[side].append(model.step() if side == "ours" else model.step(mask))
                for key, far in TOLERANCES.items():
                    here, there = taken["ours"][-1][key], taken[side][-1][key]
                    if number < WARMUP and not abs(there - here) <= far * abs(here):
                        raise SystemExit(f"error: {row}: {key} {here:.7g} here, {there:.7g} {side}")
    tokens = f"{job['shape']['num_visible']} + {job['shape']['num_target']}"
    rows: list[dict[str, Any]] = []
    for side, found in taken.items():
        seconds, cpu = ([step[key] for step in found[WARMUP:]] for key in ("s", "cpu_s"))
        numbers = {"s, median": statistics.median(seconds), "s, least": min(seconds)}
        numbers |= {"CPU s": statistics.median(cpu), "GB": found[-1]["gb"]}
        rows.append({"step": row, "tokens": tokens, "side": side, **numbers})
    return table.beside(rows, *numbers)


def main(argv: Sequence[str] | None = None) -> None:
    parser = table.parser(__doc__)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--steps", type=int, default=4, help="timed steps of each side")
    flags = parser.parse_args(argv)
    if not all(map(importlib.util.find_spec, ("torch", "transformers"))):
        raise SystemExit("error: torch, transformers: pip install -r requirements-peers.txt")
    os.environ["JAX_PLATFORMS"] = "cpu"
    measured = [row for name in flags.rows for row in measure(name, flags.steps, flags.smoke)]
    print(f"{BATCH} clips, {flags.steps} steps each, float32\n")
    table.show(measured, measured, flags.json, "jax", "flax", "torch", "transformers")


if __name__ == "__main__":
    main()
