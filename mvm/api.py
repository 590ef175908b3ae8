"""A trained model in three lines: `model = mvm.load(path)`, then embed, classify, reconstruct."""

import concurrent.futures
import functools
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike

from mvm import data, evaluate, inference, samples, saved
from mvm.inference import Reconstruction, by
from mvm.types import UserError

__all__ = ["Model", "Reconstruction", "UserError", "load"]

Video = str | os.PathLike[str] | ArrayLike
Label = tuple[str, float]


def load(
    path: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
    mask: str | Mapping[str, Any] | None = None,
    positions: str = "interpolated",
    dtype: str | None = None,
) -> "Model":
    """Loads a trained model.

    Args:
        path: a run directory or one of its steps; a file of VideoMAE, VideoMAE V2, EVEREST or
            AdaMAE (.pth, .pt, .bin, .safetensors); a DeepSpeed folder; a Hugging Face folder.
            Local, or remote such as `gs://`. A run knows everything. A file knows what its
            weights tell: for it, clips have 16 frames, a stride of 4 and 224 px (Hugging Face: as
            its `config.json` says).
        class_names: of the classes in their order. None takes those of the run's test list or of
            Hugging Face's `id2label`, else numbers.
        mask: the mask of `reconstruct`, or the selection of tokens that a classifier looks at: a
            name such as "everest", "" for none, or values such as `{"name": "tube",
            "mask_ratio": 0.75}`. None takes the run's own; for files that is none for classifiers
            and for autoencoders "tube" at 0.9, or "adamae" if there is its sampler. Another mask
            than that of training has its own defaults, for classifiers EVEREST's 60 %.
        positions: what tokens of a clip are told that is not of the size of training.
            "interpolated" resizes the table of training, cubic in space and linear in time: a
            place keeps its position relative to the frame, a moment to the clip. "rebuilt"
            computes the sinusoid anew. It counts tokens one by one, so that another height or
            width gives every place a position that training had elsewhere; where only the number
            of frames differs, the slots that both clips have agree with training exactly. Learned
            positions are always interpolated.
        dtype: "float32" or "bfloat16", what to compute in; "auto" is bfloat16 on GPU and TPU. None
            is the run's own, "auto" for files.

    Raises:
        UserError: one line that names what is wrong: nothing at `path`, no weights there or
            incomplete ones, an option that the model cannot have.
    """
    return Model(saved.read(path, class_names, mask, positions, dtype))


