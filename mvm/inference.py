"""A model with its weights, and what it computes of clips of any size."""

import collections
import dataclasses
import functools
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped, UInt8

from mvm import config as schema
from mvm import initial, runs, tasks
from mvm.figures import gallery, overlays, sheets
from mvm.models import tubelets
from mvm.models.classifier import Classifier
from mvm.runtime import checkpoint, sharding
from mvm.tasks import parts
from mvm.types import Grid, Mask, Params, Strategy, UserError

log = logging.getLogger(__name__)


def fitted(source: runs.Source, config: Any) -> tuple[tasks.ClipTask, Params, str]:
    """A model without the parts that its weights lack as a whole, so that an encoder alone embeds.

    With it come its parameters, NumPy arrays, and a report of what was read.
    """
    whole = config.copy_and_resolve_references()
    whole.data.num_classes = config.data.num_classes or 2  # Of a head that is taken off again.
    whole.evaluate = True  # Without what only training has.
    task = tasks.build_vit(whole)
    params, report = source.load(task.abstract)
    if tasks.spec(config.task).labels:
        optional = () if config.data.num_classes else ("fc_norm", "head")
        lacks = [part for part in optional if part not in params]
    else:
        decoder = ["decoder", "encoder_to_decoder", "mask_token"]
        lacks = [] if any(part in params for part in decoder) else decoder
        if "norm" not in params["encoder"]:  # Hugging Face pre-trains so with `use_mean_pooling`.
            log.warning("no norm after the encoder (encoder.norm): computed without")
            lacks.append("encoder/norm")
    task = dataclasses.replace(task, lacks=tuple(lacks)) if lacks else task
    if missing := initial.missing(task.abstract, params):
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UserError(
            f"{source.path} lacks {missing[0]}{others} of a model with task={config.task}, "
            f"data.num_classes={config.data.num_classes}, mask.name={config.mask.name!r}; load "
            f"complete weights, or another mask"
        )
    return task, params, report


class Encoder(NamedTuple):
    """A model whose encoder is used as it is."""

    config: Any
    """Of the model and its clips as the weights have it, of all else as it was given."""
    task: tasks.ClipTask
    params: Params
    """NumPy arrays."""
    protocol: dict[str, Any]
    """What its features depend on: all that a table of frozen scores has to say of a line."""


def encoder(config: Any) -> Encoder:
    """The model of `init_from`, whatever trained it; else random weights of `config.model`."""
    own, given = config.copy_and_resolve_references(), config.data
    source = runs.Source(config.init_from, "init_from") if config.init_from else None
    if source is not None:
        of_weights = source.config()
        own.task, own.mask, own.model = of_weights.task, of_weights.mask, of_weights.model
        own.model.update(dtype=config.model.dtype, attention=config.model.attention)
        own.options = of_weights.options
        for key in (*runs.OF_WEIGHTS, *runs.OF_CLIPS, "num_classes"):
            own.data[key] = of_weights.data[key]
    else:
        own.task, own.options = "pretrain", {}
        own.data.update(
            {key: given[key] or schema.KEYS[f"data.{key}"].default for key in runs.OF_WEIGHTS}
        )
    if not any(own.model.position_grid):  # Clips of another size see the table of training.
        own.model.position_grid = runs.clip_grid(own)
    own.data.update({key: given[key] for key in runs.OF_WEIGHTS if given[key]})
    if source is not None:
        task, params, report = fitted(source, own)
        log.info("init_from %s", report)
    else:
        task = tasks.build_vit(own)
        trained, still = sharding.jit_once(task.init)(jax.random.key(config.seed))
        params = jax.device_get({**trained, **still})
        log.warning("init_from is empty: random weights")
    total = hashlib.sha256()
    for path, leaf in sorted(checkpoint.leaves(params).items()):
        total.update(path.encode() + np.ascontiguousarray(leaf).tobytes())
    spec, norm = task.clips["test"], "mean" if "fc_norm" in params else "none"
    protocol = {
        "weights": config.init_from or "random",
        "digest": total.hexdigest()[:16],
        "stage": own.task,
        # Behind the encoder: of each token, as pre-training ends, of the mean over them, or none.
        "norm": "tokens" if "norm" in params["encoder"] else norm,
        "width": task.encoder.width,
        "dtype": np.dtype(task.run.dtype).name,
        "clip": f"{spec.num_frames}x{spec.frame_stride}",
        "resolution": spec.image_size,
        "resampled_to": spec.fps,
        **({"crop": spec.crop} if spec.crop == "fit" else {}),
    }
    return Encoder(own, task, params, protocol)


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


