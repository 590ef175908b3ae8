"""Tasks, one file each: a model, its loss, its predictions and their score.

`config.task` names a file of this package. It has a `SPEC` and a `build(config, gather)`, or a
`run(config, workdir)` where nothing is trained step by step; see `build` and `command`.
"""

import dataclasses
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from etils import epath
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from mvm import data, masking
from mvm.models import lora, tubelets, vit
from mvm.models.encoder import Encoder, Layout
from mvm.runtime import flops
from mvm.types import Grid, Metrics, Params, Strategy, Tubelet, UserError, fits, module, near

Batch = Mapping[str, Any]


class Spec(NamedTuple):
    """What is known of a task before its model is built, which needs the number of classes."""

    labels: bool
    """Whether records have classes; then data.val and data.test are scored."""
    sampling: str
    """Which frames training takes where `data.sampling=released`, as the released code does for
    "pretrain" or "finetune"."""
    mixes: bool = False
    """Whether its loss knows mixup and cutmix."""
    options: tuple[tuple[str, Any], ...] = ()
    """Its own keys, such as `(("head", ("linear", "attentive")), ("rank", 8))`: each with its
    choices, of which the first is the default, or with a default of its type; see `options`."""
    scores: tuple[str, ...] = ()
    """What checks during training measure, as "val_..."; to be high but for a loss."""
    records: Callable[[Any, str], tuple[Sequence[data.Record], Sequence[str]]] | None = None
    """`records(config, split)`, of a task whose data are annotations and not a list of videos: the
    records, and the names of the classes in the order of the labels."""


class Truths(NamedTuple):
    """What is known of the records that were predicted, in the order of the predictions."""

    label: np.ndarray  # [R]
    name: Sequence[str]
    classes: Sequence[str] = ()  # Their names; empty where they have numbers only.
    position: Sequence[int] | np.ndarray = ()
    """Of each in `records`; those that could not be read have none."""
    records: Sequence[data.Record] = ()
    """All of the list; one that is asked for may be read from a disk."""


