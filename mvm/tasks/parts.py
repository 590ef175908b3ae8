"""What every task takes out of a configuration: sizes, mask, positions, dtype, clips."""

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax.numpy as jnp

from mvm import config as keys
from mvm import data, masking
from mvm.masking import frames
from mvm.models import tubelets, vit
from mvm.models.encoder import Layout
from mvm.runtime import sharding
from mvm.types import Grid, Strategy, Tubelet, UserError

log = logging.getLogger(__name__)


def shared(config: Any, gather: Callable[[Any], Any] | None, released: str) -> dict[str, Any]:
    """The fields of `tasks.Task`; see `tasks.build` and `clip_spec`."""
    model, clip = config.model, config.data
    tubelet = Tubelet(*model.tubelet)
    grid = tubelet.grid(clip.num_frames, clip.image_size, clip.image_size)
    dtype = dtype_of(model.dtype)
    attention = attention_of(model.attention, dtype)
    return {
        **dict(zip(("encoder", "decoder"), sizes(model))),
        "targets": targets_of(model, tubelet),
        "tubelet": tubelet,
        "grid": grid,
        "num_candidates": max(clip.num_candidates, clip.num_frames) // tubelet.t * grid.h * grid.w,
        "strategy": strategy_of(config.mask, grid),
        "layout": _layout(model, clip, tubelet, grid),
        "run": vit.Run(dtype, model.remat, gather, attention, sharding.spread),
        "head_epsilon": model.head_epsilon,
        "clips": {split: clip_spec(config, split, released) for split in ("train", "val", "test")},
    }


# data.sampling -> the pipeline's rules for training and for evaluation.
_SAMPLING = {
    "strided": ("strided", "center"),
    "segments": ("segments", "segments_center"),
    "segments_v2": ("segments_v2", "segments_center"),
    "spread": ("spread", "spread_center"),
}


def clip_spec(config: Any, split: str, released: str = "center") -> data.ClipSpec:
    """How clips are made: augmented for "train", centred for "val", many views for "test".

    `released` is the training rule of `data.sampling=released`.
    """
    d = config.data
    random, center = _SAMPLING.get(d.sampling, (released, "center"))
    shared = {
        # Frame selection is the model's: it gets all candidates.
        "num_frames": d.num_candidates or d.num_frames,
        "frame_stride": d.frame_stride,
        "image_size": d.image_size,
        "min_frames": d.min_frames,
        "fps": d.fps,
        "timeout": d.timeout,
    }
    if split == "test":
        shared |= {"num_segments": config.eval.num_segments, "num_crops": config.eval.num_crops}
    if split != "train":
        return data.ClipSpec(sampling=center, crop="center", **shared)
    return data.ClipSpec(
        sampling=random,
        crop=d.crop,
        flip=d.flip,
        rand_augment=d.rand_augment,
        erasing=d.erasing,
        repeats=d.repeats,
        **shared,
    )


def sizes(model: Any) -> tuple[vit.Size, vit.Size]:
    """Sizes of encoder and decoder, of `config.model`.

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
    """The masking strategy of `config.mask`; says which of its keys mean nothing to it."""
    if not mask.name:
        return None
    known, defaults = masking.hparams(mask.name), keys.defaults().mask
    for key in sorted(set(mask) - known - {"name"}):
        if mask[key] != defaults.get(key):
            _warn_once(
                f"mask.{key}={mask[key]} has no effect: {mask.name} takes "
                f"{', '.join(sorted(known)) or 'nothing'}"
            )
    return masking.build(mask.name, grid, **{k: mask[k] for k in mask if k in known})


@cache
def _warn_once(line: str) -> None:
    log.warning(line)


def targets_of(model: Any, tubelet: Tubelet) -> tubelets.Targets:
    """What the decoder predicts, of `config.model`.

    Raises:
        UserError: for more than one frame that is not all of them.
    """
    if model.target_frames not in (0, 1, tubelet.t):
        raise UserError(
            f"model.target_frames={model.target_frames}; choose 1, or 0 for all {tubelet.t}"
        )
    return tubelets.Targets(model.targets, 1 if model.target_frames == 1 < tubelet.t else 0)


def _layout(model: Any, clip: Any, tubelet: Tubelet, grid: Grid) -> Layout:
    """Positions and frame selection.

    Raises:
        UserError: for no grid, or candidates that the clip does not fit in.
    """
    candidates, sides = clip.num_candidates, tuple(model.position_grid)
    if len(sides) != 3 or (any(sides) and min(sides) < 1):
        raise UserError(
            f"model.position_grid={sides} is no grid (t, h, w); set it to that of training, or to "
            f"(0, 0, 0) for the clip's own"
        )
    trained = Grid(*sides) if any(sides) else None
    learned = (trained or grid) if model.positions == "separable" else None
    select = None
    if candidates:
        if candidates < clip.num_frames or candidates % tubelet.t:
            raise UserError(
                f"data.num_candidates={candidates} must be a multiple of the tubelet's "
                f"{tubelet.t} frames and at least data.num_frames={clip.num_frames}"
            )
        select = partial(frames.select, num_slots=grid.t, keep_ratio=clip.keep_ratio)
    return Layout(learned, trained, select)
