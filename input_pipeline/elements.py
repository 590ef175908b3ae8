"""What becomes of one video: which frames -> decode -> crop, augment, resize -> one element."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from input_pipeline import worker
from input_pipeline.cache import FrameCache
from input_pipeline.sources.records import DataError, Record
from input_pipeline.transforms import clips
from input_pipeline.transforms import crops as spatial
from input_pipeline.transforms import randaugment as augment
from input_pipeline.video import decode
from input_pipeline.video.base import Readable, VideoError

ATTEMPTS = 16
NOT_FRAMES = (VideoError, cv2.error)
"""What a video that gives no usable frames raises."""
Batch = dict[str, Any]
Source = Sequence[Record]


class ClipSpec(NamedTuple):
    """What becomes of one video.

    Attributes:
        num_frames: T, frames decoded and given.
        frame_stride: frames between samples, where `sampling` has one and the record none.
        image_size: side of a clip, pixels.
        sampling: which frames. In training a rule of `clips.SAMPLING`: "pretrain", "finetune"
            (released rules), "strided" (true steps, random start), "segments", "segments_v2" (a
            random one of each of T segments), "spread" (jittered, over the whole video), and
            "center", "segments_center", "spread_center", which draw nothing. In evaluation the
            rule of `clips.VIEWS` that goes with it.
        crop: which pixels in training: "multi_scale", "random_resized" or "center".
        flip: mirror half of the training clips.
        rand_augment: policy such as "rand-m7-n4-mstd0.5-inc1"; empty for none.
        erasing: probability of a random-erasing box; adds "erase" int32 `[4]` to each element.
        num_segments: S, temporal positions in evaluation.
        num_crops: C, spatial windows in evaluation.
        min_frames: videos with fewer frames are unusable.
        fps: rate in frames per second that a video is brought to before frames are chosen, by the
            times its frames are shown at; 0 takes its own frames, whatever their rate.
        timeout: seconds of processor time to open a video, and again to read it.
        repeats: R, clips made in training of the frames decoded once, each with its own crop,
            flip, RandAugment and erasing (repeated augmentation, 1901.09335).
    """

    num_frames: int = 16
    frame_stride: int = 4
    image_size: int = 224
    sampling: str = "pretrain"
    crop: str = "multi_scale"
    flip: bool = False
    rand_augment: str = ""
    erasing: float = 0.0
    num_segments: int = 1
    num_crops: int = 1
    min_frames: int = 8
    fps: float = 0.0
    timeout: float = decode.TIMEOUT
    repeats: int = 1


def indices(video: Readable, fps: float, rule: Callable[[int], np.ndarray]) -> np.ndarray:
    """Frame numbers that a rule of `clips` takes of a video, brought to `fps` before if not 0.

    Raises:
        VideoError: `fps` is set, but the video has no times.
    """
    if not fps:
        return rule(video.header.num_frames)
    shown = video.at_rate(fps)
    return shown[rule(len(shown))]


def train_element(
    records: Source,
    spec: ClipSpec,
    cache: FrameCache | None,
    position: int,
    rng: np.random.Generator,
    banned: Mapping[int, str] | None = None,
    out: np.ndarray | None = None,
) -> Batch:
    """One training element; every unreadable record met on the way is a line of "failures".

    It never raises for a bad record: the batches end for ever after an exception.

    Args:
        records: the videos.
        spec: what becomes of each.
        cache: of decoded videos.
        position: of the record wanted.
        rng: of all its draws, the choice of another record included.
        banned: positions of records that are not to be opened, and why.
        out: uint8 `[R, T, H, W, 3]` to write into.

    Returns:
        "video" uint8 `[R, T, H, W, 3]`, "erase" int32 `[R, 4]` if `spec.erasing`, "label", "index"
        (position of the record taken), "skipped" (records that failed) and "failures" (text).
    """
    size = spec.image_size
    shape = (spec.repeats, spec.num_frames, size, size, 3)
    video = np.empty(shape, np.uint8) if out is None else out
    erase = np.zeros((spec.repeats, 4), np.int32)
    failed: list[str] = []
    label = -1
    while len(failed) < ATTEMPTS:
        worker.note(position)
        try:
            if banned and position in banned:
                raise VideoError(banned[position])
            record = records[position]
            label = record.label
            _fill(video, erase, record, spec, cache, rng)
            break
        except NOT_FRAMES as error:
            failed.append(f"{position}\t{one_line(error)}")
            position = int(rng.integers(len(records)))
    else:
        video[:] = 0
    element: Batch = {
        "video": video,
        "label": np.array(label, np.int32),
        "index": np.array(position, np.int32),
        "skipped": np.array(len(failed), np.int32),
        "failures": np.array("\n".join(failed)),
    }
    if spec.erasing > 0:
        element["erase"] = erase
    return element


def _fill(
    video: np.ndarray,
    erase: np.ndarray,
    record: Record,
    spec: ClipSpec,
    cache: FrameCache | None,
    rng: np.random.Generator,
) -> None:
    """Decodes once and makes R clips of it, into `video` `[R, T, H, W, 3]` and `erase` `[R, 4]`."""
    stride = record.stride or spec.frame_stride

    def rule(n: int) -> np.ndarray:
        return clips.SAMPLING[spec.sampling](rng, n, spec.num_frames, stride)

    kept = cache.video(record.id, record.source, spec.min_frames, spec.timeout) if cache else None
    if kept is None:
        with decode.open_video(record.source, spec.min_frames, spec.timeout) as opened:
            frames = opened.read(indices(opened, spec.fps, rule))
    else:
        frames = kept.read(indices(kept, spec.fps, rule))
    erase[0] = _augmented(video[0], frames, spec, rng)
    if spec.repeats > 1:
        # Each from its own address, so that clip r is the same whatever R is.
        base = int(rng.integers(1 << 63))
        for repeat in range(1, spec.repeats):
            own = np.random.default_rng((base, repeat))
            erase[repeat] = _augmented(video[repeat], frames, spec, own)


def _augmented(
    out: np.ndarray, frames: Sequence[np.ndarray], spec: ClipSpec, rng: np.random.Generator
) -> np.ndarray:
    """Makes one clip of the decoded frames, into `out` `[T, H, W, 3]`; returns its erasing box."""
    layers = []
    if spec.rand_augment:
        layers = augment.draw_layers(rng, augment.parse_rand_augment(spec.rand_augment))
    h, w = frames[0].shape[:2]
    box = spatial.CROPS[spec.crop](rng, h, w, spec.image_size)
    flip = spec.flip and rng.random() < 0.5
    augment.augmented_clip(out, frames, layers, box, spec.image_size, flip)
    if spec.erasing <= 0:
        return np.zeros(4, np.int32)
    return augment.erasing_box(rng, spec.image_size, spec.erasing)


def views(records: Source, spec: ClipSpec, position: int, out: np.ndarray | None = None) -> Batch:
    """All test views of one video from one decode.

    Args:
        records: the videos.
        spec: which views.
        position: of the record.
        out: uint8 `[S * C, T, H, W, 3]` to write into.

    Returns:
        "video" uint8 `[S * C, T, H, W, 3]`, view = segment * C + crop, "label", "id" of the
        record, and "reason": why the video cannot be read, or "". "video" is there only if it can.
    """
    worker.note(position)
    record = records[position]
    shape = (spec.num_frames, record.stride or spec.frame_stride, spec.num_segments)
    element: Batch = {"label": record.label, "id": record.id, "reason": ""}
    try:
        with decode.open_video(record.source, spec.min_frames, spec.timeout) as video:
            wanted = indices(video, spec.fps, lambda n: clips.VIEWS[spec.sampling](n, *shape))
            frames = video.read(wanted.ravel(), lambda f: spatial.shrink(f, spec.image_size))
        element["video"] = spatial.views_from_frames(
            frames, spec.image_size, spec.num_segments, spec.num_crops, out
        )
    except NOT_FRAMES as error:
        element["reason"] = one_line(error)
    return element


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def check(
    records: Sequence[Record], spec: ClipSpec, batch_size: int, shard: tuple[int, int]
) -> None:
    """Checks everything that `train_batches` and `views.eval_batches` are given.

    Raises:
        DataError: no records, or a value that cannot be; the message names it and the choices.
    """
    if not records:
        raise DataError("no records to read; the list is empty")
    if spec.sampling not in clips.SAMPLING:
        known = ", ".join(clips.SAMPLING)
        raise DataError(f"data.sampling={spec.sampling!r} is none of {known}")
    if spec.repeats < 1:
        raise DataError(f"data.repeats={spec.repeats}; it must be 1 or more")
    if spec.crop not in spatial.CROPS:
        raise DataError(f"data.crop={spec.crop!r} is none of {', '.join(spatial.CROPS)}")
    if spec.rand_augment:
        try:
            augment.parse_rand_augment(spec.rand_augment)
        except ValueError as error:
            raise DataError(f"data.rand_augment: {error}") from error
    if not 0 <= shard[0] < shard[1]:
        raise DataError(f"shard {shard[0]} of {shard[1]}: give 0 <= number < count")
    if batch_size < 1 or batch_size % shard[1]:
        raise DataError(
            f"batch_size={batch_size} does not divide by {shard[1]} hosts; "
            f"make it a multiple of {shard[1]}"
        )
