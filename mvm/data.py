"""Where the models meet the input pipeline: from a configuration to batches of NumPy arrays."""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from input_pipeline import (
    clips,
    decode,
    lists,
    mixup,
    pipeline,
    spatial,
    synthetic,
    views,
)
from input_pipeline import (
    preflight as files,
)
from input_pipeline import (
    records as videos,
)
from mvm.types import UserError

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]
Record = videos.Record
Failures = pipeline.Failures

# data.sampling -> the pipeline's rules for training and for evaluation.
_SAMPLING = {
    "released": ("finetune", "center"),  # in pre-training "pretrain"
    "strided": ("strided", "center"),
    "segments": ("segments", "segments_center"),
    "segments_v2": ("segments_v2", "segments_center"),
    "spread": ("spread", "spread_center"),
}


def threads(config: Any) -> int:
    """Decoding threads of this process; each builds a batch, so their number bounds memory."""
    return config.data.threads or min(os.cpu_count() or 1, 8)


def ensure(config: Any, folder: epath.PathLike) -> Any:
    """The configuration with its synthetic videos written and its lists pointing at them.

    Args:
        config: returned as it is if `synthetic.num_pretrain` is 0 or data is given.
        folder: where the videos go.
    """
    s, d = config.synthetic, config.data
    if not s.num_pretrain or d.train or d.test:
        return config

    def progress(done: int, total: int) -> None:
        if done % 500 == 0 or done == total:
            log.info("moving shapes in %s: %d of %d videos", folder, done, total)

    if jax.process_index() == 0:
        synthetic.write(
            folder,
            num_unlabelled=s.num_pretrain - s.num_train,
            num_train=s.num_train,
            num_val=s.num_val,
            num_test=s.num_test,
            long=s.long,
            seed=s.seed,
            progress=progress,
        )
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("synthetic videos")
    lists = synthetic.lists_in(folder)
    config = config.copy_and_resolve_references()
    pretraining = config.task == "pretrain"
    config.data.train = str(lists.pretrain if pretraining else lists.train)
    if not pretraining:
        config.data.val, config.data.test = str(lists.val), str(lists.test)
    return config


def records(config: Any, split: str) -> list[Record]:
    """The records of `config.data.<split>`.

    Raises:
        UserError: if nothing is given; the line names the ways to give data.
        DataError: if the list is missing, empty or wrong.
    """
    spec = config.data[split]
    if not spec:
        raise UserError(
            f"{config.name} has no data: give --config.data.{split}=LIST (a `path label` line per "
            f"video) or a folder of class folders, and --config.data.root=DIR if the list's paths "
            f"are relative to another folder"
        )
    num_classes = 0 if config.task == "pretrain" else config.data.num_classes
    return lists.load(spec, config.data.root, num_classes)


def preflight(config: Any, found: Sequence[Record], split: str) -> None:
    """Warns of files that are missing, empty or broken, before any long work.

    Raises:
        UserError: if more of them are bad than `data.max_bad_fraction` allows; names the first.
    """
    bad = files.check(found, config.data.min_frames, threads=threads(config))
    opened = {record.id for record in files.sampled(found)}
    worst = max(
        (sum(record.id in opened for record, _ in bad), len(opened)),
        (len(bad), len(found)),
        key=lambda share: share[0] / share[1],
    )
    for record, reason in bad[:10]:
        log.warning("data.%s: %s: %s", split, record.id, reason)
    if len(bad) > 10:
        log.warning("data.%s: and %d more", split, len(bad) - 10)
    if worst[0] > config.data.max_bad_fraction * worst[1] and split == "train":
        record, reason = bad[0]
        raise UserError(
            f"data.train: {worst[0]} of {worst[1]} videos looked at cannot be used (first: "
            f"{record.id}: {reason}); mend the list or raise data.max_bad_fraction="
            f"{config.data.max_bad_fraction}"
        )
    if len(bad) == len(found):
        record, reason = bad[0]
        raise UserError(f"data.{split}: no video can be used (first: {record.id}: {reason})")


