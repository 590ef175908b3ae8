"""Where the models meet the input pipeline: from a configuration to batches of NumPy arrays."""

import contextlib
import hashlib
import logging
import os
import pathlib
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from input_pipeline import elements, pipeline, preflight, ucf101, views
from input_pipeline.sources import load as sources
from input_pipeline.sources import records as videos
from input_pipeline.synthetic import dataset as synthetic
from input_pipeline.transforms import mix as mixup
from mvm import config as keys
from mvm.types import UserError

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]
Record = videos.Record
Failures = videos.Failures

_SHOWN = 10
"""Bad videos that are named."""

# data.sampling -> the pipeline's rules for training and for evaluation.
_SAMPLING = {
    "released": ("finetune", "center"),  # in pre-training "pretrain"
    "strided": ("strided", "center"),
    "segments": ("segments", "segments_center"),
    "segments_v2": ("segments_v2", "segments_center"),
    "spread": ("spread", "spread_center"),
}


def threads(config: Any) -> int:
    """Videos decoded at a time: as many as this process may use cores, 32 at most."""
    known = sys.platform == "linux"
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # A container's share, where it has one.
        quota, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(-(-int(quota) // int(period)), 1))  # "max" is no number.
    return config.data.threads or min(cores, 32)


def workers(config: Any) -> int:
    """Supervised decoding processes of this process; 0 where its threads decode."""
    if config.data.workers >= 0:
        return config.data.workers
    return 0 if config.data.cache_gb else threads(config)  # A cache is of use to threads.


def ensure(config: Any, folder: epath.PathLike) -> Any:
    """The configuration with its own videos there and its lists pointing at them.

    Args:
        config: returned as it is if data is given, or if it neither fetches a data set
            (`data.fetch`) nor has videos written (`synthetic.num_pretrain`).
        folder: where written videos go. A data set goes to TFDS's folder, for all runs.

    Raises:
        DataError: if there is no network to fetch a data set by.
    """
    d = config.data
    if d.train or d.val or d.test:
        return config
    if config.synthetic.num_pretrain:
        return _synthetic(config, folder)
    return _fetched(config) if d.fetch else config


def _fetched(config: Any) -> Any:
    """UCF101, downloaded and prepared once on each disk; other processes wait for the first."""
    name, _, number = config.data.fetch.partition("/")
    if name != "ucf101" or number not in ("1", "2", "3"):
        raise UserError(f"data.fetch={config.data.fetch!r} is unknown; choose ucf101/1, /2 or /3")
    prepared = ucf101.fetch(config.data.root, int(number))
    config = config.copy_and_resolve_references()
    config.data.train = prepared
    if config.task != "pretrain":
        config.data.val = config.data.test = prepared
    return config


def _synthetic(config: Any, folder: epath.PathLike) -> Any:
    s = config.synthetic

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


def records(config: Any, split: str, classes: sources.Classes | None = None) -> Sequence[Record]:
    """The records of `config.data.<split>`, labels in the order of `classes` (`labels.agree`).

    Raises:
        UserError: if nothing is given; the line names the ways to give data.
        DataError: if the list is missing, empty or wrong.
    """
    spec = config.data[split]
    if not spec:
        raise UserError(
            f"{config.name} has no data: give --config.data.{split}=LIST (a `path label` line per "
            f"video), a folder of class folders, a packed folder or tfds:NAME/CONFIG, and "
            f"--config.data.root=DIR if the list's paths are relative to another folder"
        )
    num_classes = 0 if config.task == "pretrain" else config.data.num_classes
    classes = classes if classes and classes.names else None
    return sources.load(spec, config.data.root, num_classes, split, config.data.template, classes)


def digest(found: Sequence[Record]) -> str:
    """SHA-256 of names, labels, weights and strides in their order; paths may move.

    Of a source that has to be read for names, 64 records are taken.
    """
    total = hashlib.sha256()
    for part in sources.parts_of(found):
        records = part.records
        step = 1 if isinstance(records, list) else max(1, len(records) // 64)
        total.update(f"{len(records)} {part.weight} {part.stride} {part.labels}\n".encode())
        for record in (records[i] for i in range(0, len(records), step)):
            total.update(f"{record.id}\t{record.label}\t{record.stride}\n".encode())
    return total.hexdigest()


def facts(config: Any, found: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """Facts that all processes must agree on: the configuration, but where each has its data, and
    the records of each split.

    Raises:
        UserError: if there are fewer records than processes.
    """
    for split, records in found.items():
        if len(records) < jax.process_count():
            raise UserError(
                f"data.{split} has {len(records)} videos for {jax.process_count()} processes; "
                f"start fewer"
            )
    own = {f"data.{key}" for key in ("root", "threads", "workers", "timeout", "cache_gb", *found)}
    agreed = {key: value for key, value in keys.flat(config).items() if key not in own}
    return agreed | {f"records of data.{split}": digest(found[split]) for split in found}


def look_at(config: Any, found: Sequence[Record], split: str) -> None:
    """Warns of files that are missing, empty or broken, each process looking at its share.

    Raises:
        UserError: if more of them are bad than `data.max_bad_fraction` allows; names the first.
    """
    limits = {"min_frames": config.data.min_frames, "timeout": config.data.timeout}
    shard = (jax.process_index(), jax.process_count())
    bad = preflight.check(found, threads=threads(config), shard=shard, **limits)
    # All processes decide by the same numbers: how many are bad, and where the first are.
    mine = np.full(2 + _SHOWN, len(found))
    mine[:2] = sum(one.opened for one in bad), len(bad)
    mine[2 : 2 + len(bad)] = [one.position for one in bad[:_SHOWN]]
    every = multihost_utils.process_allgather(mine).reshape(-1, len(mine))
    of_opened, of_all = every[:, :2].sum(axis=0).tolist()
    if not of_all:
        return
    first = sorted(p for p in every[:, 2:].ravel().tolist() if p < len(found))[:_SHOWN]
    reasons = {one.position: one.reason for one in bad}
    lines = []
    for record, position in zip((found[p] for p in first), first):
        reason = reasons.get(position) or preflight.look(record, **limits)
        lines.append(f"{record.id}: {reason or 'another process cannot use it'}")
        log.warning("data.%s: %s", split, lines[-1])
    if of_all > len(lines):
        log.warning("data.%s: and %d more", split, of_all - len(lines))
    opened = len(preflight.positions(len(found)))
    worst = max((of_opened, opened), (of_all, len(found)), key=lambda share: share[0] / share[1])
    if worst[0] > config.data.max_bad_fraction * worst[1] and split == "train":
        raise UserError(
            f"data.train: {worst[0]} of {worst[1]} videos looked at cannot be used (first: "
            f"{lines[0]}); mend the list or raise data.max_bad_fraction="
            f"{config.data.max_bad_fraction}"
        )
    if of_all == len(found):
        raise UserError(f"data.{split}: no video can be used (first: {lines[0]})")


def clip_spec(config: Any, split: str) -> elements.ClipSpec:
    """How clips are made: augmented for "train", centred for "val", many views for "test".

    Raises:
        UserError: for fewer candidate frames than a clip has.
    """
    d = config.data
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
        "fps": d.fps,
        "timeout": d.timeout,
    }
    if split == "test":
        many = {"num_segments": config.eval.num_segments, "num_crops": config.eval.num_crops}
        return elements.ClipSpec(sampling=center, crop="center", **shared, **many)
    if split == "val":
        return elements.ClipSpec(sampling=center, crop="center", **shared)
    if d.sampling == "released":
        random = "pretrain" if config.task == "pretrain" else "finetune"
    return elements.ClipSpec(
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
    elements.check(found, clip_spec(config, "train"), config.train.batch_size, shard)
    clips, parts = config.train.batch_size * config.data.repeats, max(config.train.accumulate, 1)
    if _mixes(config) and clips % (2 * parts):
        raise UserError(
            f"mixup and cutmix pair the clips of a batch, but train.batch_size * data.repeats = "
            f"{clips} is no multiple of 2 * train.accumulate = {2 * parts}; make it one"
        )


def train_batches(
    config: Any, found: Sequence[Record], start: int, failures: Failures
) -> Generator[Batch, None, None]:
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
        workers=workers(config),
        cache_gb=config.data.cache_gb,
        failures=failures,
    )
    with contextlib.closing(batches):
        yield from _mixed(config, batches, start // config.train.batch_size)


def _mixes(config: Any) -> bool:
    return config.task != "pretrain" and bool(config.data.mixup or config.data.cutmix)


def _mixed(config: Any, batches: Iterator[Batch], first: int) -> Generator[Batch, None, None]:
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
) -> Generator[Batch, None, None]:
    """This process's share of the views of every record, each record exactly once."""
    return views.eval_batches(
        found,
        clip_spec(config, split),
        batch_size=config.eval.batch_size,
        shard=(jax.process_index(), jax.process_count()),
        threads=threads(config),
        workers=0 if split == "val" else workers(config),  # Those of training are there still.
        failures=failures,
    )
