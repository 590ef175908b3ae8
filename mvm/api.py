"""A trained model in three lines: `model = mvm.load(path)`, then embed, classify, reconstruct."""

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8
from numpy.typing import ArrayLike

from mvm import config as keys
from mvm import figures, runs, samples, tasks
from mvm.models import tubelets
from mvm.models.classifier import Classifier
from mvm.runtime import checkpoint
from mvm.tasks import finetune
from mvm.types import Grid, Mask, Params, Strategy, UserError

__all__ = ["Model", "Reconstruction", "UserError", "load"]

log = logging.getLogger(__name__)

Video = str | os.PathLike[str] | bytes | ArrayLike
Label = tuple[str, float]


def load(path: str | os.PathLike[str], changes: Mapping[str, Any] = {}) -> "Model":
    """Loads a trained model.

    Args:
        path: a run directory or one of its steps; a file of VideoMAE, VideoMAE V2, EVEREST,
            AdaMAE or MMAction2 (.pth, .pt, .bin, .safetensors); a DeepSpeed folder; a Hugging Face
            folder; a name on its hub. Local, or remote such as `gs://`. A file knows what its
            weights tell: for it, clips have 16 frames, a stride of 4 and 224 px.
        changes: of its configuration, by key of `mvm/config.py`, such as {"mask.name": "everest"},
            {"model.dtype": "float32"} or, of a file that was trained so, {"data.image_size": 320}.
            Positions are interpolated from `model.position_grid` or, where it is zeros, from the
            grid of a clip of the configuration.

    Raises:
        UserError: one line that names what is wrong: nothing at `path`, no weights there or
            incomplete ones, a change that the model cannot have.
    """
    source = runs.check_exists(path)
    inside = source.where.iterdir() if source.where.is_dir() and not source.is_run else ()
    if nested := sorted(folder.name for folder in inside if checkpoint.steps_in(folder)):
        raise UserError(f"{path} holds {len(nested)} runs; load one: {', '.join(nested)}")
    if unknown := sorted(set(changes) - set(keys.KEYS)):
        raise UserError(f"{unknown[0]} is no key of a configuration")
    config = source.config(changes)
    if config.model.attention in ("cudnn", "splash"):
        config.model.attention = "auto"  # The accelerator of training may not be here.
    if not any(config.model.position_grid):
        config.model.position_grid = runs.clip_grid(config)
    task, params, report = fitted(source, config)
    log.info("%s", report)
    names = source.classes()[0]
    count = config.data.num_classes if task.spec.labels else 0
    return Model(config, task, params, names if len(names) == count else map(str, range(count)))


def fitted(source: runs.Source, config: Any) -> tuple[tasks.Task, Params, str]:
    """A model without the parts that its weights lack as a whole, so that an encoder alone embeds.

    Returns:
        The model, its parameters as NumPy arrays, and a report of what was read.

    Raises:
        UserError: if a part is incomplete.
    """
    whole = config.copy_and_resolve_references()
    whole.data.num_classes = config.data.num_classes or 2  # Of a head that is taken off again.
    task = tasks.build(whole)
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
    task = dataclasses.replace(task, lacks=tuple(lacks))
    if missing := runs.missing(task.abstract, params):
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UserError(
            f"{source.path} lacks {missing[0]}{others} of a model with task={config.task}, "
            f"data.num_classes={config.data.num_classes}, mask.name={config.mask.name!r}; load "
            f"complete weights, or another mask"
        )
    return task, params, report


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


