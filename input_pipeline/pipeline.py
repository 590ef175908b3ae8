"""The grain graph: records -> which frames -> decode -> crop and resize -> uint8 batches.

Training is random access by (seed, epoch, index), so any element can be made again alone.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import grain
import numpy as np

from input_pipeline import augment, clips, decode, spatial
from input_pipeline.records import DataError, Failures, Record

ATTEMPTS = 16
_PER_CLIP = ("video", "erase")  # What an element has R of; the rest is the video's own.
Batch = dict[str, np.ndarray]


class ClipSpec(NamedTuple):
    """What becomes of one video.

    Attributes:
        num_frames: T, frames decoded and given.
        frame_stride: frames between samples, where `sampling` has one.
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
    repeats: int = 1


class TrainBatches:
    """Endless batches for one host; see `train_batches`.

    Attributes:
        failures: the records met so far that could not be read.
    """

    def __init__(self, source: Any, records: Sequence[Record], failures: Failures) -> None:
        self.failures = failures
        self._source = source
        self._records = records

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            VideoError: `ATTEMPTS` records drawn for one element were all unreadable (the first
                one's id and reason are shown).
            RuntimeError: the endless source ended.
        """
        try:
            batch = {name: np.asarray(array) for name, array in next(self._source).items()}
        except StopIteration as error:
            raise RuntimeError("the endless training source ended: a worker was lost") from error
        for report in batch.pop("failures"):
            failed = [line.split("\t", 1) for line in str(report).splitlines()]
            for position, reason in failed:
                self.failures.add(self._records[int(position)].id, reason)
            if len(failed) == ATTEMPTS:
                first = self._records[int(failed[0][0])]
                raise decode.VideoError(
                    f"{ATTEMPTS} videos in a row cannot be used, first {first.id} "
                    f"({first.path}): {failed[0][1]}"
                )
        return _flat(batch)

    def get_state(self) -> dict[str, int]:
        """`{"global_next_index": n}`: elements consumed by all shards; pass n as `start`."""
        return self._source.get_state()

    def close(self) -> None:
        """Stops threads and worker processes."""
        self._source.close()


def train_batches(
    records: Sequence[Record],
    spec: ClipSpec,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
    threads: int = 2,
    workers: int = 0,
    cache_gb: float = 0.0,
    failures: Failures | None = None,
) -> TrainBatches:
    """Endless shuffled training batches, the same bytes for any threads, workers and shards.

    A record that cannot be read is replaced by others drawn from the element's own generator.
    Memory is bounded: at most `max(workers, 1) * (threads + 3)` local batches of `b * R` clips, per
    thread one encoded file with T decoded frames (and, in turn, the T of one clip that RandAugment
    changes), and `cache_gb`.

    Args:
        records: the videos.
        spec: what becomes of each.
        batch_size: videos of a step over all shards, B.
        seed: of the order and of every draw.
        start: videos consumed before, a multiple of `batch_size` (`get_state`).
        shard: this host's number and the number of hosts; b = B / hosts.
        threads: clips decoded in parallel, per process.
        workers: worker processes; 0 decodes in this one.
        cache_gb: decoded videos kept in memory, 1e9 bytes, all workers together.
        failures: where unreadable records are noted.

    Returns:
        An iterator of dictionaries: "video" uint8 `[b * R, T, H, W, 3]`, the R clips of a video
        side by side, "label" int32 `[b * R]`, "index" int32 `[b * R]` (position in `records`),
        "skipped" int32 `[b * R]` (unreadable records met, at the first clip of each video), and
        "erase" int32 `[b * R, 4]` if `spec.erasing`.

    Raises:
        DataError: no records, or a value of `spec`, `batch_size` or `shard` that cannot be.
    """
    check(records, spec, batch_size, shard)
    cache = decode.FrameCache(int(cache_gb * 1e9) // max(workers, 1)) if cache_gb > 0 else None
    make = functools.partial(_element, records, spec, cache)
    source = grain.MapDataset.source(range(len(records)))
    elements = source.seed(seed).shuffle().repeat().random_map(make)
    iterator = grain.experimental.ElasticIterator(
        elements,
        batch_size,
        grain.sharding.ShardOptions(*shard, drop_remainder=True),
        read_options=grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1),
        multiprocessing_options=grain.MultiprocessingOptions(workers) if workers else None,
    )
    iterator.set_state({"global_next_index": start})
    return TrainBatches(iterator, records, failures or Failures())


def clip(records: Sequence[Record], spec: ClipSpec, position: int, seed: int) -> Batch:
    """One training element of record `position`, with its own draws; for figures.

    Returns:
        As `train_batches` without the batch axis; the first of R clips.

    Raises:
        VideoError: the record and its replacements cannot be read.
    """
    check(records, spec, 1, (0, 1))
    element = _element(records, spec, None, position, np.random.default_rng([seed, position]))
    reports = str(element.pop("failures")).splitlines()
    if len(reports) == ATTEMPTS:
        reason = reports[0].split("\t", 1)[1]
        raise decode.VideoError(f"{records[position].id} cannot be used: {reason}")
    return element | {name: element[name][0] for name in _PER_CLIP if name in element}


def _element(
    records: Sequence[Record],
    spec: ClipSpec,
    cache: decode.FrameCache | None,
    position: int,
    rng: np.random.Generator,
) -> Batch:
    """One training element; every unreadable record met on the way is a line of "failures".

    "video" and "erase" have a leading axis of R. It never raises for a bad record: grain's workers
    stop for ever after an exception.
    """
    size = spec.image_size
    video = np.zeros((spec.repeats, spec.num_frames, size, size, 3), np.uint8)
    erase = np.zeros((spec.repeats, 4), np.int32)
    failed: list[str] = []
    while len(failed) < ATTEMPTS:
        try:
            _fill(video, erase, records[position], spec, cache, rng)
            break
        except (decode.VideoError, cv2.error) as error:
            failed.append(f"{position}\t{one_line(error)}")
            position = int(rng.integers(len(records)))
    element: Batch = {
        "video": video,
        "label": np.array(records[position].label, np.int32),
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
    cache: decode.FrameCache | None,
    rng: np.random.Generator,
) -> None:
    """Decodes once and makes R clips of it, into `video` `[R, T, H, W, 3]` and `erase` `[R, 4]`."""

    def choose(n: int) -> np.ndarray:
        return clips.SAMPLING[spec.sampling](rng, n, spec.num_frames, spec.frame_stride)

    kept = cache.frames(record.path, spec.min_frames) if cache else None
    if kept is None:
        frames = decode.read_frames(record.source, choose, spec.min_frames)
    else:
        frames = [kept[i] for i in choose(len(kept))]
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
    if spec.rand_augment:
        policy = augment.parse_rand_augment(spec.rand_augment)
        frames = list(augment.rand_augment(rng, np.stack(frames), policy))
    h, w = frames[0].shape[:2]
    box = spatial.CROPS[spec.crop](rng, h, w, spec.image_size)
    flip = spec.flip and rng.random() < 0.5
    spatial.resize_clip(frames, box, spec.image_size, flip, out)
    if spec.erasing <= 0:
        return np.zeros(4, np.int32)
    return augment.erasing_box(rng, spec.image_size, spec.erasing)


def _flat(batch: Batch) -> Batch:
    """Joins the axes of videos and repeats: `[b, R, ...]` and `[b]` become `[b * R, ...]`."""
    b, repeats = batch["video"].shape[:2]
    if repeats > 1:
        first = np.arange(b * repeats) % repeats == 0
        for name in ("label", "index", "skipped"):
            batch[name] = np.repeat(batch[name], repeats)
        batch["skipped"] *= first
    joined = {k: batch[k].reshape(-1, *batch[k].shape[2:]) for k in _PER_CLIP if k in batch}
    return batch | joined


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
