"""A trained model in three lines: `model = mvm.load(path)`, then embed, classify, reconstruct."""

import concurrent.futures
import dataclasses
import functools
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import jax
import ml_collections
import numpy as np
import tqdm
from numpy.typing import ArrayLike

from mvm import config as schema
from mvm import data, inference, runs, samples, tasks
from mvm.figures.sheets import Seen
from mvm.inference import Reconstruction
from mvm.models import vit
from mvm.tasks import finetune
from mvm.types import UserError, imported
from mvm.weights import huggingface

__all__ = ["Model", "Reconstruction", "Seen", "UserError", "load"]

log = logging.getLogger(__name__)

Video = str | os.PathLike[str] | bytes | IO[bytes] | ArrayLike
Videos = Video | Sequence[Video]
Label = tuple[str, float]

_DECODED = 8
"""Videos decoded ahead, and windows computed together: bounds memory."""
_SELECTION = {"keep_ratio": 0.6, "mask_ratio": 0.4}
"""EVEREST's selection of tokens in fine-tuning, for a classifier that was trained without."""


def load(
    path: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    mask: str | Mapping[str, Any] | None = None,
    positions: str = "interpolated",
    dtype: Any = None,
) -> "Model":
    """Loads a trained model.

    Args:
        path: a run directory or one of its steps; a file of VideoMAE, VideoMAE V2, EVEREST,
            AdaMAE or MMAction2 (.pth, .pt, .bin, .safetensors); a DeepSpeed folder; a Hugging Face
            folder; a name on its hub. Local, or remote such as `gs://`. A file knows what its
            weights tell: for it, clips have 16 frames, a stride of 4 and 224 px.
        class_names: in their order, or by number. None: the run's own or `id2label`, else numbers.
        mask: of `reconstruct`, or the selection of tokens that a classifier looks at: a name such
            as "everest", "" for none, or `{"name": "tube", "mask_ratio": 0.75}`. None: the run's
            own; of files none for classifiers, else "tube", or "adamae" with its sampler.
        positions: of a clip that is not of the size of training: "interpolated" from the table of
            training, or "rebuilt" for the clip's own grid (docs/api.md).
        dtype: what to compute in, by name or type; "auto" is bfloat16 on GPU and TPU. None: the
            run's own, "auto" for files.
    """
    source = runs.Source(path)
    config = source.config()
    names = _class_names(config, class_names, source.head().classes.names)
    if dtype is not None:
        config.model.dtype = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    if config.model.attention == "cudnn":
        config.model.attention = "auto"  # The accelerator of training may not be here.
    _set_mask(config, mask)
    _set_positions(config, positions)
    schema.validate(config)
    task, params, report = inference.fitted(source, config)
    log.info("%s", report)
    return Model(config, inference.Network(task, params, config.mask), names, source.path)


