"""A model with its weights, and what it computes of clips of any size."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8

from mvm import figures, tasks
from mvm.models import tubelets
from mvm.models.classifier import Classifier
from mvm.types import Grid, Mask, Params, Strategy, UserError

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Clips computed at a time: bounds memory."""

Size = tuple[int, int, int]
"""Frames, height and width of a clip."""


class Loaded(NamedTuple):
    """A model with its weights."""

    config: Any
    task: tasks.Task
    """Without head, decoder or norms, if the weights are those of an encoder alone."""
    params: Params
    """As NumPy arrays."""


class Reconstruction(NamedTuple):
    """What an autoencoder makes of a clip of which it sees a part."""

    pixels: np.ndarray
    """uint8 `[T, H, W, 3]`: visible tubelets as they are, targets as predicted, all else grey.
    Predictions of normalised tubelets are scaled back with the true mean and deviation. Where one
    frame of a tubelet is predicted (mae_st), its others are grey."""
    visible: np.ndarray
    """bool `[t, h, w]`, what the encoder sees."""
    target: np.ndarray
    """bool `[t, h, w]`, what is predicted and counts; never visible, too."""
    error: np.ndarray
    """float32 `[t, h, w]`, mean squared error of each target as the loss has it (of normalised
    pixels, where a flat guess has 1, unless trained otherwise); NaN elsewhere."""
    frames: np.ndarray
    """int `[T]`, which frames of the clip these are: all, unless the model selects some."""


class Part(NamedTuple):
    """An autoencoder's view of one clip and its predictions of the rest."""

    slots: Array
    """`[1, t]`, those that frame selection keeps of the clip's."""
    predicted: Array
    """`[1, M, Q]`"""
    mask: Mask


def fitted(
    config: Any, load: Callable[[Params], tuple[Params, Any]]
) -> tuple[tasks.Task, Params, Any]:
    """A model without the parts that its weights lack as a whole, so that an encoder alone embeds.

    `load` takes shapes and returns the parameters that are there, and a report.
    """
    whole = config.copy_and_resolve_references()
    whole.data.num_classes = config.data.num_classes or 2  # Of a head that is taken off again.
    task = tasks.build(whole)
    params, report = load(task.abstract)
    if tasks.spec(config.task).labels:
        optional = () if config.data.num_classes else ("fc_norm", "head")
        lacks = [part for part in optional if part not in params]
    else:
        decoder = ["decoder", "encoder_to_decoder", "mask_token"]
        lacks = [] if any(part in params for part in decoder) else decoder
        if "norm" not in params["encoder"]:  # Hugging Face pre-trains so with `use_mean_pooling`.
            log.warning("no norm after the encoder (encoder.norm): computed without")
            lacks.append("encoder/norm")
    return dataclasses.replace(task, lacks=tuple(lacks)), params, report


def embed(
    model: Any, strategy: Strategy | None, video: UInt8[Array, "B T H W 3"]
) -> Float[Array, "B D"]:
    """What a classifier's head reads; of an autoencoder the mean over all tokens."""
    if isinstance(model, Classifier):
        found = model.features(video, strategy)
        return found.mean(axis=1) if model.fc_norm is None else model.pool(found)
    return tokens(model, None, video).mean(axis=(1, 2, 3))


def tokens(
    model: Any, strategy: Strategy | None, video: UInt8[Array, "B T H W 3"]
) -> Float[Array, "B t h w D"]:
    """All tokens of the kept frames, whatever the strategy, as they leave the encoder."""
    pixels, grid = tubelets.split(video, model.tubelet)
    pixels, grid = model.encoder.keep_frames(None, pixels, grid)
    out = model.encoder(pixels, jnp.arange(grid.n), grid)
    return out.astype(jnp.float32).reshape(len(video), *grid, -1)


def logits(
    model: Classifier, strategy: Strategy | None, video: UInt8[Array, "B T H W 3"]
) -> Float[Array, "B C"]:
    """Of the classes."""
    return model(video, strategy)