class Model:
    """A model made by `load`.

    Videos are uint8 `[T, H, W, 3]`, RGB, or paths of files. An array is one clip, taken as it is:
    any number of frames and any height and width that the tubelet divides. Of a file the clip is
    that of validation: the model's own number of frames from the middle, by its stride; the
    shorter side scaled, the centre cut out. Lists and arrays `[B, T, H, W, 3]` are batches.

    Attributes:
        config: the configuration.
        class_names: of a classifier, in their order; empty for an autoencoder.
    """

    def __init__(self, found: saved.Saved):
        self.config, self.class_names = found.config, found.class_names
        self._saved, self._program = found, inference.programs(found)

    def embed(self, video: Video | Sequence[Video], *, tokens: bool = False) -> np.ndarray:
        """Features of videos.

        Of a classifier: what its head reads, the mean over tokens, normalised; over those that it
        selects, if it does. Of an autoencoder: the mean over the tokens of its encoder, which sees
        all of them.

        Args:
            video: one or several.
            tokens: the tokens themselves, before the mean. All of them, whatever the classifier
                would select, and without the norm that comes after a classifier's mean. With
                frame selection only those of the kept frames.

        Returns:
            float32 `[D]`, or `[t, h, w, D]` with `tokens`; `[B, ...]` for several.

        Raises:
            UserError: for a video that cannot be; names it and the cure.
        """
        function = inference.tokens if tokens else inference.embed
        masked = self._is_classifier and not tokens
        out, is_one = self._compute(function, video, None, masked)
        return out[0, 0] if is_one else out[:, 0]

    def classify(
        self, video: Video | Sequence[Video], views: str | None = None, *, top: int = 5
    ) -> list[Label] | list[list[Label]]:
        """The likeliest classes of videos.

        Args:
            video: one or several.
            views: segments x crops, such as "5x3", averaged as `eval.average` says. The frames are
                then chosen, scaled and cut as in evaluation, also those of arrays, which should
                hold whole videos. None looks at one clip.
            top: how many classes.

        Returns:
            `(name, probability)`, the best first; for several videos a list of such lists.

        Raises:
            UserError: for an autoencoder, or a video that cannot be; names the cure.
        """
        if not self._is_classifier:
            raise UserError(
                "this model is pre-trained and knows no classes; fine-tune it (--config.init_from) "
                "and load that run, or use embed"
            )
        logits, is_one = self._compute(inference.logits, video, _views(views), masked=True)
        average = self.config.eval.average
        scores = evaluate.merge(jnp.moveaxis(jnp.asarray(logits), 1, 0), average)
        found = np.asarray(scores if average == "probabilities" else jax.nn.softmax(scores))
        # Equal probabilities go to the lower class, as in evaluation.
        best = np.argsort(-found, axis=1, kind="stable")[:, :top]
        out = [[(self.class_names[c], float(p[c])) for c in row] for row, p in zip(best, found)]
        return out[0] if is_one else out

    def reconstruct(
        self, video: Video | Sequence[Video], key: int = 0
    ) -> Reconstruction | list[Reconstruction]:
        """Hides a part of a clip by the model's mask and predicts it.

        Args:
            video: one or several.
            key: seed of the mask. The same one draws the same for each video of a list.

        Returns:
            What came of it, for several videos a list.

        Raises:
            UserError: for a classifier, or a video that cannot be; names the cure.
        """
        if self._is_classifier:
            raise UserError(
                "this model is a classifier and has no decoder; load the pre-training run or file "
                "that it was fine-tuned from"
            )
        items, is_one = _items(video)
        out = []
        for item in items:
            clips = self._clips(item, None)
            program = self._program(inference.reconstruct, clips.shape[1:4], True)
            part = jax.device_get(program(clips, jax.random.key(key)))
            out.append(inference.paint(self._saved, clips[0], part))
        return out[0] if is_one else out

    @property
    def _is_classifier(self) -> bool:
        return self.config.task != "pretrain"

    def _compute(
        self,
        function: Callable[..., Array],
        video: Video | Sequence[Video],
        views: tuple[int, int] | None,
        masked: bool,
    ) -> tuple[np.ndarray, bool]:
        """Results `[B, V, ...]` for the views of all videos, and whether it was one, alone."""
        items, is_one = _items(video)
        rows = []
        read = functools.partial(self._clips, views=views)
        with concurrent.futures.ThreadPoolExecutor(data.threads(self.config)) as pool:
            for first in range(0, len(items), inference.AT_ONCE):
                clips = pool.map(read, items[first : first + inference.AT_ONCE])
                for shape, same in itertools.groupby(clips, key=np.shape):
                    batch = np.stack(list(same))
                    program = self._program(function, shape[1:4], masked)
                    out = inference.run(program, batch.reshape(-1, *shape[1:]))
                    rows.append(out.reshape(*batch.shape[:2], *out.shape[1:]))
        if len({row.shape[2:] for row in rows}) > 1:
            raise UserError("the videos give unequal numbers of tokens; pass them one by one")
        return np.concatenate(rows), is_one

    def _clips(self, video: Video, views: tuple[int, int] | None) -> np.ndarray:
        """The clips of a video, `[V, T, H, W, 3]`."""
        if isinstance(video, str | os.PathLike):
            return samples.views_of(self.config, os.fspath(video), *(views or (1, 1)))
        frames = _frames(video)
        if views:
            return samples.views_of(self.config, frames, *views)
        self._check(frames.shape[:3])
        return frames[None]

    def _check(self, size: tuple[int, int, int]) -> None:
        tubelet, side = self._saved.task.tubelet, self.config.data.image_size
        least = 2 * tubelet.t  # The score of motion compares slots.
        if self.config.data.num_candidates:
            least = max(least, self.config.data.num_frames)
        if size[0] < least:
            raise UserError(f"a video of {size[0]} frames is too short; give {least} or more")
        if any(n % block for n, block in zip(size, tubelet)):
            raise UserError(
                f"a video of {by(size)} (frames, px, px) does not divide into tubelets of "
                f"{by(tubelet)}; cut or resize it, or give its file, which is scaled to {side} px"
            )


def _items(video: Video | Sequence[Video]) -> tuple[list[Any], bool]:
    """Single videos, and whether it was one, alone."""
    if isinstance(video, str | os.PathLike):
        return [video], True
    if not isinstance(video, list | tuple):
        array = np.asarray(video)
        if array.ndim != 5:
            return [array], True
        video = list(array)
    if not video:
        raise UserError("no video: the list is empty")
    return list(video), False


def _frames(video: Any) -> np.ndarray:
    """A checked array of frames."""
    array = np.asarray(video)
    if array.ndim != 4:
        raise UserError(
            f"a video has the four axes [T, H, W, 3], this one has shape {list(array.shape)}; "
            f"join single frames by np.stack"
        )
    if array.shape[-1] != 3:
        raise UserError(
            f"a video has the axes [T, H, W, 3] with red, green and blue last, this one has shape "
            f"{list(array.shape)}; move or convert its channels"
        )
    if array.dtype != np.uint8:
        raise UserError(
            f"a video is uint8, 0 to 255 as decoded, this one is {array.dtype}; do not normalise "
            f"it, the model does"
        )
    return array


def _views(views: str | None) -> tuple[int, int] | None:
    if views is None:
        return None
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", views)
    if not found:
        raise UserError(f"views={views!r}; give segments x crops, such as '5x3'")
    return int(found[1]), int(found[2])