class Model:
    """A model made by `load`.

    Videos are uint8 `[T, H, W, 3]`, RGB, or files: paths or bytes. An array is one clip, taken as
    it is: any number of frames, any height and width that the tubelet divides. Of a file the clip
    is that of validation: the model's own number of frames from the middle, by its stride; the
    shorter side scaled, the centre cut out. Lists and arrays `[B, T, H, W, 3]` are several,
    computed one by one. What cannot be answered or read raises a `UserError` with the cure.

    Attributes:
        config: the configuration.
        class_names: in their order, the run's own or Hugging Face's `id2label`, else numbers; may
            be set. Empty without a head.
    """

    def __init__(self, config: Any, task: tasks.Task, params: Params, class_names: Any):
        self.config, self.task, self.class_names = config, task, tuple(class_names)
        self._params = jax.device_put(params)
        # Compiled once for each shape of a clip.
        self._embedded, self._all_tokens = jax.jit(self._embed), jax.jit(self._tokens)
        self._scored, self._predicted = jax.jit(self._logits), jax.jit(self._predict)

    def __repr__(self) -> str:
        size = sum(leaf.size for leaf in jax.tree.leaves(self._params))
        return (
            f"<mvm.Model {self.config.task}: {self.task.encoder.depth} blocks of width "
            f"{self.task.encoder.width}, {size / 1e6:.1f} M parameters, "
            f"{len(self.class_names) or 'no'} classes, mask {self.config.mask.name!r}>"
        )

    def embed(self, video: Video | Sequence[Video], *, tokens: bool = False) -> np.ndarray:
        """Features of one or several videos.

        Of a classifier: what its head reads, the mean over tokens, normalised; over those that it
        selects, if it does. Of an autoencoder or an encoder alone: the mean over the tokens of the
        encoder, which sees all of them. With `tokens` all tokens (of the kept frames), before the
        mean and a classifier's norm.

        Returns:
            float32 `[D]`, or `[t, h, w, D]` with `tokens`; `[B, ...]` for several.
        """
        function = self._all_tokens if tokens else self._embedded
        found = _each(video, lambda one: np.asarray(function(self._params, self._clips(one)))[0])
        return np.stack(found) if isinstance(found, list) else found

    def classify(
        self, video: Video | Sequence[Video], views: str = "", *, top: int = 5
    ) -> list[Label] | list[list[Label]]:
        """The likeliest classes of videos.

        Args:
            video: one or several.
            views: segments x crops such as "5x3", averaged as `eval.average` says. The frames are
                then chosen, scaled and cut as in evaluation, also those of arrays, which should
                hold whole videos. "" looks at one clip.
            top: how many classes.

        Returns:
            `(name, probability)`, the best first; for several videos a list of such lists.
        """
        if not self.class_names:
            raise UserError(
                "this model has no head and knows no classes; fine-tune it (--config.init_from) "
                "and load that run, or use embed"
            )

        def answer(one: Video) -> list[Label]:
            logits = self._scored(self._params, self._clips(one, views))
            p = np.asarray(finetune.merge(logits[:, None], self.config.eval.average))[0]
            # Equal probabilities go to the lower class, as in evaluation.
            best = np.argsort(-p, kind="stable")[:top]
            return [(self.class_names[c], float(p[c])) for c in best]

        return _each(video, answer)

    def reconstruct(
        self, video: Video | Sequence[Video], key: int = 0
    ) -> Reconstruction | list[Reconstruction]:
        """Hides a part of a clip by the model's mask and predicts it.

        `key` is the seed of the mask, which it draws alike for each video of a list.
        """
        if "decoder" not in self._params:
            raise UserError(
                "this model has no decoder; load the pre-training run or file that it comes from"
            )

        def answer(one: Video) -> Reconstruction:
            clip = self._clips(one)
            found = self._predicted(self._params, clip, jax.random.key(key))
            return paint(self.task, clip[0], *jax.device_get(found))

        return _each(video, answer)

    def _clips(self, video: Video, views: str = "") -> np.ndarray:
        """The clips of a video, `[V, T, H, W, 3]`."""
        spec = self.task.clips["val"]
        segments, _, crops = (views or "1x1").partition("x")
        if not (segments.isdecimal() and crops.isdecimal() and int(segments) * int(crops)):
            raise UserError(f"views={views!r}; give segments x crops, such as '5x3'")
        if isinstance(video, str | os.PathLike | bytes):
            file = video if isinstance(video, bytes) else os.fspath(video)
            return samples.views_of(spec, file, int(segments), int(crops))
        frames = np.asarray(video)
        if frames.ndim != 4 or (*frames.shape[3:], frames.dtype) != (3, "u1"):
            raise UserError(
                f"a video is a file (path or bytes) or uint8 [T, H, W, 3], RGB as decoded; this "
                f"one is {frames.dtype}{list(frames.shape)}"
            )
        if views:
            return samples.views_of(spec, frames, int(segments), int(crops))
        self.task.tubelet.grid(*frames.shape[:3])  # Raises UserError where it does not divide.
        return frames[None]

    # --- What is compiled: parameters and clips in, arrays out

    def _strategy(self, clips: Array) -> Strategy | None:
        grid = kept_grid(self.task, clips.shape[1:4])
        strategy = tasks.strategy_of(self.config.mask, grid)
        if strategy and strategy.network and grid != self.task.grid:
            raise UserError(
                f"the sampler of mask {strategy.name!r} knows only the grid it was trained on, "
                f"{tuple(self.task.grid)}, and this clip's is {tuple(grid)}; resize it, or load "
                f'the model with another mask, such as {{"mask.name": "tube"}}'
            )
        return strategy

    def _embed(self, params: Params, clips: UInt8[Array, "V T H W 3"]) -> Float[Array, "V D"]:
        model = self.task.model(params, {})
        if not isinstance(model, Classifier):
            return self._tokens(params, clips).mean(axis=(1, 2, 3))
        found = model.features(clips, self._strategy(clips))
        return found.mean(axis=1) if model.fc_norm is None else model.pool(found)

    def _tokens(
        self, params: Params, clips: UInt8[Array, "V T H W 3"]
    ) -> Float[Array, "V t h w D"]:
        model = self.task.model(params, {})
        pixels, grid = tubelets.split(clips, model.tubelet)
        pixels, grid = model.encoder.keep_frames(None, pixels, grid)
        out = model.encoder(pixels, jnp.arange(grid.n), grid)
        return out.astype(jnp.float32).reshape(len(clips), *grid, -1)

    def _logits(self, params: Params, clips: UInt8[Array, "V T H W 3"]) -> Float[Array, "V C"]:
        model, strategy = self.task.model(params, {}), self._strategy(clips)
        # One by one: memory does not grow with the number of views.
        return jax.lax.map(lambda clip: model(clip[None], strategy)[0], clips)

    def _predict(
        self, params: Params, clip: UInt8[Array, "1 T H W 3"], key: Key[Array, ""]
    ) -> tuple[Array, Array, Mask]:
        """Slots of the kept frames `[t]`, predictions `[M, Q]`, and the mask."""
        model = self.task.model(params, {})
        pixels, grid = tubelets.split(clip, model.tubelet)
        slots = jnp.arange(grid.t)[None]
        if model.layout.frames is not None:
            slots = model.layout.frames(None, model.encoder.tokens(pixels), grid)
        out = model(key, clip, self._strategy(clip), train=False)
        return slots[0], out.predicted[0], jax.tree.map(lambda leaf: leaf[0], out.mask)