class Network:
    """A task's model with weights; each function is compiled once for each shape of its clips."""

    def __init__(self, task: tasks.ClipTask, params: Params, mask: Any):
        """`mask` is that of a configuration: its counts depend on the grid of a clip."""
        self.task, self.params, self._mask = task, jax.device_put(params), mask
        self.embed = self._compiled(functools.partial(pooled, task, mask))
        self.tokens = self._compiled(lambda p, clips: task.model(p, {}).encoder.whole(clips))
        self.logits = self._compiled(self._logits)
        self._look = self._compiled(self._seen)

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.partial(jax.jit(function), self.params)

    def reconstruct(self, clip: np.ndarray, key: Key[Array, ""]) -> Reconstruction:
        """Draws a mask for a clip `[T, H, W, 3]` and predicts its targets."""
        slots, _, mask, _, predicted = jax.device_get(self._look(clip[None], key))
        return paint(self.task, clip, slots[0], predicted[0], Mask(*(leaf[0] for leaf in mask)))

    def mask(self, clip: np.ndarray, key: Key[Array, ""]) -> sheets.Seen:
        """Draws a mask for a clip `[T, H, W, 3]`."""
        _, kept, mask, scores, _ = jax.device_get(self._look(clip[None], key))
        grid = self.task.tubelet.grid(*kept.shape[1:4])
        return sheets.Seen(kept, grid, mask.visible, mask.target, scores)

    def _seen(self, params: Params, clip: UInt8[Array, "1 T H W 3"], key: Array) -> Any:
        """Slots of the kept frames, and what `gallery.chosen` gives."""
        strategy = strategy_of(self.task, self._mask, clip)
        assert strategy is not None
        model = self.task.model(params, {})
        return model.encoder.slots(clip), *gallery.chosen(model, strategy, clip, key)

    def _logits(self, params: Params, clips: UInt8[Array, "V T H W 3"]) -> Float[Array, "V C"]:
        model, strategy = self.task.model(params, {}), strategy_of(self.task, self._mask, clips)
        # One by one: memory does not grow with the number of views.
        return jax.lax.map(lambda clip: model(clip[None], strategy)[0], clips)


def pooled(
    task: tasks.ClipTask, mask: Any, params: Params, clips: Shaped[Array, "V T H W 3"]
) -> Float[Array, "V D"]:
    """What a classifier's head reads; of an autoencoder the mean over all tokens.

    Clips of floats reach the encoder as they are, not normalised.
    """
    if clips.dtype == jnp.float32:
        clips = clips * tubelets.IMAGENET_STD + tubelets.IMAGENET_MEAN
    model = task.model(params, {})
    if not isinstance(model, Classifier):
        return model.encoder.whole(clips).mean(axis=(1, 2, 3))
    return model.pool(model.features(clips, strategy_of(task, mask, clips)))


def rows(
    embed: Callable[[np.ndarray], Any], clips: Iterable[tuple[Any, np.ndarray]], size: int
) -> Iterator[tuple[Any, np.ndarray]]:
    """Features of clips, each with its key, in their order.

    Batches have `size` clips, the last filled up, so one program is compiled; one batch is made
    while another is computed.
    """
    clips, ahead = iter(clips), collections.deque[tuple[Any, Any]]()
    while some := list(itertools.islice(clips, size)):
        keys, arrays = zip(*some)
        ahead.append((keys, embed(np.stack(arrays + arrays[-1:] * (size - len(some))))))
        if len(ahead) > 1:
            keys, found = ahead.popleft()
            yield from zip(keys, np.asarray(found))
    for keys, found in ahead:
        yield from zip(keys, np.asarray(found))


def strategy_of(task: tasks.ClipTask, mask: Any, clips: Array) -> Strategy | None:
    """The strategy of `config.mask` for the grid of clips, if a classifier has one."""
    grid = kept_grid(task, clips.shape[1:4])
    strategy = parts.strategy_of(mask, grid)
    if strategy and strategy.network and grid != task.grid:
        raise UserError(
            f"the sampler of mask {strategy.name!r} knows only the grid it was trained on, "
            f"{tuple(task.grid)}, and this clip's is {tuple(grid)}; resize it, or load "
            f"the model with another mask, such as mask='tube'"
        )
    return strategy


def kept_grid(task: tasks.ClipTask, size: Sequence[int]) -> Grid:
    """The grid of a clip of `size` frames and pixels, of the frames that selection keeps."""
    grid = task.tubelet.grid(*size)
    return grid if task.layout.frames is None else grid._replace(t=task.grid.t)


def paint(
    task: tasks.ClipTask, clip: np.ndarray, slots: np.ndarray, predicted: np.ndarray, mask: Mask
) -> Reconstruction:
    """Puts the predictions of one mask into their clip, uint8 `[T, H, W, 3]`."""
    tubelet, grid = task.tubelet, kept_grid(task, clip.shape[:3])
    frames = (np.asarray(slots)[:, None] * tubelet.t + np.arange(tubelet.t)).ravel()
    kept, counts = clip[frames], mask.weight > 0
    # Visible targets, which VideoMAE V2 decodes although they do not count, are not shown.
    target, predicted = mask.target[counts], predicted[counts]
    told = np.arange(len(kept))
    if task.targets.frames:
        told = tubelets.one_frame(grid, tubelet)
    pixels, kind = overlays.seen(kept, mask.visible, grid), task.targets.kind
    shown = mask.visible, grid, kind
    pixels[told], error = overlays.predictions(kept[told], predicted, target, *shown)
    visible, aimed = overlays.members(mask.visible, grid), overlays.members(target, grid)
    return Reconstruction(pixels, visible, aimed, error.astype(np.float32), frames)
