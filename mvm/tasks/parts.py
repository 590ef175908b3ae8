"""What every task takes out of a configuration: sizes, mask, positions, dtype, clips."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp

from mvm import config as schema
from mvm import data, masking
from mvm.masking import frames
from mvm.models import tubelets, vit
from mvm.models.encoder import Layout
from mvm.runtime import sharding
from mvm.types import Grid, Strategy, Tubelet, UserError


def shared(config: Any, gather: Callable[[Any], Any] | None, released: str) -> dict[str, Any]:
    """The fields of `tasks.ClipTask`; `released` is `tasks.Spec.sampling`."""
    model, clip = config.model, config.data
    for key in ("num_frames", "frame_stride", "image_size"):
        if not clip[key]:
            raise UserError(f"data.{key}=0, but task={config.task} reads none; choose 1 or more")
    tubelet, views = Tubelet(*model.tubelet), (config.eval.num_segments, config.eval.num_crops)
    grid = tubelet.grid(clip.num_frames, clip.image_size, clip.image_size)
    encoder, decoder = sizes(model)
    # Weights that are scored are plain ones, however they were trained.
    train, rank = "all" if config.evaluate else config.optim.train, config.optim.lora_rank
    if train == "lora":
        scale = config.optim.lora_alpha / rank
        encoder = encoder._replace(lora_rank=rank, lora_scale=scale)
    return {
        "train": train,
        "encoder": encoder,
        "decoder": decoder,
        "targets": tubelets.Targets(model.targets, int(model.target_frames == 1 < tubelet.t)),
        "tubelet": tubelet,
        "grid": grid,
        "num_candidates": max(clip.num_candidates, clip.num_frames) // tubelet.t * grid.h * grid.w,
        "strategy": strategy_of(config.mask, grid),
        "layout": _layout(model, clip, tubelet, grid),
        "run": run(config, gather),
        "head_epsilon": model.head_epsilon,
        "clips": {split: data.spec_of(clip, split, released, views) for split in data.SPLITS},
    }


def run(config: Any, gather: Callable[[Any], Any] | None) -> vit.Run:
    """How a model computes here."""
    model = config.model
    device, kernel, dtype = sharding.platform(), model.attention, model.dtype
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    fused = (device, dtype) == ("gpu", "bfloat16")
    if kernel == "cudnn" and not fused:
        raise UserError(
            f"model.attention={kernel} cannot run on {device} in {dtype}; set it to auto"
        )
    if kernel == "auto" and not fused:
        kernel = "cpu" if device == "cpu" else "xla"
    return vit.Run(jnp.dtype(dtype), model.remat, gather, kernel)


def sizes(model: Any) -> tuple[vit.Size, vit.Size]:
    """Sizes of encoder and decoder, of `config.model`."""
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


def strategy_of(mask: Any, grid: Grid) -> Strategy | None:
    """The masking strategy; of the keys that all masks have, it gets those that it reads."""
    if not mask.name:
        return None
    known = masking.hparams(mask.name)
    own = {k: v for k, v in mask.items() if k in known or f"mask.{k}" not in schema.KEYS}
    return masking.build(mask.name, grid, **own)


def _layout(model: Any, clip: Any, tubelet: Tubelet, grid: Grid) -> Layout:
    """Positions and frame selection."""
    candidates, sides = clip.num_candidates, model.position_grid
    if any(sides) and not all(sides):
        raise UserError(f"model.position_grid={sides} is no grid (t, h, w); (0, 0, 0) = the clip's")
    if candidates and (candidates < clip.num_frames or candidates % tubelet.t):
        raise UserError(
            f"data.num_candidates={candidates} must be a multiple of the tubelet's {tubelet.t} "
            f"frames and at least data.num_frames={clip.num_frames}"
        )
    trained = Grid(*sides) if all(sides) else grid if model.positions == "separable" else None
    select = partial(frames.select, num_slots=grid.t, keep_ratio=clip.keep_ratio)
    return Layout(trained, model.positions, select if candidates else None)