def kept_grid(task: tasks.Task, size: Sequence[int]) -> Grid:
    """The grid of a clip of `size` frames and pixels, of the frames that selection keeps."""
    grid = task.tubelet.grid(*size)
    return grid if task.layout.frames is None else grid._replace(t=task.grid.t)


def paint(
    task: tasks.Task, clip: np.ndarray, slots: np.ndarray, predicted: np.ndarray, mask: Mask
) -> Reconstruction:
    """Puts the predictions of one mask into their clip, uint8 `[T, H, W, 3]`."""
    tubelet, grid = task.tubelet, kept_grid(task, clip.shape[:3])
    frames = (np.asarray(slots)[:, None] * tubelet.t + np.arange(tubelet.t)).ravel()
    kept, counts = clip[frames], mask.weight > 0
    # Visible targets, which VideoMAE V2 decodes although they do not count, are not shown.
    target, predicted = mask.target[counts], predicted[counts]
    told = np.arange(len(kept))
    if task.targets.frames:
        told = np.arange(grid.t) * tubelet.t + tubelets.one_frame(grid, tubelet)
    pixels, kind = figures.seen(kept, mask.visible, grid), task.targets.kind
    pixels[told] = figures.paste(kept[told], predicted, target, mask.visible, grid, kind)
    error = figures.token_errors(kept[told], predicted, target, grid, kind)
    return Reconstruction(
        pixels,
        figures.members(mask.visible, grid).reshape(grid),
        figures.members(target, grid).reshape(grid),
        error.astype(np.float32).reshape(grid),
        frames,
    )


def _each(video: Any, answer: Callable[[Any], Any]) -> Any:
    """The answer for a video, or a list of those for several."""
    if not isinstance(video, list | tuple) and getattr(video, "ndim", 0) != 5:
        return answer(video)
    if not len(video):
        raise UserError("no video: the list is empty")
    return [answer(one) for one in video]
