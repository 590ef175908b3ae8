"""The two sides of `benchmarks.peers`: a training step as our runs build it, and PyTorch's.

Each lives in a process of its own and imports only what it needs, so that peak memory is its own.
"""

import functools
import importlib.metadata
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks.in_turn import use_cores

RATE = 1e-4
"""Learning rate of all steps."""


class Row(NamedTuple):
    """What both sides train: a recipe of `configs`, changed, and who it is compared with."""

    title: str
    recipe: str
    changes: Mapping[str, Any] = {}
    peers: tuple[str, ...] = ("released",)


class Options(NamedTuple):
    """How to train it: see the flags of `benchmarks.peers`."""

    size: str = "B"
    batch_size: int = 2
    steps: int = 4
    rounds: int = 1
    dtype: str = "float32"
    threads: int = 0
    smoke: bool = False


def config_of(row: Row, options: Options, random: bool) -> Any:
    """The row's recipe as both sides train it.

    Args:
        row: what to train.
        options: size, batch size and dtype.
        random: whether drop path and dropout are on; two sides that draw cannot be compared.
    """
    from benchmarks import cost

    recipe = row.recipe
    if options.smoke:
        recipe += ",smoke" if ":" in recipe else ":smoke"
    config = cost.config_of(cost.Row("", recipe, row.changes))
    config.init_from = ""
    config.data.update(repeats=1, erasing=0.0, mixup=0.0, cutmix=0.0)
    config.model.dtype = options.dtype
    if not options.smoke:
        config.model.size = options.size
    if not random:
        config.model.drop_path = config.mask.sampler_dropout = 0.0
    config.train.batch_size = options.batch_size
    rate = RATE * 256 / options.batch_size
    config.optim.update(base_lr=rate, min_lr=rate, warmup_epochs=0.0)
    return config


class Ours:
    """Our side: the jitted step that a run builds, on random clips.

    Args:
        row: what to train.
        options: how.
        random: see `config_of`.
    """

    @staticmethod
    def prepare() -> str:
        """What a run does with its process before it has threads; says how memory is kept."""
        from mvm.runtime import memory

        return "freed memory kept" if memory.keep_freed() else "as the system has it"

    def __init__(self, row: Row, options: Options, random: bool):
        import jax
        from absl import logging

        from benchmarks import results, step
        from mvm import train
        from mvm.runtime import sharding

        logging.set_verbosity(logging.WARNING)
        self.config = config = config_of(row, options, random)
        self.mesh = mesh = sharding.make_mesh(config.train.fsdp)
        plan = train.planned(config, num_records=1000 * options.batch_size)
        self.clips = step.random_batch(config, np.random.default_rng(0))
        with jax.set_mesh(mesh):
            self.run = train.place(config, plan.schedule, mesh)
            self.batch = sharding.put(self.clips, mesh)
            self.state = self.run.create()
            lowered = self.run.step.lower(self.state, self.batch)
            self.compiled = lowered.compile()
        self.about = {"device": jax.devices()[0].device_kind, **results.where()}

    def step(self, _: Any) -> dict[str, float]:
        """One update, until its results are there."""
        import jax

        self.state, metrics = self.compiled(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))
        return {name: float(metrics[name]) for name in ("loss", "grad_norm", "learning_rate")}

    def mask(self, _: Any) -> tuple[np.ndarray, np.ndarray]:
        """Visible and target tokens `[B, V]`, `[B, M]` that the next step will draw."""
        import jax

        if self.run.task.strategy is None:
            n, every = len(self.clips["video"]), np.arange(self.run.task.grid.n)
            return np.tile(every, (n, 1)), np.zeros((n, 0), np.int32)
        with jax.set_mesh(self.mesh):
            mask = self._draw(self.state, self.batch["video"])
        return np.asarray(mask.visible), np.asarray(mask.target)

    @functools.cached_property
    def _draw(self) -> Any:
        """`(state, video) -> Mask`, compiled once."""
        import jax
        from flax import nnx

        from mvm import tasks
        from mvm.models import tubelets

        task, pretrains = self.run.task, not tasks.spec(self.config.task).labels

        def draw(state: Any, video: Any) -> Any:
            key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), state["step"])
            model = nnx.merge(task.graphdef, state["params"])
            if pretrains:
                return model(key, video, task.strategy).mask
            pixels, grid = tubelets.split(video, task.tubelet)
            return model.encoder.select(key, pixels, grid, task.strategy)  # Whatever the key.

        return jax.jit(draw)

    def export(self, path: str) -> dict[str, Any]:
        """Writes weights and clips where the peers read them; returns what else they must know."""
        from mvm.weights import convert, describe, huggingface

        task, config = self.run.task, self.config
        encoder, decoder, strategy = task.encoder, task.decoder, task.strategy
        weights = convert.from_params(self.state["params"], task.tubelet)
        given = {"model.heads": encoder.heads, "model.decoder_heads": decoder.heads}
        given |= {"data.num_frames": config.data.num_frames}
        given |= {"data.image_size": config.data.image_size}
        modern = int(importlib.metadata.version("transformers").split(".")[0]) >= 5
        theirs, _ = huggingface.from_official(weights)
        if modern:  # Its own loader renames these, `load_state_dict` does not.
            words = {".q_bias": ".query.bias", ".v_bias": ".value.bias"}
            for old, new in words.items():
                theirs = {key.replace(old, new): value for key, value in theirs.items()}
        arrays: dict[str, Any] = {f"released/{key}": value for key, value in weights.items()}
        arrays |= {f"transformers/{key}": value for key, value in theirs.items()}
        np.savez(path, **arrays, video=self.clips["video"], label=self.clips["label"])
        return {
            "shape": {
                "grid": tuple(task.grid),
                "tubelet": tuple(task.tubelet),
                "width": encoder.width,
                "depth": encoder.depth,
                "heads": encoder.heads,
                "hidden": int(encoder.width * encoder.mlp_ratio),
                "decoder_width": decoder.width,
                "decoder_depth": decoder.depth,
                "decoder_heads": decoder.heads,
                "mask": strategy.name if strategy else "",
                "num_visible": strategy.num_visible if strategy else task.grid.n,
                "num_target": strategy.num_target if strategy else 0,
                "num_classes": config.data.num_classes if "head" in self.state["params"] else 0,
                "drop_path": config.model.drop_path,
                "sampler_heads": config.mask.sampler_heads,
                "sampler_dropout": config.mask.sampler_dropout,
            },
            "huggingface": huggingface.config_of(weights, describe.describe(weights, given)),
            "betas": (config.optim.b1, config.optim.b2),
            "weight_decay": config.optim.weight_decay,
            "layer_decay": config.optim.layer_decay,
            "smoothing": config.optim.smoothing,
        }