def clip_spec(config: Any, split: str) -> pipeline.ClipSpec:
    """How clips are made: augmented for "train", centred for "val", many views for "test".

    Raises:
        UserError: for an unknown `data.sampling`, or fewer candidate frames than a clip has.
    """
    d = config.data
    if d.sampling not in _SAMPLING:
        raise UserError(f"data.sampling={d.sampling!r} is unknown; choose {', '.join(_SAMPLING)}")
    if 0 < d.num_candidates < d.num_frames:
        raise UserError(
            f"data.num_candidates={d.num_candidates} is fewer than data.num_frames="
            f"{d.num_frames}; raise it, or set it to 0 for clips without frame selection"
        )
    random, center = _SAMPLING[d.sampling]
    shared = {
        # Frame selection is the model's: it gets all candidates.
        "num_frames": d.num_candidates or d.num_frames,
        "frame_stride": d.frame_stride,
        "image_size": d.image_size,
        "min_frames": d.min_frames,
    }
    if split == "test":
        many = {"num_segments": config.eval.num_segments, "num_crops": config.eval.num_crops}
        return pipeline.ClipSpec(sampling=center, crop="center", **shared, **many)
    if split == "val":
        return pipeline.ClipSpec(sampling=center, crop="center", **shared)
    if d.sampling == "released":
        random = "pretrain" if config.task == "pretrain" else "finetune"
    return pipeline.ClipSpec(
        sampling=random,
        crop=d.crop,
        flip=d.flip,
        rand_augment=d.rand_augment,
        erasing=d.erasing,
        repeats=d.repeats,
        **shared,
    )


def check(config: Any, found: Sequence[Record]) -> None:
    """Checks how training clips are to be made.

    Raises:
        UserError, DataError: for a value that cannot be; names it and the choices.
    """
    shard = (jax.process_index(), jax.process_count())
    pipeline.check(found, clip_spec(config, "train"), config.train.batch_size, shard)
    clips, parts = config.train.batch_size * config.data.repeats, max(config.train.accumulate, 1)
    if _mixes(config) and clips % (2 * parts):
        raise UserError(
            f"mixup and cutmix pair the clips of a batch, but train.batch_size * data.repeats = "
            f"{clips} is no multiple of 2 * train.accumulate = {2 * parts}; make it one"
        )


