"""The released VideoMAE loader, made again from its description, to compare ours with.

decord, PIL and a torch DataLoader whose workers hand over normalised float32 clips, as in the code
of VideoMAE (2203.12602) and EVEREST. Draws and frame numbers are those of our own pipeline, so that
both sides do the same work on the same frames. torch, decord and PIL are imported where used.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from input_pipeline.elements import ClipSpec
from input_pipeline.sources.records import DataError, Record
from input_pipeline.transforms import clips
from input_pipeline.transforms import crops as spatial
from input_pipeline.transforms import randaugment as augment

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FILL = (128, 128, 128)
_LENGTH = 1 << 16  # Samples an epoch: so many that workers are never started again.

Array = np.ndarray
Tensor = Any  # torch.Tensor, which is not always there to be named.
Image = Any  # PIL.Image.Image


def missing() -> list[str]:
    """Packages of this loader that are not installed, by the names pip knows."""
    names = {"torch": "torch", "decord": "decord", "PIL": "pillow"}
    return [pip for name, pip in names.items() if importlib.util.find_spec(name) is None]


def batches(
    records: Sequence[Record], spec: ClipSpec, mode: str, batch_size: int, workers: int
) -> Iterator[Tensor]:
    """Batches of the DataLoader: float32 `[B, C, T, H, W]`, one clip or test view per row.

    Args:
        records: the videos, all of them files.
        spec: as for our pipeline.
        mode: "pretrain", "finetune" or "views" (then videos follow in order, S * C views of each).
        batch_size: B, clips or views.
        workers: processes that decode.

    Raises:
        DataError: the first record is no file.
    """
    import torch

    if not isinstance(records[0].source, str):
        raise DataError(f"the released loader reads files only, but {records[0].id} is none")

    samples = Samples(records, spec, mode)
    shuffle = mode != "views"
    loader = torch.utils.data.DataLoader(
        samples,
        batch_size,
        shuffle=shuffle,
        num_workers=workers,
        drop_last=True,
        multiprocessing_context="fork",  # As where the released code runs.
    )
    for video, _ in loader:
        yield video


class Samples:
    """A map-style data set: sample number -> (clip, label); it begins again after the last record.

    Args:
        records: the videos.
        spec: what becomes of each.
        mode: "pretrain", "finetune" or "views".
    """

    def __init__(self, records: Sequence[Record], spec: ClipSpec, mode: str) -> None:
        self._records = records
        self._spec = spec
        self._mode = mode

    def __len__(self) -> int:
        return _LENGTH

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        spec = self._spec
        if self._mode == "views":
            video, view = divmod(index, spec.num_segments * spec.num_crops)
            record = self._records[video % len(self._records)]
            return view_sample(record, spec, *divmod(view, spec.num_crops)), record.label
        record = self._records[index % len(self._records)]
        make = pretrain_sample if self._mode == "pretrain" else finetune_sample
        return make(record, spec, np.random.default_rng(index)), record.label


def pretrain_sample(record: Record, spec: ClipSpec, rng: np.random.Generator) -> Tensor:
    """Multi-scale crop and bilinear resize of each frame in PIL; float32 `[C, T, H, W]`.

    Draws are made in the order of `loader.train_batches`.
    """
    import PIL.Image
    import torch

    frames = _train_frames(record, spec, rng)
    y, x, h, w = spatial.CROPS[spec.crop](rng, frames.shape[1], frames.shape[2], spec.image_size)
    size = (spec.image_size, spec.image_size)
    images = [PIL.Image.fromarray(frame).crop((x, y, x + w, y + h)) for frame in frames]
    images = [image.resize(size, PIL.Image.Resampling.BILINEAR) for image in images]
    stacked = np.concatenate([np.asarray(image) for image in images], axis=2)
    clip = torch.from_numpy(stacked).permute(2, 0, 1).contiguous().float().div(255)
    clip = clip.view(len(frames), 3, *size)
    clip.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(STD).view(3, 1, 1))
    return clip.transpose(0, 1)


def finetune_sample(record: Record, spec: ClipSpec, rng: np.random.Generator) -> Tensor:
    """RandAugment on whole PIL frames, then float32, then crop, flip, erasing; `[C, T, H, W]`.

    Draws are made in the order of `loader.train_batches`.
    """
    import PIL.Image
    import torch

    frames = _train_frames(record, spec, rng)
    images: list[Image] = [PIL.Image.fromarray(frame) for frame in frames]
    policy = augment.parse_rand_augment(spec.rand_augment)
    for layer in augment.draw_layers(rng, policy):
        images = [_OPERATIONS[layer.operation](image, layer.argument) for image in images]
    planes = [torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous() for image in images]
    video = torch.stack([plane.float().div(255) for plane in planes]).permute(0, 2, 3, 1)
    video = (video - torch.tensor(MEAN)) / torch.tensor(STD)
    clip = video.permute(3, 0, 1, 2)
    y, x, h, w = spatial.CROPS[spec.crop](rng, frames.shape[1], frames.shape[2], spec.image_size)
    size = (spec.image_size, spec.image_size)
    part = clip[:, :, y : y + h, x : x + w]
    clip = torch.nn.functional.interpolate(part, size=size, mode="bilinear", align_corners=False)
    if spec.flip and rng.random() < 0.5:
        clip = clip.flip(-1)
    y, x, h, w = augment.erasing_box(rng, spec.image_size, spec.erasing)
    clip[:, :, y : y + h, x : x + w] = torch.randn(*clip.shape[:2], h, w)
    return clip


def view_sample(record: Record, spec: ClipSpec, segment: int, crop: int) -> Tensor:
    """One test view, from a decode of every `frame_stride`-th frame of the whole video.

    All those frames are scaled, although a view keeps T of them; float32 `[C, T, H, W]`.
    """
    import torch

    reader = _reader(record)
    sampled = np.arange(0, len(reader), record.stride or spec.frame_stride)
    sampled = np.append(sampled, [sampled[-1]] * max(spec.num_frames - len(sampled), 0))
    frames = reader.get_batch(sampled.tolist()).asnumpy()
    h, w = spatial.short_side(frames.shape[1], frames.shape[2], spec.image_size)
    small = np.stack([cv2.resize(f, (w, h), interpolation=cv2.INTER_LINEAR) for f in frames])
    slack, steps = len(sampled) - spec.num_frames, max(spec.num_segments - 1, 1)
    start = int(segment * (slack / steps)) if spec.num_segments > 1 else slack // 2
    y, x = spatial.crop_offsets(h, w, spec.image_size, spec.num_crops)[crop]
    part = slice(y, y + spec.image_size), slice(x, x + spec.image_size)
    view = torch.from_numpy(small[start : start + spec.num_frames, *part])
    clip = view.permute(3, 0, 1, 2).contiguous().float().div(255)
    return clip.sub_(torch.tensor(MEAN).view(3, 1, 1, 1)).div_(torch.tensor(STD).view(3, 1, 1, 1))


def _reader(record: Record) -> Any:
    import decord

    return decord.VideoReader(record.path, num_threads=1, ctx=decord.cpu(0))


def _train_frames(record: Record, spec: ClipSpec, rng: np.random.Generator) -> Array:
    """uint8 `[T, H, W, 3]` by the rule of `spec`."""
    reader = _reader(record)
    stride = record.stride or spec.frame_stride
    indices = clips.SAMPLING[spec.sampling](rng, len(reader), spec.num_frames, stride)
    return reader.get_batch(indices.tolist()).asnumpy()


def _warp(image: Image, matrix: tuple[float, ...]) -> Image:
    import PIL.Image

    how, cubic = PIL.Image.Transform.AFFINE, PIL.Image.Resampling.BICUBIC
    return image.transform(image.size, how, matrix, resample=cubic, fillcolor=_FILL)


def _rotate(image: Image, degrees: float) -> Image:
    import PIL.Image

    return image.rotate(degrees, resample=PIL.Image.Resampling.BICUBIC, fillcolor=_FILL)


def _enhance(name: str) -> Callable[[Image, float], Image]:
    def apply(image: Image, factor: float) -> Image:
        import PIL.ImageEnhance

        return getattr(PIL.ImageEnhance, name)(image).enhance(factor)

    return apply


def _point(name: str) -> Callable[[Image, float], Image]:
    """The operations of PIL.ImageOps, those without an argument and those with a whole number."""

    def apply(image: Image, argument: float) -> Image:
        import PIL.ImageOps

        operation = getattr(PIL.ImageOps, name)
        return (
            operation(image, int(argument))
            if name in ("posterize", "solarize")
            else operation(image)
        )

    return apply


def _solarize_add(image: Image, add: float) -> Image:
    table = [min(255, level + int(add)) if level < 128 else level for level in range(256)]
    return image.point(table * 3)


# One PIL operation per frame, by RandAugment's names; arguments as `augment.argument` gives them.
_OPERATIONS: dict[str, Callable[[Image, float], Image]] = {
    "AutoContrast": _point("autocontrast"),
    "Equalize": _point("equalize"),
    "Invert": _point("invert"),
    "Posterize": _point("posterize"),
    "Solarize": _point("solarize"),
    "SolarizeAdd": _solarize_add,
    "Color": _enhance("Color"),
    "Contrast": _enhance("Contrast"),
    "Brightness": _enhance("Brightness"),
    "Sharpness": _enhance("Sharpness"),
    "Rotate": _rotate,
    "ShearX": lambda image, shear: _warp(image, (1, shear, 0, 0, 1, 0)),
    "ShearY": lambda image, shear: _warp(image, (1, 0, 0, shear, 1, 0)),
    "TranslateX": lambda image, share: _warp(image, (1, 0, share * image.width, 0, 1, 0)),
    "TranslateY": lambda image, share: _warp(image, (1, 0, 0, 0, 1, share * image.height)),
}