class Scores(NamedTuple):
    """What predictions are worth."""

    values: dict[str, float]
    tables: dict[str, list[Sequence[Any]]]
    """Rows by name of the CSV file, the first is its header."""
    files: Mapping[str, Callable[[epath.Path], object]] = {}
    """What writes further files, such as "figures/timeline.png", given their path."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A model without weights, and what is done with it.

    `loss` and `predict` are pure; both get the parameters whole or, per layer, as `run.gather`
    expects them.
    """

    spec: ClassVar[Spec]
    frozen: ClassVar[tuple[str, ...]] = ()
    """Top-level parts of the model that it does not train: no gradient, no moments."""
    untrained: ClassVar[tuple[str, ...]] = ()
    """Parts of `macs` without a backward pass."""

    run: vit.Run
    """How the model computes: dtype, rematerialisation, kernels."""
    clips: Mapping[str, Any]
    """What becomes of a record for "train", "val" and "test", such as a `data.ClipSpec`."""
    lacks: tuple[str, ...] = ()
    """Parts that the model goes without, such as "head" or "encoder/norm"."""

    def make(self, key: Key[Array, ""]) -> nnx.Module:
        """The model with random weights."""
        raise NotImplementedError

    def loss(
        self, params: Params, frozen: Params, key: Key[Array, ""], batch: Batch
    ) -> tuple[Array, Metrics]:
        """What training minimises, and what is logged beside it.

        A batch has "video" uint8 `[B, T, H, W, 3]` and "label" int32 `[B]`. Where the configuration
        asks for them "erase" int32 `[B, 4]` (y, x, h, w), and for a task that `mixes` "lam"
        float32 `[B]` and "box" int32 `[B, 4]`, the same for all clips.
        """
        raise NotImplementedError

    def updated(self, params: Params, frozen: Params, metrics: Metrics) -> Params:
        """What is frozen after a step, given the new parameters and the metrics of its loss.

        For what follows without a gradient, such as a running mean.
        """
        return frozen

    def predict(self, params: Params, frozen: Params, batch: Batch) -> dict[str, Array]:
        """Arrays `[B, ...]` for "video" uint8 `[B, V, T, H, W, 3]`, V views of each video."""
        raise NotImplementedError

    def score(self, predictions: Mapping[str, np.ndarray], truths: Truths) -> Scores:
        """Scores the rows of `predict` of all records that could be read, in percent."""
        raise NotImplementedError

    def constant(self, shares: Mapping[str, np.ndarray], mixed: bool) -> dict[str, float]:
        """By metric, what the best answer that is the same for every clip gives, where it is known.

        `shares` of the classes in "train" and "val" are `[C]`; clips of training may be `mixed`.
        """
        return {}

    def macs(self, executed: bool = False) -> dict[str, int]:
        """Multiply-accumulates of one clip forward, by part; see `mvm.runtime.flops`.

        As published, or `executed` here; nothing where they are not counted.
        """
        return {}

    def work(self, executed: bool = False) -> int:
        """Floating-point operations of one clip in a training step, see `flops.train_flops`."""
        return flops.train_flops(self.macs(executed), self.untrained)

    def summary(self) -> str:
        """What it looks at, for the log."""
        return ""

    @property
    def depth(self) -> int:
        """Blocks of the encoder, for layer-wise decay of the learning rate."""
        return 0

    @cached_property
    def _empty(self) -> nnx.Module:
        model = nnx.eval_shape(self.make, jax.eval_shape(lambda: jax.random.key(0)))
        for part in self.lacks:
            owner, _, name = part.rpartition("/")
            setattr(getattr(model, owner) if owner else model, name, None)
        return model

    @cached_property
    def graphdef(self) -> Any:
        """Static structure; `nnx.merge(graphdef, all parameters)` is the model."""
        return nnx.split(self._empty)[0]

    @cached_property
    def abstract(self) -> Params:
        """Shapes of all parameters, trained and frozen."""
        return nnx.to_pure_dict(nnx.state(self._empty, nnx.Param))

    def model(self, params: Params, frozen: Params) -> Any:
        """The model with these weights."""
        return nnx.merge(self.graphdef, joined(params, frozen))

    def init(self, key: Key[Array, ""]) -> tuple[Params, Params]:
        """Random parameters: trained, frozen."""
        return self.parted(nnx.to_pure_dict(nnx.state(self.make(key), nnx.Param)))

    def trains(self, path: str) -> bool:
        """Whether a leaf has a gradient and moments."""
        return path.split("/")[0] not in self.frozen

    def parted(self, params: Params) -> tuple[Params, Params]:
        """Parameters as (trained, frozen); what is frozen, but scalars, has the compute dtype."""
        trained, still = {}, {}
        for path, leaf in flatten_dict(params, sep="/").items():
            if self.trains(path):
                trained[path] = leaf
            else:
                still[path] = leaf.astype(self.run.dtype) if leaf.ndim else leaf
        return unflatten_dict(trained, sep="/"), unflatten_dict(still, sep="/")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ClipTask(Task):
    """A task of a ViT that looks at clips; `parts.shared` makes these fields."""

    untrained: ClassVar[tuple[str, ...]] = ("select",)

    encoder: vit.Size
    decoder: vit.Size
    """Like `targets`, of a model that has one."""
    targets: tubelets.Targets
    """What the decoder predicts: pixels, normalised or not, of all frames or one."""
    tubelet: Tubelet
    grid: Grid
    num_candidates: int
    """Tokens of the decoded frames, of which frame selection may leave fewer: `grid.n`."""
    strategy: Strategy | None
    """The mask; None shows the encoder all tokens."""
    layout: Layout
    """Positions and frame selection."""
    head_epsilon: float
    train: str
    """Of the encoder: "all" of it, nothing ("head"), or A and B beside its matrices ("lora")."""

    def backbone(self, rngs: nnx.Rngs, init: str = "normal", **options: Any) -> Encoder:
        """The encoder with random weights; `init` and `options` are those of `Encoder`."""
        sizes = self.encoder, self.tubelet, init, self.run
        return Encoder(*sizes, layout=self.layout, rngs=rngs, **options)

    def trains(self, path: str) -> bool:
        of_encoder = path.startswith("encoder/") and not lora.is_low_rank(path)
        return super().trains(path) and (self.train == "all" or not of_encoder)

    def macs(self, executed: bool = False) -> dict[str, int]:
        """Of the encoder; a task adds what stands on it.

        As published: all tokens of all candidate frames are embedded whatever the mask, and motion
        scores and samplers reuse those embeddings. `executed`: only visible tokens are embedded
        for the encoder, and a strategy that looks at tokens embeds them beforehand ("select").
        """
        visible, s = self.num_visible, self.strategy
        learns = s is not None and s.network is not None
        embedded, scored = self.num_candidates, 0
        if executed:
            # A sampler's loss goes back into the embedding of all tokens: more than a score.
            embedded = visible + self.grid.n * learns
            scored = self.grid.n * (s is not None and s.needs_tokens and not learns)
            scored += self.num_candidates * (self.num_candidates > self.grid.n)
        width, pixels = self.encoder.width, self.tubelet.pixels
        found = {
            "embed": embedded * pixels * width,
            "select": scored * pixels * width,
            "encoder": self.encoder.depth * flops.block_macs(self.encoder, visible),
        }
        if rank := self.encoder.lora_rank:  # Beside D x 3 D and D x D.
            found["lora"] = self.encoder.depth * visible * rank * 6 * width
        return found

    def work(self, executed: bool = False) -> int:
        still, through = self.untrained, ("encoder",) * (self.train == "lora")
        if self.train != "all":
            still += ("embed",) if through else ("embed", "encoder")
        return flops.train_flops(self.macs(executed), still, through)

    def summary(self) -> str:
        return f"{self.num_visible} visible and {self.num_target} target of {self.grid.n} tokens"

    @property
    def depth(self) -> int:
        return self.encoder.depth

    @property
    def num_visible(self) -> int:
        """Tokens of a clip that the encoder sees."""
        return self.strategy.num_visible if self.strategy else self.grid.n

    @property
    def num_target(self) -> int:
        """Tokens of a clip that the decoder reconstructs."""
        return self.strategy.num_target if self.strategy else 0