def train_batches(
    config: Any, found: Sequence[Record], start: int, failures: Failures
) -> Iterator[Batch]:
    """This process's share of each training batch, without end; see `pipeline.train_batches`.

    Args:
        config: the configuration.
        found: training records.
        start: records consumed so far by all processes together.
        failures: collects what could not be read.
    """
    batches = pipeline.train_batches(
        found,
        clip_spec(config, "train"),
        batch_size=config.train.batch_size,
        seed=config.seed,
        start=start,
        shard=(jax.process_index(), jax.process_count()),
        threads=threads(config),
        workers=config.data.workers,
        cache_gb=config.data.cache_gb,
        failures=failures,
    )
    with contextlib.closing(batches):
        yield from _mixed(config, batches, start // config.train.batch_size)


def _mixes(config: Any) -> bool:
    return config.task != "pretrain" and bool(config.data.mixup or config.data.cutmix)


def _mixed(config: Any, batches: Iterator[Batch], first: int) -> Iterator[Batch]:
    """Adds how to mix each batch, one draw for all its clips, if the configuration asks for it."""
    d = config.data
    for step, batch in enumerate(batches, first):
        if _mixes(config):
            # Addressed by the step, hence the same on every process and after a restart.
            mixed = mixup.draw(
                np.random.default_rng((config.seed, step)),
                d.image_size,
                d.image_size,
                mixup_alpha=d.mixup,
                cutmix_alpha=d.cutmix,
                switch_prob=0.5,
            )
            b = len(batch["label"])
            batch["lam"] = np.full(b, mixed.lam, np.float32)
            batch["box"] = np.tile(np.array(mixed.box, np.int32), (b, 1))
        yield batch


def eval_batches(
    config: Any, found: Sequence[Record], split: str, failures: Failures
) -> Iterator[Batch]:
    """This process's share of the views of every record, each record exactly once."""
    return views.eval_batches(
        found,
        clip_spec(config, split),
        batch_size=config.eval.batch_size,
        shard=(jax.process_index(), jax.process_count()),
        threads=threads(config),
        failures=failures,
    )


def class_names(config: Any) -> list[str]:
    """Names of the classes of the test split, numbers where nothing names them."""
    return lists.class_names(config.data.test, config.data.num_classes)


def class_names_if_any(config: Any) -> list[str]:
    """As `class_names`; numbers also where the list is no longer there, or another one."""
    with contextlib.suppress(Exception):  # Remote backends have error classes of their own.
        if config.data.test and epath.Path(config.data.test).exists():
            return class_names(config)
    return [str(label) for label in range(config.data.num_classes)]


def views_of(
    config: Any, video: str | np.ndarray, num_segments: int = 1, num_crops: int = 1
) -> np.ndarray:
    """Views of one video as evaluation makes them.

    Args:
        config: says which frames and how large.
        video: path of a file, or all its frames, uint8 `[T, H, W, 3]`.
        num_segments: S, temporal positions; 1 is the middle.
        num_crops: C, places along the longer side; 1 is the centre.

    Returns:
        uint8 `[S * C, data.num_frames, data.image_size, data.image_size, 3]`, view =
        segment * C + crop; with frame selection all candidate frames.

    Raises:
        UserError: if the file cannot be read; names it and the reason.
    """
    spec = clip_spec(config, "val")

    def wanted(n: int) -> np.ndarray:
        rule = clips.VIEWS[spec.sampling]
        return rule(n, spec.num_frames, spec.frame_stride, num_segments).ravel()

    if isinstance(video, np.ndarray):
        whole = list(video)  # So that a frame that is taken twice is one object, scaled once.
        frames = [whole[i] for i in wanted(len(whole))]
    else:
        try:
            with decode.open_video(video, spec.min_frames) as opened:
                indices = wanted(opened.header.num_frames)
                frames = opened.read(indices, lambda f: spatial.shrink(f, spec.image_size))
        except decode.VideoError as error:
            raise UserError(f"{video}: {error}") from error
    return spatial.views_from_frames(frames, spec.image_size, num_segments, num_crops)


def samples(config: Any, found: Sequence[Record], count: int) -> np.ndarray:
    """A few centred clips, evenly spread over the records, for figures: `[count, T, H, W, 3]`.

    With frame selection they have all candidate frames.
    """
    return np.stack([element["video"] for element in _sampled(config, found, count)])


def eventful(
    config: Any, found: Sequence[Record], count: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Samples of long synthetic videos and which of their frames show an event, for figures.

    Returns:
        As `samples`, and bool `[count, T]`; None for other data.
    """
    length, spec = config.synthetic.long, clip_spec(config, "val")
    if not length:
        return None
    try:
        events = synthetic.read_events(epath.Path(config.data.train or config.data.test).parent)
    except FileNotFoundError:
        return None
    elements = _sampled(config, found, count)
    rule = clips.SAMPLING[spec.sampling]  # Of a centred clip: it draws nothing.
    frames = rule(np.random.default_rng(0), length, spec.num_frames, spec.frame_stride)
    busy = np.zeros((len(elements), spec.num_frames), bool)
    for row, element in zip(busy, elements):
        for start, end in events.get(found[int(element["index"])].id, ()):
            row |= (frames >= start) & (frames < end)
    return np.stack([element["video"] for element in elements]), busy


def _sampled(config: Any, found: Sequence[Record], count: int) -> list[Batch]:
    """Elements of `count` records that can be read, spread over the list and in its order."""
    spec = clip_spec(config, "val")
    spread = np.linspace(0, len(found) - 1, num=min(4 * count, len(found))).astype(int)
    elements: list[Batch] = []
    for position in np.concatenate([spread[first::4] for first in range(4)]):
        if len(elements) < count:
            element = pipeline.clip(found, spec, int(position), config.seed)
            if not element["skipped"]:
                elements.append(element)
    if not elements:
        raise UserError("none of the sampled videos can be read")
    return sorted(elements, key=lambda element: int(element["index"]))
