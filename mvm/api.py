"""A trained model in three lines: `model = mvm.load(path)`, then embed, classify, reconstruct."""

import concurrent.futures
import functools
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike

from mvm import data, inference, samples, saved, tasks
from mvm.inference import Reconstruction, by
from mvm.tasks import finetune
from mvm.types import UserError
from mvm.weights import hub

__all__ = ["Model", "Reconstruction", "UserError", "load"]

Video = str | os.PathLike[str] | bytes | IO[bytes] | ArrayLike
Label = tuple[str, float]


def load(
    path: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    mask: str | Mapping[str, Any] | None = None,
    positions: str = "interpolated",
    dtype: str | None = None,
) -> "Model":
    """Loads a trained model.

    Args:
        path: a run directory or one of its steps; a file of VideoMAE, VideoMAE V2, EVEREST,
            AdaMAE or MMAction2 (.pth, .pt, .bin, .safetensors); a DeepSpeed folder; a Hugging Face
            folder; a name on its hub. Local, or remote such as `gs://`. A file knows what its
            weights tell: for it, clips have 16 frames, a stride of 4 and 224 px.
        class_names: of the classes in their order, or by number. None takes the run's own or
            Hugging Face's `id2label`, else numbers.
        mask: the mask of `reconstruct`, or the selection of tokens that a classifier looks at: a
            name such as "everest", "" for none, or values such as `{"name": "tube",
            "mask_ratio": 0.75}`. None takes the run's own; for files none for classifiers, and for
            autoencoders "tube" at 0.9, or "adamae" if there is its sampler.
        positions: of a clip that is not of the size of training. "interpolated" resizes the table
            of training, cubic in space and linear in time; "rebuilt" computes the sinusoid anew,
            which agrees with training where only the number of frames differs (docs/api.md).
        dtype: "float32" or "bfloat16", what to compute in; "auto" is bfloat16 on GPU and TPU. None
            is the run's own, "auto" for files.

    Raises:
        UserError: one line that names what is wrong: nothing at `path`, no weights there or
            incomplete ones, an option that the model cannot have.
    """
    return Model(saved.read(path, class_names, mask, positions, dtype))


class Model:
    """A model made by `load`.

    Videos are uint8 `[T, H, W, 3]`, RGB, or files: paths, bytes, files open for reading bytes. An
    array is one clip, taken as it is: any number of frames and any height and width that the
    tubelet divides. Of a file the clip is that of validation: the model's own number of frames
    from the middle, by its stride; the shorter side scaled, the centre cut out. Lists and arrays
    `[B, T, H, W, 3]` are batches. What cannot be answered or read raises a `UserError` that names
    the cure.

    Attributes:
        config: the configuration.
        class_names: in their order; empty without a head.
    """

    def __init__(self, found: saved.Saved):
        self.config, self.class_names = found.config, found.class_names
        self._saved, self._program = found, inference.programs(found)

    def embed(self, video: Video | Sequence[Video], *, tokens: bool = False) -> np.ndarray:
        """Features of one or several videos.

        Of a classifier: what its head reads, the mean over tokens, normalised; over those that it
        selects, if it does. Of an autoencoder or an encoder alone: the mean over the tokens of the
        encoder, which sees all of them.

        Args:
            video: one or several.
            tokens: whether to return all tokens, before the mean and a classifier's norm. With
                frame selection only those of the kept frames.

        Returns:
            float32 `[D]`, or `[t, h, w, D]` with `tokens`; `[B, ...]` for several.
        """
        function = inference.tokens if tokens else inference.embed
        masked = tasks.spec(self.config.task).labels and not tokens
        out, is_one = self._compute(function, video, None, masked)
        return out[0, 0] if is_one else out[:, 0]

    def classify(
        self,
        video: Video | Sequence[Video],
        views: str | tuple[int, int] | None = None,
        *,
        top: int = 5,
    ) -> list[Label] | list[list[Label]]:
        """The likeliest classes of videos.

        Args:
            video: one or several.
            views: segments x crops, "5x3" or `(5, 3)`, averaged as `eval.average` says. The frames
                are then chosen, scaled and cut as in evaluation, also those of arrays, which
                should hold whole videos. None looks at one clip.
            top: how many classes.

        Returns:
            `(name, probability)`, the best first; for several videos a list of such lists.
        """
        if not self.class_names:
            raise UserError(
                "this model has no head and knows no classes; fine-tune it (--config.init_from) "
                "and load that run, or use embed"
            )
        logits, is_one = self._compute(inference.logits, video, _views(views), masked=True)
        views_first = jnp.moveaxis(jnp.asarray(logits), 1, 0)
        found = np.asarray(finetune.merge(views_first, self.config.eval.average))
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
        """
        if "decoder" not in self._saved.params:
            raise UserError(
                "this model has no decoder; load the pre-training run or file that it comes from"
            )
        items, is_one = _items(video)
        out = []
        for item in items:
            clips = self._clips(item, None)
            program = self._program(inference.reconstruct, clips.shape[1:4], True)
            part = jax.device_get(program(clips, jax.random.key(key)))
            out.append(inference.paint(self._saved, clips[0], part))
        return out[0] if is_one else out

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
        with concurrent.futures.ThreadPoolExecutor(data.threads(self.config.data.threads)) as pool:
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
        if (file := _file(video)) is not None:
            return samples.views_of(self.config, file, *(views or (1, 1)))
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
    if not isinstance(video, list | tuple):
        if getattr(video, "ndim", 0) != 5:
            return [video], True
        video = list(video)  # type: ignore[arg-type]
    if not video:
        raise UserError("no video: the list is empty")
    return list(video), False


def _file(video: Any) -> str | bytes | None:
    """Path or bytes of a video; None for an array."""
    if isinstance(video, str | os.PathLike):
        return hub.not_an_address(os.fspath(video))
    if hasattr(video, "read"):
        if video.seekable():
            video.seek(0)
        video = video.read()
        if isinstance(video, str):
            raise UserError("the file of a video is open as text; open it with mode 'rb'")
    return bytes(video) if isinstance(video, bytes | bytearray | memoryview) else None


def _frames(video: Any) -> np.ndarray:
    """A checked array of frames."""
    array = np.asarray(video)
    if array.ndim != 4 or 0 in array.shape:
        given = f"has shape {list(array.shape)}" if array.ndim else f"is a {type(video).__name__}"
        raise UserError(
            f"a video is a file (path, bytes, open) or has the four axes [T, H, W, 3], this one "
            f"{given}; join single frames by np.stack"
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


def _views(views: Any) -> tuple[int, int] | None:
    if views is None:
        return None
    text = by(views) if isinstance(views, list | tuple) else str(views)
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found or len(text) > 8:
        raise UserError(f"views={views!r}; give segments x crops, such as '5x3'")
    return int(found[1]), int(found[2])