def reconstruct(
    model: Any, strategy: Strategy, video: UInt8[Array, "1 T H W 3"], key: Key[Array, ""]
) -> Part:
    """Draws a mask and predicts its targets."""
    pixels, grid = tubelets.split(video, model.tubelet)
    slots = jnp.arange(grid.t)[None]
    if model.layout.frames is not None:
        slots = model.layout.frames(None, model.encoder.tokens(pixels), grid)
    out = model(key, video, strategy, train=False)
    return Part(slots, out.predicted, out.mask)


def programs(found: Loaded) -> Callable[[Callable[..., Any], Size, bool], Callable[..., Any]]:
    """`(function, size, masked) -> jitted (*inputs) -> outputs`, compiled when first used."""
    params = jax.device_put(found.params)

    # The counts of a mask depend on the grid.
    @functools.lru_cache(maxsize=16)
    def program(function: Callable[..., Any], size: Size, masked: bool) -> Callable[..., Any]:
        grid = grid_of(found, size)
        strategy = tasks.strategy_of(found.config.mask, grid) if masked else None
        if strategy and strategy.network and grid != found.task.grid:
            raise UserError(
                f"the sampler of mask {strategy.name!r} knows only the grid it was trained on, "
                f"{by(found.task.grid)}, and this clip's is {by(grid)}; resize it, or load the "
                f"model with another mask, such as mask='tube'"
            )
        jitted = jax.jit(lambda p, *x: function(nnx.merge(found.task.graphdef, p), strategy, *x))
        return functools.partial(jitted, params)

    return program


def in_batches(program: Callable[[np.ndarray], Array], clips: np.ndarray) -> np.ndarray:
    """Results `[n, ...]` for clips `[n, T, H, W, 3]`, `AT_ONCE` at a time."""
    # Powers of two, so that there are few programs.
    size, rows = min(1 << (len(clips) - 1).bit_length(), AT_ONCE), []
    for first in range(0, len(clips), size):
        part = clips[first : first + size]
        filler = np.repeat(part[-1:], size - len(part), axis=0)
        rows.append(np.asarray(program(np.concatenate([part, filler])))[: len(part)])
    return np.concatenate(rows)


def grid_of(found: Loaded, size: Size) -> Grid:
    """The grid of a clip's tokens, of the frames that selection keeps."""
    grid = Grid(*(n // block for n, block in zip(size, found.task.tubelet)))
    return grid._replace(t=found.task.grid.t) if found.config.data.num_candidates else grid


def paint(found: Loaded, clip: np.ndarray, part: Part) -> Reconstruction:
    """Puts predictions of `reconstruct` into their clip, uint8 `[T, H, W, 3]`."""
    tubelet, grid = found.task.tubelet, grid_of(found, clip.shape[:3])
    what = found.task.targets
    first = np.asarray(part.slots[0]) * tubelet.t
    frames = (first[:, None] + np.arange(tubelet.t)).ravel()
    kept, visible = clip[frames], part.mask.visible[0]
    # Visible targets, which VideoMAE V2 decodes although they do not count, are not shown.
    counts = part.mask.weight[0] > 0
    target, predicted = part.mask.target[0][counts], part.predicted[0][counts]
    told = np.arange(len(kept))
    if what.frames:
        told = np.arange(grid.t) * tubelet.t + tubelets.one_frame(grid, tubelet)
    pixels = figures.seen(kept, visible, grid)
    pixels[told] = figures.paste(kept[told], predicted, target, visible, grid, what.kind)
    error = figures.token_errors(kept[told], predicted, target, grid, what.kind)
    return Reconstruction(
        pixels,
        figures.members(visible, grid).reshape(grid),
        figures.members(target, grid).reshape(grid),
        error.astype(np.float32).reshape(grid),
        frames,
    )


def by(numbers: Sequence[int]) -> str:
    """Such as "8x14x14"."""
    return "x".join(map(str, numbers))
