"""One video becomes one element: which frames -> decode -> crop, augment, resize -> uint8."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from input_pipeline.sources.records import Record
from input_pipeline.transforms import boxes as people
from input_pipeline.transforms import clips
from input_pipeline.transforms import crops as spatial
from input_pipeline.transforms import randaugment as augment
from input_pipeline.video import decode
from input_pipeline.video.base import VideoError

UNREADABLE = (VideoError, cv2.error)
ATTEMPTS = 16
_ID = 256  # bytes

Batch = dict[str, Any]
Records = Sequence[Record]
Make = Callable[..., Any]  # `make_clips` or `make_views` of some records, here or in a worker.


class ClipSpec(NamedTuple):
    """What becomes of one video."""

    num_frames: int = 16  # T, decoded and given.
    frame_stride: int = 4  # Frames between samples, where `sampling` has one and the record none.
    image_size: int = 224  # Side of a clip, pixels.
    # Which frames: in training a rule of `clips.SAMPLING`, in evaluation the one of `clips.VIEWS`
    # that goes with it.
    sampling: str = "pretrain"
    # Which pixels: in training a rule of `crops.CROPS`, in evaluation squares along the longer
    # side; "fit" is the whole frame with grey around it, in both.
    crop: str = "multi_scale"
    flip: bool = False  # Mirror half of the training clips.
    rand_augment: str = ""  # Policy such as "rand-m7-n4-mstd0.5-inc1".
    erasing: float = 0.0  # Probability of a random-erasing box; adds "erase" to each element.
    num_segments: int = 1  # S, temporal positions in evaluation.
    num_crops: int = 1  # C, spatial windows in evaluation.
    min_frames: int = 8  # Videos with fewer are unusable.
    # Frames per second that a video is brought to before frames are chosen, by the times its frames
    # are shown at; 0 takes its own frames, whatever their rate.
    fps: float = 0.0
    timeout: float = 150.0  # Seconds that a worker may take for a video.
    # R, clips made in training of the frames decoded once, each with its own crop, flip,
    # RandAugment and erasing (repeated augmentation, 1901.09335).
    repeats: int = 1
    # For records that are key frames: the clip is the one around it, tested on whole frames, and
    # boxes go with it.
    boxes: people.BoxSpec | None = None


def spec_of(d: Any, split: str, released: str, views: tuple[int, int] = (1, 1)) -> ClipSpec:
    """How clips are made by `d`, the group `config.data`: augmented for "train", centred for "val".

    `released` is the training rule of `data.sampling=released`, `views` segments and crops of
    "test".
    """
    middle = f"{d.sampling.removesuffix('_v2')}_center"
    spec = ClipSpec(
        # Frame selection is the model's: it gets all candidates.
        num_frames=d.num_candidates or d.num_frames,
        frame_stride=d.frame_stride,
        image_size=d.image_size,
        sampling=middle if middle in clips.SAMPLING else "center",
        crop="fit" if d.crop == "fit" else "center",
        min_frames=d.min_frames,
        fps=d.fps,
        timeout=d.timeout,
    )
    if split == "train":
        return spec._replace(
            sampling=released if d.sampling == "released" else d.sampling,
            crop=d.crop,
            flip=d.flip,
            rand_augment=d.rand_augment,
            erasing=d.erasing,
            repeats=d.repeats,
        )
    if split == "test":  # A whole frame is one crop.
        return spec._replace(num_segments=views[0], num_crops=1 if d.crop == "fit" else views[1])
    return spec


class FrameCache:
    """Decoded videos kept in memory, `size` bytes, first come first kept; shared by threads.

    Only videos that decode without damage are kept: their frames do not depend on where decoding
    started, so a kept video gives the bytes that a fresh read gives.
    """

    def __init__(self, size: int) -> None:
        self._left = size
        self._kept: dict[str, list[np.ndarray]] = {}  # Empty: not to be kept.

    def frames(self, record: Record, spec: ClipSpec) -> list[np.ndarray]:
        """All frames, if they are kept; none: read the video yourself, and meet its errors."""
        if record.id in self._kept:
            return self._kept[record.id]
        self._kept[record.id] = []  # Other threads do without meanwhile.
        with (
            contextlib.suppress(VideoError),
            decode.open_video(record.source, spec.min_frames) as video,
        ):
            n, h, w, _ = video.header
            if n * h * w * 3 <= self._left:
                self._left -= n * h * w * 3
                frames = video.read(range(n), np.copy)  # Exactly their pixels: planes have padding.
                self._kept[record.id] = [] if video.damage else frames
        return self._kept[record.id]


def train_element(
    records: Records, repeats: int, make: Make, address: Batch, *, out: np.ndarray
) -> Batch:
    """The R clips of one video, or of the first readable one that is drawn instead.

    `address` is "position" of the record wanted, and "seed" of all draws. `make(position, seed,
    out=out)` is `make_clips`, here or in a worker. Returns the other entries of `train_batches`, of
    `[R, ...]` each, and "failed", `(id, reason)` of each record that could not be read; VideoError
    for `ATTEMPTS` of them.
    """
    position, seed = int(address["position"]), [*address["seed"]]
    failed: list[tuple[str, str]] = []
    others = np.random.default_rng([*seed, ATTEMPTS])  # No clip has this seed.
    while True:
        try:
            rows = make(position, [*seed, len(failed)] if failed else seed, out=out)
            break
        except UNREADABLE as error:
            failed.append(_failure(records[position], error))
        if len(failed) == ATTEMPTS:
            said = "; ".join(f"{name}: {reason}" for name, reason in failed[:3])
            raise VideoError(f"{ATTEMPTS} videos in a row cannot be used, first {said}")
        position = int(others.integers(len(records)))
    return {
        "label": np.full(repeats, records[position].label, np.int32),
        "index": np.full(repeats, position, np.int32),
        "skipped": np.array([len(failed)] + [0] * (repeats - 1), np.int32),
        **rows,
        "failed": failed,
    }


def _failure(record: Record, error: Exception) -> tuple[str, str]:
    return record.id, " ".join(str(error).split())


def make_clips(
    records: Records,
    spec: ClipSpec,
    cache: FrameCache | None,
    position: int,
    seed: Sequence[int],
    *,
    out: np.ndarray,
) -> Batch:
    """Decodes once and makes R clips, into `out` `[R, T, H, W, 3]`; returns what goes with them."""
    record, rng = records[position], np.random.default_rng(seed)
    stride = record.stride or spec.frame_stride

    def rule(n: int) -> np.ndarray:
        return clips.SAMPLING[spec.sampling](rng, n, spec.num_frames, stride)

    if kept := cache.frames(record, spec) if cache else []:
        frames = [kept[i] for i in rule(len(kept))]
    else:
        with decode.open_video(record.source, spec.min_frames) as video:
            frames = video.read(wanted_of(video, record, spec, rule))
    made = [_make_clip(out[0], frames, record, spec, rng)]
    base = int(rng.integers(1 << 63))
    for repeat in range(1, spec.repeats):  # From its own address: the same whatever R is.
        own = np.random.default_rng((base, repeat))
        made.append(_make_clip(out[repeat], frames, record, spec, own))
    return {name: np.stack([one[name] for one in made]) for name in made[0]}


def _make_clip(
    out: np.ndarray,
    frames: Sequence[np.ndarray],
    record: Record,
    spec: ClipSpec,
    rng: np.random.Generator,
) -> Batch:
    """Makes one clip of the decoded frames, into `out` `[T, H, W, 3]`; returns what is with it."""
    layers = []
    if spec.rand_augment:
        layers = augment.draw_layers(rng, augment.parse_rand_augment(spec.rand_augment))
    h, w = frames[0].shape[:2]
    box = spatial.CROPS[spec.crop](rng, h, w, spec.image_size)
    flip = spec.flip and rng.random() < 0.5
    inside = spatial.fitted(out, h, w) if spec.crop == "fit" else out
    augment.augmented_clip(inside, frames, layers, box, flip)
    if spec.boxes:
        people.jitter_colours(out, rng)
        return people.of_clip(record.truth, (h, w), box, spec.image_size, flip, spec.boxes)
    if spec.erasing > 0:
        return {"erase": augment.erasing_box(rng, spec.image_size, spec.erasing)}
    return {}


def wanted_of(
    video: decode.Readable, record: Record, spec: ClipSpec, rule: Callable[[int], np.ndarray]
) -> np.ndarray:
    """The frames of a rule, or those around a key frame."""
    if spec.boxes:
        key = people.shown_at(video, record.truth.seconds)
        key = round(record.truth.seconds * spec.fps) if spec.fps else key
        rule = lambda n: people.around(key, n, spec.num_frames, spec.frame_stride)  # noqa: E731
    if not spec.fps:
        return rule(video.header.num_frames)
    shown = video.at_rate(spec.fps)
    return shown[rule(len(shown))]


def view_element(
    records: Records, spec: ClipSpec, make: Make, position: int, *, out: np.ndarray
) -> Batch:
    """All test views of one video from one decode; zeros if it cannot be read, or for position -1.

    `make(position, out=out)` is `make_views`, here or in a worker. Returns the entries of
    `eval_batches` but "video", of `[1, ...]` each, and "failed" as of `train_element`.
    """
    failed: list[tuple[str, str]] = []
    record, valid = Record("", "", -1), False
    if position >= 0:
        record = records[position]
        try:
            make(position, out=out)
            valid = True
        except UNREADABLE as error:
            failed = [_failure(record, error)]
    if not valid:
        out[:] = 0  # It holds whatever was there.
    rows = people.of_view(records[max(position, 0)].truth, spec.boxes) if spec.boxes else {}
    return {
        **identity(record, position, valid),
        **{name: row[None] for name, row in rows.items()},
        "failed": failed,
    }


def identity(record: Record, position: int, valid: bool) -> Batch:
    """Which record an element of evaluation is of, `[1, ...]` each."""
    return {
        "label": np.array([record.label], np.int32),
        "index": np.array([position], np.int32),
        "id": np.frombuffer(record.id.encode()[:_ID].ljust(_ID, b"\0"), np.uint8)[None],
        "valid": np.array([valid]),
    }


def make_views(records: Records, spec: ClipSpec, position: int, *, out: np.ndarray) -> None:
    """All views of a record, into `out`, uint8 `[1, S * C, T, H, W, 3]`."""
    write_views(out[0], records[position], spec)


def write_views(out: np.ndarray, record: Record, spec: ClipSpec) -> None:
    """Decodes once and makes all views, into `out` `[S * C, T, H, W, 3]`."""
    shape = (spec.num_frames, record.stride or spec.frame_stride, spec.num_segments)
    pixels = spec.image_size, spec.crop
    with decode.open_video(record.source, spec.min_frames) as video:
        wanted = wanted_of(video, record, spec, lambda n: clips.VIEWS[spec.sampling](n, *shape))
        if spec.boxes:
            h, w = spec.boxes.resized(record.truth)
            out[:] = people.FILL
            out[0, :, :h, :w] = video.read(wanted, lambda f: spatial.resize(f, h, w))
            return
        frames = video.read(wanted.ravel(), lambda f: spatial.shrink(f, *pixels))
    spatial.views_from_frames(frames, spec.image_size, spec.num_segments, spec.num_crops, out)