@dataclasses.dataclass(eq=False, repr=False)
class Model:
    """A model made by `load`; what it is, `print` says.

    Videos are uint8 `[T, H, W, 3]`, RGB, or files: paths, bytes, files open for reading bytes. An
    array is one clip, taken as it is: any number of frames and any height and width that the
    tubelet divides. Of a file the clip is that of validation: the model's own number of frames
    from the middle, by its stride; the shorter side scaled, the centre cut out. Lists and arrays
    `[B, T, H, W, 3]` are several, decoded together and computed one by one. What cannot be
    answered or read raises a `UserError` that names the cure. With `on_error="skip"` the answer to
    a list is `(answers to the rest, {place in the list: why it has none})`.
    """

    config: Any
    network: inference.Network
    class_names: tuple[str, ...]
    """In their order; empty without a head."""
    source: str

    def __repr__(self) -> str:
        task, c, names = self.network.task, self.config, self.class_names
        size, clip = task.encoder, task.clips["val"]
        total = sum(leaf.size for leaf in jax.tree.leaves(self.network.params))
        named = "".join(f"-{name}" for name, one in vit.ENCODERS.items() if size[:3] == one[:3])
        strided = clip.sampling == "center"
        apart = f"{clip.frame_stride} apart" if strided else "spread over the video"
        cut = "whole, padded to" if clip.crop == "fit" else "of"
        return (
            f"mvm.Model of {self.source}\n"
            f"  task {c.task}, mask {c.mask.name or 'none'}: {task.summary()}\n"
            f"  ViT{named}, {size.depth} blocks of width {size.width}, {total / 1e6:.1f} M "
            f"parameters, computed in {task.run.dtype}\n"
            f"  clips of {clip.num_frames} frames, {apart}, {cut} {clip.image_size} px\n"
            f"  {len(names) or 'no'} classes {', '.join(names[:5])}{', ...' * (len(names) > 5)}"
        ).rstrip()

    def embed(self, video: Videos, *, tokens: bool = False, on_error: str = "raise") -> Any:
        """Features of one or several videos, float32 `[D]` or `[B, D]`.

        Of a classifier: what its head reads, the mean over tokens, normalised; over those that it
        selects, if it does. Of an autoencoder or an encoder alone: the mean over the tokens of the
        encoder, which sees all of them. With `tokens` all of them, `[t, h, w, D]`, before the mean
        and a classifier's norm; with frame selection those of the kept frames.
        """
        function = self.network.tokens if tokens else self.network.embed

        def stack(found: list[np.ndarray]) -> np.ndarray:
            if len({one.shape for one in found}) > 1:
                raise UserError("the videos give unequal numbers of tokens; pass them one by one")
            return np.stack(found)

        return self._each(video, lambda clips: np.asarray(function(clips))[0], on_error, stack)

    def features(
        self, video: Videos, window: int | None = None, stride: int = 4, *, on_error: str = "raise"
    ) -> Any:
        """What `embed` gives of the windows over a whole video, as the task `features` writes it.

        It is float32 `[windows, D]`; a list of those for several. Arrays hold all frames of a
        video, of any height and width. `window` counts the frames from the first that the model
        sees to the last, such as its number of frames for consecutive ones (None: as in its
        training), `stride` those between the starts of two windows.
        """
        clip = self.network.task.clips["val"]
        between = clip.frame_stride
        if window is not None:
            between, left = divmod(window - 1, clip.num_frames - 1)
            if left or between < 1:
                raise UserError(f"window={window} is not {clip.num_frames} frames n apart, n >= 1")
        if stride < 1:
            raise UserError(f"stride={stride}; take 1 or more frames")
        spec = clip._replace(frame_stride=between)

        def rows(one: Any) -> np.ndarray:
            source = samples.source_of(one)
            windows = samples.windows_of(source, spec, stride)
            with samples.named(source):
                next(windows)
                made = inference.rows(self.network.embed, enumerate(windows), _DECODED)
                return np.stack([row for _, row in made])

        return self._each(video, rows, on_error, read=lambda one: one)

    def classify(
        self,
        video: Videos,
        views: str | tuple[int, int] | None = None,
        *,
        top: int = 5,
        on_error: str = "raise",
    ) -> Any:
        """The `top` likeliest classes, as `(name, probability)`; lists of those for several videos.

        `views` are segments x crops, "5x3" or `(5, 3)`, averaged as `eval.average` says. The frames
        are then chosen, scaled and cut as in evaluation, also those of arrays, which should hold
        whole videos. None looks at one clip.
        """
        if top < 1:
            raise UserError(f"top={top}; ask for 1 class or more")
        if not self.class_names or not isinstance(self.network.task, finetune.Finetune):
            raise UserError(
                "this model has no head for whole clips; fine-tune it (--config.init_from) "
                "and load that run, or use embed"
            )

        def answer(clips: np.ndarray) -> list[Label]:
            logits = self.network.logits(clips)
            p = np.asarray(finetune.merge(logits[:, None], self.config.eval.average))[0]
            # Equal probabilities go to the lower class, as in evaluation.
            best = np.argsort(-p, kind="stable")[:top]
            return [(self.class_names[c], float(p[c])) for c in best]

        read = functools.partial(self._clips, views=_views(views))
        return self._each(video, answer, on_error, read=read)

    def mask(self, video: Videos, key: int = 0, *, on_error: str = "raise") -> Any:
        """A `Seen`, which draws itself: what the mask chooses of a clip; as of `reconstruct`."""
        if not self.config.mask.name:
            raise UserError("this model looks at all tokens; load it with a mask, mask='everest'")
        seed = jax.random.key(key)
        return self._each(video, lambda clips: self.network.mask(clips[0], seed), on_error)

    def reconstruct(self, video: Videos, key: int = 0, *, on_error: str = "raise") -> Any:
        """Hides a part of a clip by the model's mask and predicts it.

        `key` is the seed of the mask; it draws the same for each video of a list.
        """
        if "decoder" not in self.network.params:
            raise UserError(
                "this model has no decoder; load the pre-training run or file that it comes from"
            )
        seed = jax.random.key(key)
        return self._each(video, lambda clips: self.network.reconstruct(clips[0], seed), on_error)

    def _each(
        self,
        video: Any,
        answer: Callable[[Any], Any],
        on_error: str,
        pack: Callable[[list[Any]], Any] = list,
        read: Callable[[Any], Any] | None = None,
    ) -> Any:
        """The answer for what `read` makes of a video, or those for several, packed."""
        several = isinstance(video, list | tuple) or getattr(video, "ndim", 0) == 5
        skips = several and on_error == "skip"
        videos = list(video) if several else [video]
        if not videos:
            raise UserError("no video: the list is empty")
        if on_error not in ("raise", "skip"):
            raise UserError(f"on_error={on_error!r} is unknown; choose raise or skip")
        found: dict[int, Any] = {}
        failed: dict[int, str] = {}
        with (
            concurrent.futures.ThreadPoolExecutor(data.threads(self.config.data.threads)) as pool,
            tqdm.tqdm(total=len(videos), unit="video", delay=2, disable=not several) as bar,
        ):
            for first in range(0, len(videos), _DECODED):
                some = [pool.submit(read or self._clips, v) for v in videos[first:][:_DECODED]]
                for number, clips in enumerate(some, first):
                    try:
                        found[number] = answer(clips.result())
                    except UserError as error:
                        if not skips:
                            raise
                        failed[number] = str(error)
                    bar.update()
        if not found:
            raise UserError(f"none of {len(videos)} videos can be read; the first: {failed[0]}")
        answers = pack(list(found.values())) if several else found[0]
        return (answers, failed) if skips else answers

    def _clips(self, video: Any, views: tuple[int, int] | None = None) -> np.ndarray:
        """The clips of a video, `[V, T, H, W, 3]`."""
        task, source = self.network.task, samples.source_of(video)
        if views or not isinstance(source, np.ndarray):
            with samples.named(source):
                return samples.views_of(task.clips["val"], source, *(views or (1, 1)))
        least = 2 * task.tubelet.t  # The score of motion compares slots.
        if task.layout.frames is not None:
            least = max(least, self.config.data.num_frames)
        if len(source) < least:
            raise UserError(f"a video of {len(source)} frames is too short: {least} are needed")
        task.tubelet.grid(*source.shape[:3])  # Raises UserError where it does not divide.
        return source[None]