class Peer:
    """PyTorch's side: one whole update of the released engines.

    Args:
        side: "released" (`torch_models`) or "transformers".
        job: what `Ours.export` gave.
        path: the file it wrote.
        options: how to train.
        random: see `config_of`.
        gpu: whether to compute on a GPU.
    """

    @staticmethod
    def prepare() -> str:
        """Leaves the process as it is; says how memory is kept."""
        return "as the system has it"

    def __init__(
        self,
        side: str,
        job: Mapping[str, Any],
        path: str,
        options: Options,
        random: bool,
        gpu: bool,
    ):
        import torch

        from benchmarks import torch_models

        torch.set_num_threads(options.threads or use_cores())
        self.torch, self.models = torch, torch_models
        self.side, self.job, self.bfloat16 = side, job, options.dtype == "bfloat16"
        shape = torch_models.Shape(**job["shape"])
        self.shape = shape if random else shape._replace(drop_path=0.0, sampler_dropout=0.0)
        self.device = torch.device("cuda" if gpu else "cpu")
        with np.load(path) as arrays:
            start = f"{side}/"
            keys = [key for key in arrays if key.startswith(start)]
            model = self._model({key.removeprefix(start): arrays[key] for key in keys})
            mean, std = (np.array(x, np.float32) for x in (torch_models.MEAN, torch_models.STD))
            video = (arrays["video"] / np.float32(255) - mean) / std
            label = arrays["label"]
        self.model = model.train().to(self.device)
        # Clips come normalised from the loader; transformers has frames before channels.
        axes = (0, 1, 4, 2, 3) if side == "transformers" else (0, 4, 1, 2, 3)
        self.video = torch.from_numpy(video.transpose(axes).copy()).to(self.device)
        self.label = torch.from_numpy(label).long().to(self.device)
        groups = torch_models.groups(model, job["weight_decay"], job["layer_decay"], shape.depth)
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=job["betas"], eps=1e-8)
        self.about = {"device": torch.cuda.get_device_name() if gpu else "cpu"}

    def _model(self, weights: Mapping[str, np.ndarray]) -> Any:
        classifies = bool(self.shape.num_classes)
        if self.side == "transformers":
            import transformers

            config = transformers.VideoMAEConfig(**self.job["huggingface"])
            kind = "VideoClassification" if classifies else "PreTraining"
            model = getattr(transformers, f"VideoMAEFor{kind}")(config)
        else:
            kinds = (self.models.Autoencoder, self.models.Classifier)
            model = kinds[classifies](self.shape)
        tensors = {key: self.torch.from_numpy(value) for key, value in weights.items()}
        model.load_state_dict(tensors)
        return model

    def _loss(self, visible: Any, target: Any) -> Any:
        if not self.shape.num_classes:
            if self.side == "transformers":
                return self.model(self.video, bool_masked_pos=target).loss
            return self.model.loss(self.video, visible, target)
        if self.side == "transformers":
            logits = self.model(self.video).logits
        else:
            logits = self.model(self.video, visible)
        cross_entropy = self.torch.nn.functional.cross_entropy
        return cross_entropy(logits, self.label, label_smoothing=self.job["smoothing"])

    def use_mask(self, mask: tuple[np.ndarray, np.ndarray] | None) -> None:
        """Sets the tokens of the next steps, as `Ours.mask` gives them; None lets models draw."""
        self.given: tuple[Any, Any] = (None, None)
        if mask is not None:
            n = math.prod(self.shape.grid)
            index = [self.torch.tensor(part).long().to(self.device) for part in mask]
            self.given = self.models.chosen(index[0], n), self.models.chosen(index[1], n)

    def step(self, learning_rate: float) -> dict[str, float]:
        """Forward, backward, norm of the gradient, AdamW."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
        with self.torch.autocast(self.device.type, self.torch.bfloat16, enabled=self.bfloat16):
            loss = self._loss(*self.given)
        value = loss.item()
        self.optimizer.zero_grad()
        loss.backward()
        norm = self.models.gradient_norm(self.model)
        self.optimizer.step()
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()
        return {"loss": value, "grad_norm": float(norm)}