def joined(params: Params, frozen: Params) -> Params:
    """The inverse of `Task.parted`, but for dtypes."""
    return unflatten_dict(flatten_dict(params) | flatten_dict(frozen))


def names() -> list[str]:
    """Names of all tasks: every file of this package but `parts`."""
    return sorted({m.name for m in pkgutil.iter_modules(__path__)} - {"parts"})


def _module(name: str) -> ModuleType:
    found = module("task", name, __name__, names())
    if not isinstance(getattr(found, "SPEC", None), Spec):
        raise UserError(f"task={name}: the module has no SPEC; see docs/tasks.md")
    return found


def spec(name: str) -> Spec:
    """What is known of a task by its name; UserError for an unknown one."""
    return _module(name).SPEC


def options(config: Any) -> dict[str, Any]:
    """A task's own options: what `config.options` says, else their defaults."""
    known = dict(spec(config.task).options)
    for name, value in config.options.items():
        allowed = known.get(name)
        if name not in known:
            raise UserError(f"options.{name}: task {config.task} has none{near(name, known)}")
        if value not in allowed if isinstance(allowed, tuple) else not fits(value, allowed):
            raise UserError(f"options.{name}={value!r}; choose from or give one like {allowed!r}")
    defaults = {name: v[0] if isinstance(v, tuple) else v for name, v in known.items()}
    return defaults | dict(config.options)


def check(config: Any, given: Iterable[str] = ()) -> None:
    """Raises UserError for unknown `options`, or a key of `mask` that was given and is not read.

    Defaults of mask and task that are not said become a part of a training configuration: a run
    keeps them, also where those of a user's own module change.
    """
    every, known = options(config), masking.hparams(name) if (name := config.mask.name) else {}
    for key in {path[5:] for path in given if path[:5] == "mask."} - {"name", *known}:
        raise UserError(f"mask.{key} has no effect with mask.name={name!r}{near(key, known)}")
    if not config.evaluate and not command(config.task):
        own = {k: v for k, v in known.items() if v is not dataclasses.MISSING}
        config.mask = ConfigDict({**own, **config.mask}).unlock()
        config.options = every


def command(name: str) -> Callable[[Any, epath.Path], dict[str, float]] | None:
    """`run(config, workdir)` of a task that has its own in place of training and scoring."""
    return getattr(_module(name), "run", None)


def build(config: Any, gather: Callable[[Any], Any] | None = None) -> Task:
    """Resolves sizes, counts and the model's structure; allocates nothing.

    `gather` is that of `vit.Run`; None takes whole weights.
    """
    options(config)
    task, train = _module(config.task).build(config, gather), config.optim.train
    if train != "all" and not (isinstance(task, ClipTask) and task.trains("encoder/x_lora/")):
        raise UserError(f"optim.train={train}: task {config.task} trains no encoder; leave it out")
    return task


def build_vit(config: Any) -> ClipTask:
    """`build` where only a task of clips will do; UserError for another."""
    task = build(config)
    if not isinstance(task, ClipTask):
        raise UserError(f"task={config.task} has no ViT; give a run of a task that looks at clips")
    return task
