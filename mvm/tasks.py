"""From a configuration to the pure pieces of a run: model, mask, loss, optimiser."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from mvm import masking, optim
from mvm import step as train_step
from mvm.masking import frames
from mvm.models import tubelets, vit
from mvm.models.autoencoder import Autoencoder
from mvm.models.classifier import Classifier
from mvm.models.encoder import Layout
from mvm.runtime import sharding
from mvm.types import Grid, Params, Strategy, Tubelet, UserError


class Task(NamedTuple):
    """A model with its mask, without weights."""

    graphdef: Any
    """Static structure; `nnx.merge(graphdef, params)` is the model."""
    init: Callable[[Array], Params]
    """`key -> params`."""
    abstract: Params
    """Shapes of `params`."""
    strategy: Strategy | None
    tubelet: Tubelet
    grid: Grid
    num_candidates: int
    """Tokens of the decoded frames, of which frame selection may leave fewer: `grid.n`."""
    encoder: vit.Size
    decoder: vit.Size


def sizes(model: Any) -> tuple[vit.Size, vit.Size]:
    """Sizes of encoder and decoder.

    Raises:
        UserError: for heads that do not divide the width.
    """
    named, (decoder_width, decoder_heads) = vit.ENCODERS[model.size], vit.DECODERS[model.size]
    encoder = vit.Size(
        model.width or named.width,
        model.depth or named.depth,
        model.heads or named.heads,
        model.mlp_ratio or named.mlp_ratio,
        model.cosine_attention,
        model.layer_scale,
        model.epsilon,
    )
    decoder = encoder._replace(
        width=model.decoder_width or (encoder.width // 2 if model.width else decoder_width),
        depth=model.decoder_depth,
        heads=model.decoder_heads or decoder_heads,
    )
    for name, size in (("model", encoder), ("model.decoder", decoder)):
        if size.width % size.heads:
            raise UserError(
                f"{name}: width {size.width} is not divisible by its {size.heads} heads"
            )
    return encoder, decoder


def dtype_of(name: str) -> Any:
    """Compute dtype by name."""
    if name == "auto":
        return jnp.float32 if sharding.platform() == "cpu" else jnp.bfloat16
    return jnp.dtype(name)


def attention_of(name: str, dtype: Any) -> str:
    """Who attends, see `attention.attend`; "auto" is what suits the device.

    Raises:
        UserError: for cudnn or splash where it cannot work.
    """
    platform = sharding.platform()
    able = platform == "gpu" and dtype == jnp.bfloat16
    if name == "cudnn" and not able:
        raise UserError(
            f"model.attention=cudnn needs an NVIDIA GPU and bfloat16, here are "
            f"{platform} and {jnp.dtype(dtype).name}; set it to auto"
        )
    if name == "splash" and platform != "tpu":
        raise UserError(f"model.attention=splash needs a TPU, here is {platform}; set it to auto")
    if name == "auto" and platform == "cpu":
        return "cpu"
    return name if able or name == "splash" else "xla"


def strategy_of(mask: Any, grid: Grid) -> Strategy | None:
    """The masking strategy, given those of its hyper-parameters that the config knows."""
    if not mask.name:
        return None
    known = masking.hparams(mask.name)
    return masking.build(mask.name, grid, **{k: mask[k] for k in mask if k in known})


def layout_of(config: Any, tubelet: Tubelet, grid: Grid) -> Layout:
    """Positions and frame selection.

    Raises:
        UserError: for no grid, or candidates that the clip does not fit in.
    """
    model, candidates = config.model, config.data.num_candidates
    sides = tuple(model.position_grid)
    if len(sides) != 3 or (any(sides) and min(sides) < 1):
        raise UserError(
            f"model.position_grid={sides} is no grid (t, h, w); set it to that of training, or to "
            f"(0, 0, 0) for the clip's own"
        )
    trained = Grid(*sides) if any(sides) else None
    learned = (trained or grid) if model.positions == "separable" else None
    select = None
    if candidates:
        if candidates < config.data.num_frames or candidates % tubelet.t:
            raise UserError(
                f"data.num_candidates={candidates} must be a multiple of the tubelet's "
                f"{tubelet.t} frames and at least data.num_frames={config.data.num_frames}"
            )
        select = partial(frames.select, num_slots=grid.t, keep_ratio=config.data.keep_ratio)
    return Layout(learned, trained, select)


def targets_of(model: Any, tubelet: Tubelet) -> tubelets.Targets:
    """What the decoder predicts.

    Raises:
        UserError: for more than one frame that is not all of them.
    """
    if model.target_frames not in (0, 1, tubelet.t):
        raise UserError(
            f"model.target_frames={model.target_frames}; choose 1, or 0 for all {tubelet.t}"
        )
    return tubelets.Targets(model.targets, 1 if model.target_frames == 1 < tubelet.t else 0)


def build(config: Any, gather: Callable[[Any], Any] | None = None) -> Task:
    """Resolves sizes, counts and the model's structure; allocates nothing.

    Args:
        config: a whole configuration; `task` "pretrain" gives an autoencoder, else a classifier.
        gather: see `vit.Run`.

    Raises:
        UserError: for values that do not fit together, one line each.
    """
    model, data = config.model, config.data
    encoder, decoder = sizes(model)
    tubelet = Tubelet(*model.tubelet)
    grid = tubelet.grid(data.num_frames, data.image_size, data.image_size)
    strategy = strategy_of(config.mask, grid)
    dtype = dtype_of(model.dtype)
    attention = attention_of(model.attention, dtype)
    run = vit.Run(dtype, model.remat, gather, attention, sharding.spread)
    layout = layout_of(config, tubelet, grid)
    if config.task == "pretrain":
        if strategy is None or not strategy.num_target:
            raise UserError(
                f"pre-training needs a mask with targets; mask.name={config.mask.name!r}, "
                f"mask.mask_ratio={config.mask.mask_ratio} leaves none"
            )

        network, what = strategy.network, targets_of(model, tubelet)
        sampler = partial(network, grid, encoder.width, run) if network else None

        def make(key: Array) -> nnx.Module:
            return Autoencoder(
                encoder,
                decoder,
                tubelet,
                run,
                targets=what,
                layout=layout,
                head_epsilon=model.head_epsilon,
                sampler=sampler,
                rngs=nnx.Rngs(key),
            )
    else:
        if data.num_classes < 2:
            raise UserError(f"data.num_classes={data.num_classes}; a classifier needs two or more")
        if strategy is not None and strategy.num_target:
            raise UserError(
                f"a classifier has nothing to reconstruct, but mask.name={config.mask.name!r}, "
                f"mask.mask_ratio={config.mask.mask_ratio} leaves {strategy.num_target} targets; "
                f"set mask.mask_ratio to 1 - mask.keep_ratio, or mask.name to nothing"
            )
        if strategy is not None and strategy.network:
            raise UserError(
                f"mask.name={config.mask.name!r} learns where to look while it pre-trains; set "
                f"mask.name to nothing, or to everest, for a classifier"
            )

        def make(key: Array) -> nnx.Module:
            return Classifier(
                encoder,
                data.num_classes,
                tubelet,
                run,
                drop_path=model.drop_path,
                head_dropout=model.head_dropout,
                head_scale=model.head_scale,
                layout=layout,
                head_epsilon=model.head_epsilon,
                rngs=nnx.Rngs(key),
            )

    def init(key: Array) -> Params:
        return nnx.to_pure_dict(nnx.state(make(key), nnx.Param))

    key = jax.eval_shape(lambda: jax.random.key(0))
    graphdef, everything = nnx.split(nnx.eval_shape(make, key))
    abstract = nnx.to_pure_dict(nnx.filter_state(everything, nnx.Param))
    candidates = max(data.num_candidates, data.num_frames) // tubelet.t * grid.h * grid.w
    return Task(graphdef, init, abstract, strategy, tubelet, grid, candidates, encoder, decoder)


def loss_of(config: Any, task: Task) -> train_step.Loss:
    """The objective of the configured task."""
    if config.task == "pretrain":
        assert task.strategy is not None
        return train_step.pretrain_loss(task.strategy)
    return train_step.finetune_loss(task.strategy, config.data.num_classes, config.optim.smoothing)


class Plan(NamedTuple):
    """How long a run is and how its learning rate goes."""

    total_steps: int
    steps_per_epoch: int
    schedule: optim.Schedule


def plan(config: Any, num_records: int) -> Plan:
    """Steps and schedule for a training list of `num_records`.

    An epoch counts whole batches, as in the released codes; what is left over opens the next.

    Raises:
        UserError: if the list is smaller than one batch, or the run has no step.
    """
    batch = config.train.batch_size
    if num_records < batch:
        raise UserError(
            f"train.batch_size={batch} is larger than the {num_records} training records; "
            f"set --config.train.batch_size={num_records} or fewer"
        )
    per_epoch = num_records // batch
    total = config.train.steps or round(config.train.epochs * per_epoch)
    if total < 1:
        raise UserError(f"train.epochs={config.train.epochs} makes no step; set it higher")
    scale = batch / 256
    return Plan(
        total,
        per_epoch,
        optim.Schedule(
            peak=config.optim.base_lr * scale,
            end=config.optim.min_lr * scale,
            warmup_steps=min(round(config.optim.warmup_epochs * per_epoch), total),
            total_steps=total,
        ),
    )


def going_on(config: Any, plan: Plan, step: int, next_index: int) -> Plan:
    """The plan of a run at `step` that has used `next_index` records, in batches of any size.

    Where epochs count (`train.steps` is 0), the records decide what is left and how far the
    schedule is.
    """
    shift = 0 if config.train.steps else step - next_index // config.train.batch_size
    schedule = plan.schedule._replace(shift=shift)
    return plan._replace(total_steps=plan.total_steps + shift, schedule=schedule)


def optimizer_of(config: Any, task: Task, schedule: optim.Schedule) -> Any:
    """AdamW with the configured rules."""
    o = config.optim
    return optim.adamw(
        schedule,
        b2=o.b2,
        weight_decay=o.weight_decay,
        clip_norm=o.clip_norm,
        layer_decay=o.layer_decay,
        depth=task.encoder.depth,
    )