def _set_mask(config: Any, mask: Any) -> None:
    """Changes the mask; one that is not that of training starts from its own defaults."""
    if mask is None:
        return
    if not isinstance(mask, str | Mapping):
        raise UserError(f"mask={mask!r:.99}; give a name or a dict such as {{'name': 'tube'}}")
    changes = {"name": mask} if isinstance(mask, str) else dict(mask)
    imported(str(changes.get("name", "")))  # Not what the file names.
    name = changes.pop("name", config.mask.name)
    if not name and not tasks.spec(config.task).labels:
        raise UserError("mask='' hides nothing; give an autoencoder a mask such as 'tube'")
    values = _SELECTION if tasks.spec(config.task).labels else {}
    values = config.mask.to_dict() if name == config.mask.name else values
    config.mask = ml_collections.ConfigDict({**values, **changes, "name": name})
    tasks.check(config, [f"mask.{key}" for key in changes])


def _set_positions(config: Any, positions: str) -> None:
    """Ties the positions to the grid of training, or lets each clip have its own table."""
    model = config.model
    if positions == "rebuilt":
        if model.positions == "separable" or any(model.position_grid):
            raise UserError(
                "positions='rebuilt' is for a table built for the clip's own grid, and this "
                "model's are of a certain grid; leave positions out"
            )
    elif positions != "interpolated":
        raise UserError(f"positions={positions!r} is unknown; choose interpolated or rebuilt")
    elif not any(model.position_grid):
        model.position_grid = runs.clip_grid(config)


def _class_names(config: Any, given: Any, own: Sequence[str]) -> tuple[str, ...]:
    count = config.data.num_classes
    if not count or not tasks.spec(config.task).labels:
        return ()
    if given is None:
        return tuple(own if len(own) == count else map(str, range(count)))
    names = huggingface.in_order(given)
    if len(names) != count:
        raise UserError(f"class_names has {len(names)} names, but the model {count} classes")
    return names


def _views(views: Any) -> tuple[int, int] | None:
    found = re.fullmatch(r"([1-9]\d{0,3})\D+([1-9]\d?)", str(views).strip("()[]"))
    if views is not None and not found:
        raise UserError(f"views={views!r}; give segments x crops, such as '5x3'; crops below 100")
    return (int(found[1]), int(found[2])) if found else None
